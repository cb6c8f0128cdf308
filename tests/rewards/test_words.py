"""words: counts by hand, and the labels of the real pairs."""

import gzip
import json

import pytest

from dpo_jax.rewards import registry


def score(name, text, num_tokens=0):
  (value,) = registry.get(name).score(
    [registry.Answer('A happy dog', text, f'A happy dog{text}', num_tokens)]
  )
  return value


@pytest.mark.parametrize(
  'text,want',
  [
    ('', 0),
    ('Happy, HAPPY friends!', 3),
    ('The sad dog was happy.', 0),
    ('unhappy lovely goodness', 0),  # parts of words do not count
    ('love-love\nhurt1hurt', 0),  # hyphen, line and digit end a word
    ('She cried. She was lost and so afraid', -3),
  ],
)
def test_lexicon_by_hand(text, want):
  assert score('lexicon', text) == want


def test_lengths():
  assert score('length', 'one two', num_tokens=7) == 7
  assert score('length_words', ' one  two-three\nfour ') == 3


def test_lexicon_is_what_labelled_the_real_pairs(shared):
  path = shared / 'data/prefs/stories_lexicon.jsonl.gz'
  with gzip.open(path, 'rt') as file:
    rows = [json.loads(line) for line in file]
  for side in ('chosen', 'rejected'):
    answers = [registry.Answer('', row[side], '', 0) for row in rows]
    want = [row[f'reward_{side}'] for row in rows]
    assert registry.get('lexicon').score(answers).tolist() == want
