"""Mixtures: sizes, determinism, independence of the sources."""

import collections
import json

import pytest

from dpo_jax import types
from dpo_jax.data.sources import mixture
from dpo_jax.data.sources import source as sources


@pytest.fixture
def two(tmp_path):
  opened = []
  for name, size in (('a', 10), ('b', 40)):
    path = tmp_path / f'{name}.jsonl'
    rows = [{'prompt': f'{name}{i}', 'completion': ''} for i in range(size)]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    opened.append(sources.open_source(path))
  return opened


def _prompts(opened, proportions, seed=0):
  return [r.prompt for r in mixture.mix(opened, proportions, seed)]


def test_proportions_are_multiples_of_each_source(two):
  once = _prompts(two, (1, 1))
  assert once == [f'a{i}' for i in range(10)] + [f'b{i}' for i in range(40)]
  counts = collections.Counter(_prompts(two, (2.5, 0.25)))
  a = [count for prompt, count in counts.items() if prompt[0] == 'a']
  b = [count for prompt, count in counts.items() if prompt[0] == 'b']
  # 2.5 * 10: all twice, and half of them a third time. 0.25 * 40: ten, once.
  assert sorted(a) == [2] * 5 + [3] * 5
  assert b == [1] * 10
  assert _prompts(two, (0, 1)) == once[10:]


def test_a_mixture_is_a_function_of_its_arguments(two):
  assert _prompts(two, (0.5, 0.5)) == _prompts(two, (0.5, 0.5))
  assert _prompts(two, (0.5, 0.5)) != _prompts(two, (0.5, 0.5), seed=1)
  # A source's part depends neither on the other sources nor on their order.
  first = _prompts(two, (0.5, 0.5))
  other = _prompts(two[::-1], (1, 0.5))
  assert [p for p in other if p[0] == 'a'] == first[:5]


def test_a_smaller_share_is_part_of_a_larger_one():
  small = mixture.take(100, 0.3, seed=3, key=9)
  large = mixture.take(100, 0.5, seed=3, key=9)
  assert (len(small), len(large)) == (30, 50)
  assert set(small) < set(large)
  assert list(large) == sorted(large)
  # Another source of the same size is cut differently.
  assert set(mixture.take(100, 0.5, seed=3, key=10)) != set(large)


def test_sources_are_named_in_their_records(two):
  places = [r.where for r in mixture.mix(two, (1, 1), 0)]
  assert {place.rpartition(':')[0] for place in places} == {
    two[0].name,
    two[1].name,
  }


@pytest.mark.parametrize(
  'proportions,part',
  [
    ((1,), '1 proportions for 2 sources'),
    ((1, -0.5), '-0.5 for'),
    ((1, float('nan')), 'nan for'),
    ((1, float('inf')), 'inf for'),
    ((0, 0), 'no source has a share'),
    ((0.01, 1), '0.01 of the 10 records of'),
  ],
)
def test_proportions_that_cannot_be(two, proportions, part):
  with pytest.raises(types.InputError, match=part) as caught:
    _prompts(two, proportions)
  assert str(caught.value).startswith('config.data.proportions: ')


def test_one_source_twice_is_refused(two):
  with pytest.raises(types.InputError, match='same bytes'):
    _prompts([two[0], two[0]], (0.5, 0.5))
