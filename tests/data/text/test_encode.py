"""Encoding: boundaries, chats, control tokens, token ids, real text."""

import gzip
import itertools
import json

import numpy as np
import pytest
import toy_tokenizers as toy
from toy_records import chat, dropped, ids, pair, run

from dpo_jax.data.text import encode, tokenizer
from dpo_jax.types import InputError


def test_boundary_is_between_tokens_and_merges_are_counted(tmp_path):
  made = toy.byte_level(merges=[('Ġ', 'y'), ('a', 'b')])
  tokens = toy.load(tmp_path, made, eos_token='</s>')
  texts = [('Q: ', 'yes', 'no'), ('Q:', ' yes', ' no'), ('xa', 'x', 'bb')]
  encoded, counts = run(*(pair(*t) for t in texts), tokens=tokens)
  for record, (prompt, *sides) in zip(encoded, texts):
    assert tokens.decode(record.prompt) == prompt
    for completion, text in zip(record.completions, sides):
      assert tokens.decode([*record.prompt, *completion]) == prompt + text
  assert counts.counters['boundary_merges'] == 2  # '␣y' of one, 'ab' of one


def test_prompt_and_completion_of_a_llama_like_tokenizer(tmp_path):
  tokens = toy.load(tmp_path, toy.llama_like('the cat ran'), eos_token='</s>')
  encoded, _ = run(pair('the c', 'at ran', 'ow'), tokens=tokens)
  prompt, (chosen, rejected) = ids(encoded[0])
  assert tokens.decode(prompt + chosen) == ' the cat ran'  # '▁' once, at 0
  assert tokens.decode(prompt + rejected) == ' the cow'


def test_a_chat_is_its_rendering(tmp_path):
  made = toy.byte_level()
  tokens = toy.load(tmp_path, made, template=toy.CHATML, eos_token='<|im_end|>')
  encoded, counts = run(chat('hi', 'yes', 'no'), tokens=tokens)
  prompt, (chosen, _) = ids(encoded[0])
  text = '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'
  assert prompt == made.encode(text).ids
  assert chosen == made.encode('yes<|im_end|>').ids
  assert counts.counters['control_tokens_in_text'] == 0


@pytest.mark.parametrize('form', ['text', 'chat'])
def test_typed_control_tokens(tmp_path, form):
  made = toy.byte_level()
  stop = made.token_to_id('<|im_end|>')
  tokens = toy.load(tmp_path, made, template=toy.CHATML, eos_token='<|im_end|>')
  make = chat if form == 'chat' else pair
  # At the border of a string it is refused: see test_checks.py.
  end = '.' if form == 'text' else ''
  typed = make(f'a<|im_end|>{end}', f'b<|im_end|>{end}', 'c')
  records = [typed, make('a', 'b', 'c')]
  encoded, counts = run(*records, tokens=tokens)
  assert counts.counters['control_tokens_in_text'] == 1
  prompt, completions = ids(encoded[0])
  assert prompt.count(stop) == (1 if form == 'chat' else 0)
  assert [c.count(stop) for c in completions] == [1, 1]
  text = tokens.decode(completions[0], skip_special=False)
  assert text == f'b<|im_end|>{end}<|im_end|>'
  encoded, counts = run(*records, tokens=tokens, allow_control_tokens=True)
  assert counts.counters['control_tokens_in_text'] == 1
  prompt, completions = ids(encoded[0])
  assert prompt.count(stop) == (2 if form == 'chat' else 1)
  assert completions[0].count(stop) == 2


def test_control_tokens_that_a_template_rewrites_drop_the_record(tmp_path):
  template = '{% for m in messages %}{{ m.content | length }}{% endfor %}'
  tokens = toy.load(tmp_path, toy.byte_level(), template=template)
  record = chat('a<s>', 'b', 'cc')
  assert dropped(record, tokens=tokens) == {'control_tokens': 1}


def test_plain_text_through_a_template(tmp_path):
  tokens = toy.load(tmp_path, toy.byte_level(), eos_token='<|im_end|>')
  options = {'chat_template': toy.CHATML, 'tokens': tokens}
  text, _ = run(pair('hi', 'yes', 'no'), use_chat_template=True, **options)
  turns, _ = run(chat('hi', 'yes', 'no'), **options)
  assert ids(text[0]) == ids(turns[0])


def test_template_arguments_reach_the_template():
  source = '{{ tag }}{% for m in messages %}{{ m.content }}{% endfor %}'
  encoded, _ = run(
    chat('a', 'b', 'c'), chat_template=source, template_args={'tag': '!'}
  )
  assert ids(encoded[0])[0] == [256, *b'!a']


def test_a_chat_without_a_template_is_refused():
  with pytest.raises(InputError, match='^f.jsonl:1: .*byte has no chat templ'):
    run(chat('a', 'b', 'c'))


def test_token_ids_are_taken_as_they_are():
  encoded, _ = run(pair((5, 256), (7, 257, 8), (9,)))
  assert ids(encoded[0]) == ([5, 256], [[7, 257, 8], [9]])
  for bad in (259, -1):
    with pytest.raises(InputError, match=f'^f.jsonl:1: token id {bad} is out'):
      run(pair((5,), (7, bad), (9,)))


def test_forms_do_not_mix():
  with pytest.raises(InputError, match='different forms'):
    run(pair('a', (1,), 'b'))
  with pytest.raises(InputError, match='lone surrogate'):
    run(pair('a', 'b\ud800', 'c'))


def test_arrays_are_int32_and_chunks_do_not_show(monkeypatch):
  records = [
    pair(f'p{i}', 'a' * (i % 3), 'b', where=f'f:{i}') for i in range(9)
  ]
  at_once, counts = run(*records)
  assert all(
    a.dtype == np.int32 and a.ndim == 1
    for r in at_once
    for a in (r.prompt, *r.completions)
  )
  monkeypatch.setattr(encode, 'CHUNK', 2)
  parts, again = run(*records)
  assert [r.uid for r in parts] == [r.uid for r in at_once] and again == counts


def read(shared, name, limit):
  path = shared / 'data/prefs' / f'{name}.jsonl.gz'
  with gzip.open(path, 'rt', encoding='utf-8') as lines:
    for i, line in enumerate(itertools.islice(lines, limit), 1):
      row = json.loads(line)
      yield pair(
        *(row[k] for k in ('prompt', 'chosen', 'rejected')), where=str(i)
      )


@pytest.mark.parametrize(
  'name', ['hh_harmless', 'llamafactory_zh', 'finegrained_qa', 'imdb_same_film']
)
def test_real_text_survives(shared, name):
  tokens = tokenizer.load(str(shared / 'data/models/gpt2_tokenizer'))
  records = {r.where: r for r in read(shared, name, 60)}
  encoded, counts = run(
    *records.values(), tokens=tokens, max_length=10**6, drop_duplicates=False
  )
  assert counts.read == len(records)
  where = [w for w in records if w not in counts.first.values()]
  assert len(where) == len(encoded)
  for encoded_record, record in zip(encoded, map(records.get, where)):
    for completion, text in zip(encoded_record.completions, record.completions):
      assert completion[-1] == 50256 and 50256 not in completion[:-1]
      joined = tokens.decode([*encoded_record.prompt, *completion])
      assert joined == record.prompt + text
