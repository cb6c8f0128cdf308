"""BOS and EOS: each exactly once, for every tokenizer and chat template."""

import pytest
import toy_tokenizers as toy
from toy_records import chat, dropped, ids, pair, run

from dpo_jax.data.text import tokenizer
from dpo_jax.types import InputError

HEAD = '{% for m in messages %}{{ m.role }}:{{ m.content }}'


TAIL = "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"


@pytest.mark.parametrize('form', ['text', 'chat'])
@pytest.mark.parametrize('eos', ['is pad', 'is not pad', 'in template'])
@pytest.mark.parametrize('bos', ['added', 'none', 'id 0', 'in template'])
def test_bos_once_and_eos_once(tmp_path, bos, eos, form):
  made = toy.byte_level(controls_first=bos == 'id 0')
  if bos != 'none':
    toy.put_before(made, '<s>')
  template = ('{{ bos_token }}' if bos == 'in template' else '') + HEAD
  template += '{{ eos_token }}\n' if eos == 'in template' else '\n'
  tokens = toy.load(
    tmp_path,
    made,
    template=template + TAIL,
    bos_token=None if bos == 'none' else '<s>',
    eos_token='</s>',
    pad_token='</s>' if eos == 'is pad' else '<pad>',
  )
  make = chat if form == 'chat' else pair
  encoded, _ = run(make('hi', 'yes', 'no'), tokens=tokens)
  prompt, completions = ids(encoded[0])
  stop = made.token_to_id('</s>')
  start = made.token_to_id('<s>')
  assert prompt.count(start) == (bos != 'none')
  assert bos == 'none' or prompt[0] == start
  assert bos != 'id 0' or start == 0
  after = [] if form == 'text' or eos == 'in template' else tokens.encode('\n')
  for completion, text in zip(completions, ('yes', 'no')):
    assert completion == [*tokens.encode(text), *after, stop]


def test_eos_is_not_added_where_it_is_not_wanted(tmp_path):
  assert ids(run(pair(), add_eos=False)[0][0])[1] == [[99], [100]]
  tokens = toy.load(tmp_path, toy.byte_level())
  encoded, counts = run(pair(), tokens=tokens)
  assert ids(encoded[0])[1] == [tokens.encode('c'), tokens.encode('d')]
  assert counts.counters['completions_without_eos'] == 2


def test_another_stop_token_ends_a_turn(tmp_path):
  # As Llama 3: eos_token ends a text, and another token ends a turn.
  folder = toy.save(
    tmp_path, toy.byte_level(), template=toy.CHATML, eos_token='</s>'
  )
  stop = 260  # 256 bytes, then <s> </s> <pad> <|im_start|> <|im_end|>
  tokens = tokenizer.load(str(folder))
  completion = ids(run(chat('a', 'b', 'c'), tokens=tokens)[0][0])[1][0]
  assert completion[-3:] == [stop, *tokens.encode('\n'), 257]
  (folder / 'generation_config.json').write_text('{"eos_token_id": [257, 260]}')
  tokens = tokenizer.load(str(folder))
  encoded, counts = run(chat('a', 'b', 'c'), tokens=tokens)
  assert ids(encoded[0])[1][0] == [*tokens.encode('b'), stop]
  assert counts.counters['trimmed_after_eos'] == 2


def test_bos_by_option(tmp_path):
  tokens = toy.load(tmp_path, toy.byte_level(), bos_token='<s>')
  assert ids(run(pair('a'), tokens=tokens)[0][0])[0] == tokens.encode('a')
  encoded, _ = run(pair('a'), tokens=tokens, add_bos=True)
  assert ids(encoded[0])[0] == [256, *tokens.encode('a')]
  assert ids(run(pair('a'), add_bos=False)[0][0])[0] == [97]
  tokens = toy.load(tmp_path, toy.byte_level())
  with pytest.raises(
    InputError, match='^config.data.add_bos: .*no BOS.*; fix: '
  ):
    run(pair('a'), tokens=tokens, add_bos=True)


def test_a_template_without_bos_gets_the_tokenizers(tmp_path):
  made = toy.put_before(toy.byte_level(), '<s>')
  tokens = toy.load(tmp_path, made, template=HEAD + TAIL, bos_token='<s>')
  encoded, counts = run(chat('a', 'b', 'c'), tokens=tokens)
  assert ids(encoded[0])[0] == [256, *tokens.encode('user:aassistant:')]
  assert counts.counters['bos_added_to_template'] == 1


def test_an_empty_prompt_is_bos_else_eos_else_dropped(tmp_path):
  assert ids(run(pair(''))[0][0])[0] == [256]
  made = toy.byte_level()
  for config, expected in (
    ({'bos_token': '<s>', 'eos_token': '</s>'}, [256]),
    ({'eos_token': '</s>'}, [257]),
  ):
    tokens = toy.load(tmp_path, made, **config)
    assert ids(run(pair(''), tokens=tokens)[0][0])[0] == expected
  tokens = toy.load(tmp_path, made)
  assert dropped(pair(''), tokens=tokens) == {'empty_prompt': 1}
  tokens = toy.load(tmp_path, made, template=toy.CHATML, eos_token='</s>')
  record = chat('x', 'a', 'b')._replace(prompt=())
  assert dropped(record, tokens=tokens) == {'empty_prompt': 1}


def test_an_answer_that_is_only_eos_is_empty():
  record = pair('a', '<|eos|>', 'b')
  options = {'allow_control_tokens': True}
  assert dropped(record, **options) == {'empty_completion': 1}
