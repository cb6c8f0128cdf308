"""The planted rule holds in every record; each seed gives other records."""

import re

import numpy as np
import pytest

from dpo_jax.data.sources import synthetic

ANSWER = re.compile(r' (.*[!.]) The (\w+)\.')
PROMPT = re.compile(r'Pick: (\w+), (\w+) or (\w+)\.')


def read(record, k):
  """Reads (is polite, names the first thing) from a completion's text."""
  things = PROMPT.fullmatch(record.prompt).groups()
  manner, thing = ANSWER.fullmatch(record.completions[k]).groups()
  assert (manner in synthetic.POLITE) != (manner in synthetic.RUDE)
  assert thing in things
  return manner in synthetic.POLITE, thing == things[0]


def test_the_winner_is_what_the_rule_says():
  strong = 0
  for record in synthetic.make_records(300, seed=1):
    (comparison,) = record.comparisons
    polite, first = zip(*(read(record, k) for k in range(2)))
    rewards = [2.0 * p + f for p, f in zip(polite, first)]
    assert record.scores == tuple(rewards)
    assert comparison.margin == (
      rewards[comparison.winner] - rewards[comparison.loser]
    )
    if polite[0] != polite[1]:
      strong += 1
      assert first[0] == first[1] and comparison.margin == 2
    else:
      assert comparison.margin == 1
  assert 110 < strong < 190  # half of 300, within 4.6 standard deviations


def test_neither_place_nor_length_gives_the_winner_away():
  records = synthetic.make_records(400, seed=2)
  winners = [record.comparisons[0].winner for record in records]
  assert 150 < sum(winners) < 250  # 5 standard deviations
  lengths = np.array([[len(c) for c in r.completions] for r in records])
  gap = (
    lengths[range(400), winners] - lengths[range(400), 1 - np.array(winners)]
  )
  assert abs(gap.mean()) < 1


def test_demonstrations_come_in_every_manner_alike():
  records = synthetic.make_demonstrations(800, seed=3)
  seen = np.array([read(record, 0) for record in records])
  assert abs(seen[:, 0].mean() - 1 / 2) < 0.09  # 5 standard deviations
  assert abs(seen[:, 1].mean() - 1 / 3) < 0.09
  assert all(len(record.completions) == 1 for record in records)
  assert {record.comparisons for record in records} == {((0, 0, 1.0, 0.0),)}


@pytest.mark.parametrize(
  'make', [synthetic.make_records, synthetic.make_demonstrations]
)
def test_seeds_sizes_and_plain_types(make):
  records = make(200, seed=5)
  assert records == make(200, seed=5)
  assert records != make(200, seed=6)
  assert len({record.prompt for record in records}) == 200
  for i, record in enumerate(records):
    assert record.where == f'synthetic[{i}]'
    for text in (record.prompt, *record.completions):
      assert type(text) is str and text.isascii()
    assert len(record.prompt) + max(map(len, record.completions)) <= 44
    for comparison in record.comparisons:
      assert {type(x) for x in comparison} <= {int, float}


def test_more_prompts_than_there_are_is_an_error():
  assert len(synthetic.make_demonstrations(29_760, seed=0)) == 32 * 31 * 30
  with pytest.raises(ValueError, match='29760'):
    synthetic.make_records(29_761, seed=0)
