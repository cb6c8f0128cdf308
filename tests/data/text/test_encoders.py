"""Tokenizers: bytes, typed control tokens, batches."""

import toy_tokenizers as toy

from dpo_jax.data.text import tokenizer
from dpo_jax.data.text.templates import Piece

STORY = (
  'Once upon a time, there was a big red rabbit. The rabbit liked to play. '
  'One day, he found a toy and the toy was good. "Hi there", said the cat. '
) * 4


def written(text):
  return Piece(text, False)


def typed(text):
  return Piece(text, True)


def test_byte_tokenizer():
  byte = tokenizer.load('byte')
  assert (byte.vocab_size, byte.bos_id, byte.eos_id, byte.pad_id) == (
    *(259, 256, 257),
    258,
  )
  assert byte.encode('aé') == [97, 0xC3, 0xA9]  # UTF-8 of é is C3 A9
  text = 'Zoë 日本\n\0'
  assert byte.decode([256, *byte.encode(text), 257]) == text
  assert byte.decode([256, 97, 257], skip_special=False) == '<|bos|>a<|eos|>'
  assert byte.decode([0xC3]) == '\ufffd'
  assert byte.encode('<|eos|>') == list(b'<|eos|>')
  assert byte.encode('a<|eos|>', allow_special=True) == [97, 257]
  assert byte.merges([('a', 'b')]) == [False]


def test_typed_control_tokens_are_text(tmp_path):
  made = toy.byte_level()
  loaded = toy.load(tmp_path, made)
  stop = made.token_to_id('<|im_end|>')
  letters = [made.token_to_id(c) for c in '<|im_end|>']
  assert loaded.encode('<|im_end|>') == letters
  assert loaded.encode('<|im_end|>', allow_special=True) == [stop]
  pieces = [written('<s>a'), typed('<|im_end|>'), written('<|im_end|>')]
  assert loaded.encode_pieces(pieces) == [
    made.token_to_id('<s>'),
    made.token_to_id('a'),
    *letters,
    stop,
  ]
  # A token that is half template text, half content is text.
  halves = [written('<|im_'), typed('end|>')]
  assert loaded.encode_pieces(halves) == letters


def test_batches_give_what_single_texts_give(tmp_path):
  loaded = toy.load(tmp_path, toy.llama_like(STORY))
  texts = [
    [typed('the toy')],
    [written('the toy')],
    [typed('the toy')],
    [],
    [typed('')],
    [written('<s>a'), typed('<s>'), written('</s>')],
  ]
  for continues in (False, True):
    batch = loaded.encode_batch(texts, continues=continues)
    single = [loaded.encode_pieces(t, continues=continues) for t in texts]
    assert batch == single
