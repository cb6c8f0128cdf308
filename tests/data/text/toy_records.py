"""Short records for tests, and their encoding with checked counts."""

from dpo_jax.data.text import encode, tokenizer
from dpo_jax.types import Comparison, PreferenceRecord

PAIR = (Comparison(0, 1),)
BYTE = tokenizer.load('byte')


def pair(prompt='ab', chosen='c', rejected='d', **more):
  more.setdefault('comparisons', PAIR)
  more.setdefault('where', 'f.jsonl:1')
  return PreferenceRecord(prompt, (chosen, rejected), **more)


def chat(prompt, *answers, **more):
  return pair(
    ({'role': 'user', 'content': prompt},),
    *(({'role': 'assistant', 'content': text},) for text in answers),
    **more,
  )


def run(*records, tokens=BYTE, max_length=100, **options):
  options = encode.EncodeOptions(max_length, **options)
  encoded, counts = encode.encode_all(records, tokens, options)
  assert counts.balanced() and counts.kept == len(encoded)
  return encoded, counts


def ids(record):
  return record.prompt.tolist(), [c.tolist() for c in record.completions]


def dropped(*records, **options):
  encoded, counts = run(*records, **options)
  assert not encoded
  return dict(counts.dropped)
