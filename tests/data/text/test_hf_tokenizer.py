"""tokenizer.json: special ids, and token ids equal to those of the library."""

import gzip
import itertools
import json

import pytest
import tokenizers
import toy_tokenizers as toy
from tokenizers import pre_tokenizers

from dpo_jax.data.text import hf_tokenizer, tokenizer
from dpo_jax.data.text.templates import Piece
from dpo_jax.types import InputError

STORY = (
  'Once upon a time, there was a big red rabbit. The rabbit liked to play. '
  'One day, he found a toy and the toy was good. "Hi there", said the cat. '
) * 4


def written(text):
  return Piece(text, False)


def typed(text):
  return Piece(text, True)


def prefixed(kind):
  """A tokenizer that adds a prefix to every text."""
  if kind == 'gpt2':
    made = toy.byte_level(merges=[('Ġ', 't'), ('h', 'e'), ('t', 'he')])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return made
  scheme = pre_tokenizers.Metaspace(prepend_scheme=kind) if kind else None
  return toy.llama_like(STORY, pre_tokenizer=scheme)


PREFIXED = ['', 'always', 'first', 'gpt2']


def test_ids_come_from_tokenizer_config(tmp_path):
  made = toy.byte_level()
  loaded = toy.load(
    tmp_path,
    made,
    template='T',
    bos_token='<s>',
    eos_token={'content': '</s>', '__type': 'AddedToken'},
    pad_token=None,
  )
  assert loaded.bos_id == made.token_to_id('<s>') == 256
  assert (loaded.eos_id, loaded.pad_id) == (257, None)
  assert loaded.stop_ids == {257}
  assert loaded.vocab_size == 261
  assert loaded.begin == ()
  assert loaded.chat_templates == {'default': 'T'}
  assert loaded.special_tokens == {'bos_token': '<s>', 'eos_token': '</s>'}
  assert loaded.name == str(tmp_path)
  bare = tokenizer.load(str(tmp_path / 'tokenizer.json'))
  assert bare.eos_id == 257 and bare.fingerprint == loaded.fingerprint


def test_ids_come_from_the_model_configs_where_names_are_missing(tmp_path):
  toy.byte_level().save(str(tmp_path / 'tokenizer.json'))
  loaded = tokenizer.load(str(tmp_path))
  assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (None, None, None)
  (tmp_path / 'generation_config.json').write_text(
    '{"bos_token_id": 3, "eos_token_id": [260, 257], "pad_token_id": 999}'
  )
  (tmp_path / 'config.json').write_text(
    '{"bos_token_id": 256, "eos_token_id": null}'
  )
  loaded = tokenizer.load(str(tmp_path))
  assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (256, 260, None)
  assert loaded.stop_ids == {257, 260}
  (tmp_path / 'special_tokens_map.json').write_text('{"bos_token": "<pad>"}')
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": null}')
  loaded = tokenizer.load(str(tmp_path))
  assert (loaded.bos_id, loaded.eos_id) == (258, 260)  # of generation_config


def test_a_stop_in_a_gap_of_the_vocabulary_is_no_token(tmp_path):
  toy.save(tmp_path, toy.byte_level(), eos_token='</s>')
  path = tmp_path / 'tokenizer.json'
  spec = json.loads(path.read_text())
  # '!' is id 0: without it the ids have a gap.
  del spec['model']['vocab']['!']
  path.write_text(json.dumps(spec))
  (tmp_path / 'config.json').write_text('{"eos_token_id": [0, 257]}')
  loaded = tokenizer.load(str(tmp_path))
  assert loaded.stop_ids == {257}
  assert 0 not in loaded.known_ids


@pytest.mark.parametrize(
  ('processor', 'setting', 'begin'),
  [
    (False, None, ()),
    (True, None, (256,)),
    (False, True, (256,)),
    (True, False, ()),
  ],
)
def test_who_says_whether_texts_begin_with_bos(
  tmp_path, processor, setting, begin
):
  # Source: transformers 5.23, TokenizersBackend.update_post_processor. If
  # add_bos_token is set, it replaces the post-processor.
  made = toy.byte_level()
  if processor:
    toy.put_before(made, '<s>')
  config = {} if setting is None else {'add_bos_token': setting}
  loaded = toy.load(tmp_path, made, bos_token='<s>', **config)
  assert loaded.begin == begin
  assert loaded.encode('a') == [made.token_to_id('a')]


def test_bos_with_id_0_is_a_bos(tmp_path):
  made = toy.put_before(toy.byte_level(controls_first=True), '<s>')
  loaded = toy.load(tmp_path, made, bos_token='<s>')
  assert loaded.bos_id == 0 and loaded.begin == (0,)


def test_what_decides_ids_is_in_the_fingerprint(tmp_path):
  prints = [
    toy.load(tmp_path, made, **config).fingerprint
    for made, config in [
      (toy.byte_level(), {}),
      (toy.byte_level(controls_first=True), {}),
      (toy.byte_level(), {'template': 'A'}),
      (toy.byte_level(), {'eos_token': '</s>'}),
      (toy.byte_level(), {'eos_token': '</s>', 'bos_token': '<s>'}),
    ]
  ]
  assert len(set(prints)) == len(prints)


def test_tokens_that_only_the_config_calls_special_are_special(tmp_path):
  made = toy.byte_level(controls=('<s>', '<|im_end|>'))
  spec = json.loads(made.to_str())
  spec['added_tokens'][1]['special'] = False
  made = tokenizers.Tokenizer.from_str(json.dumps(spec))
  stop = made.token_to_id('<|im_end|>')
  loaded = toy.load(tmp_path, made)
  assert loaded.encode('<|im_end|>') == [stop]  # an ordinary added token
  loaded = toy.load(tmp_path, made, eos_token='<|im_end|>')
  assert stop not in loaded.encode('<|im_end|>')
  assert loaded.encode('<|im_end|>', allow_special=True) == [stop]


CLEAN = (
  '<s>Once <|im_start|>user\n the  toy<|im_end|>\n<|im_start|> a  <|im_end|>\n'
)


@pytest.mark.parametrize('kind', [*PREFIXED, 'plain', 'stripping'])
def test_ids_of_clean_text_are_those_of_the_library(tmp_path, kind):
  # Source: the library's own encode, whose ids transformers returns.
  if kind in ('plain', 'stripping'):
    made = toy.byte_level(merges=[('Ġ', 't'), ('h', 'e')])
  else:
    made = prefixed(kind)
  if kind == 'stripping':  # as Phi-3's
    spec = json.loads(made.to_str())
    for token in spec['added_tokens']:
      token['rstrip'] = True
    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
  loaded = toy.load(tmp_path, made)
  expected = made.encode(CLEAN, add_special_tokens=False).ids
  assert loaded.encode_pieces([written(CLEAN)]) == expected
  # Encoding in parts, as for texts with typed tokens, gives the same.
  for word in ('Once', 'the  toy', 'e  t', ' a ', 'user', 'a  '):
    start = CLEAN.index(word)
    stop = start + len(word)
    parts = [
      written(CLEAN[:start]),
      typed(CLEAN[start:stop]),
      written(CLEAN[stop:]),
    ]
    assert loaded.encode_pieces(parts) == expected


@pytest.mark.parametrize('kind', PREFIXED)
def test_a_continuation_begins_in_the_middle_of_a_text(tmp_path, kind):
  loaded = toy.load(tmp_path, prefixed(kind))
  for cut in range(1, 60):
    text = STORY[:90]
    start = loaded.encode(text[:cut])
    rest = loaded.encode_pieces([typed(text[cut:])], continues=True)
    assert loaded.decode(start + rest).lstrip() == text, cut
    joint = loaded.encode(text)
    if joint[: len(start)] == start:  # no merge over the cut
      assert start + rest == joint, cut


@pytest.mark.parametrize('kind', PREFIXED)
def test_a_continuation_with_control_tokens(tmp_path, kind):
  made = prefixed(kind)
  loaded = toy.load(tmp_path, made)
  text = '<s>Once upon a time</s>the toy'
  joint = made.encode(text, add_special_tokens=False).ids
  tail = joint[joint.index(made.token_to_id('</s>')) :]
  num_equal = 0
  for cut in range(4, 20):
    start = loaded.encode(text[:cut], allow_special=True)
    rest = loaded.encode_pieces([written(text[cut:])], continues=True)
    assert rest[-len(tail) :] == tail
    if joint[: len(start)] == start:  # no merge over the cut
      num_equal += 1
      assert start + rest == joint, cut
  assert num_equal >= 5


def test_merges_over_a_boundary(tmp_path):
  made = toy.byte_level(merges=[('Ġ', 't'), ('a', 'b')])
  loaded = toy.load(tmp_path, made)
  pairs = [
    ('xa', 'by'),
    ('x ', 'ty'),
    ('x', ' ty'),
    ('ab', 'ab'),
    ('日', '本'),
    ('z' * 999 + 'a', 'b' + 'z' * 999),
  ]
  assert loaded.merges(pairs) == [True, True, False, False, False, True]


def test_settings_of_the_file_that_would_change_ids_are_off(tmp_path):
  merges = [('t', 'h'), ('th', 'e'), ('c', 'a'), ('ca', 't')]
  made = toy.put_before(toy.byte_level(merges=merges), '<s>')
  made.enable_truncation(3)
  made.enable_padding(length=9)
  spec = json.loads(made.to_str())
  spec['model']['dropout'] = 0.9
  made = tokenizers.Tokenizer.from_str(json.dumps(spec))
  loaded = toy.load(tmp_path, made)
  assert loaded.decode(loaded.encode('the cat')) == 'the cat'
  assert len(loaded.encode('the cat')) == 3  # the, space, cat


@pytest.mark.parametrize(
  ('pattern', 'text', 'seconds', 'problem'),
  [
    ('(x+x+)+y', 'x' * 60, 60, 'retry-limit-in-match over'),
    # Seconds for 15,000 characters, and hours for a million.
    ('[xw]+x[yz]', 'x' * 15_000, -0.25, 'not done after 0 s'),
  ],
)
def test_a_pattern_that_does_not_end_is_refused(
  tmp_path, monkeypatch, pattern, text, seconds, problem
):
  made = toy.byte_level()
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
      made.pre_tokenizer,
    ]
  )
  loaded = toy.load(tmp_path, made)
  assert loaded.encode('a y') == toy.byte_level().encode('a y').ids
  monkeypatch.setattr(hf_tokenizer, '_SECONDS', seconds)
  with pytest.raises(InputError, match=problem) as error:
    loaded.encode(text)
  assert str(error.value).startswith(
    f'{tmp_path}/tokenizer.json: cannot encode one of 1 texts of {len(text):,} '
  )


def test_stories_on_the_real_tokenizer(shared):
  loaded = tokenizer.load(str(shared / 'data/models/stories260K'))
  # Source: tokenizer_config.json and config.json of that folder.
  assert (loaded.bos_id, loaded.eos_id, loaded.begin) == (1, 2, (1,))
  assert loaded.vocab_size == 512
  path = shared / 'data/prefs/stories_lexicon.jsonl.gz'
  with gzip.open(path, 'rt', encoding='utf-8') as lines:
    rows = [json.loads(line) for line in itertools.islice(lines, 300)]
  same = 0
  for row in rows:
    prompt = [1, *loaded.encode(row['prompt'])]
    for side in ('chosen', 'rejected'):
      rest = loaded.encode_pieces([typed(row[side])], continues=True)
      assert loaded.decode(prompt + rest) == row['prompt'] + row[side]
      same += prompt == row['prompt_ids'] and rest == row[f'{side}_ids']
  # The ids of the file were sampled, so they are not always those of BPE.
  assert same >= 0.9 * 2 * len(rows)


def test_gpt2_on_the_real_tokenizer(shared):
  loaded = tokenizer.load(str(shared / 'data/models/gpt2_tokenizer'))
  assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (50256,) * 3
  assert loaded.begin == () and loaded.vocab_size == 50257
  assert loaded.encode('Hello world') == [15496, 995]  # GPT-2's known ids
  assert 50256 not in loaded.encode('<|endoftext|>')
