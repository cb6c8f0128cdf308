"""Held-out prompts: exact counts, complete prompts, independent of order."""

import hashlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dpo_jax.data.batches import length_table, split
from dpo_jax.data.text import preferences
from dpo_jax.types import Comparison, EncodedRecord, InputError


def record(prompt, number, num_comparisons=1):
  """A record with the uid of this prompt and number."""
  return preferences.with_uid(
    EncodedRecord(
      np.asarray([prompt], np.int32),
      (np.asarray([number, 1], np.int32), np.asarray([2], np.int32)),
      (Comparison(0, 1),) * num_comparisons,
    )
  )


def split_of(records, wanted):
  return split.split_by_prompt_hash(length_table.make_table(records), wanted)


def by_hash(prompts):
  """Prompts in the order of their hash, computed independently of the code."""
  key = {
    p: hashlib.sha256(p.to_bytes(4, 'little')).hexdigest() for p in prompts
  }
  return sorted(prompts, key=key.get)


def test_whole_prompts_in_order_of_their_hash():
  prompts = list(range(20)) * 3  # 20 prompts with three pairs each
  records = [record(p, i) for i, p in enumerate(prompts)]
  train, held, surplus = split_of(records, 10)
  first = by_hash(range(20))
  assert len(held) == 10
  counts = [sum(prompts[i] == p for i in held) for p in first]
  assert counts == [3, 3, 3, 1, *[0] * 16]
  assert surplus == 2  # two pairs of the fourth prompt, in neither part
  assert len(train) == 60 - 10 - 2
  assert not {prompts[i] for i in train} & {prompts[i] for i in held}
  assert train.tolist() == sorted(train) and held.tolist() == sorted(held)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  data=strategies.lists(
    strategies.tuples(strategies.integers(0, 6), strategies.integers(0, 3)),
    min_size=1,
    max_size=25,
  ),
  wanted=strategies.integers(0, 30),
  seed=strategies.integers(0, 9),
)
def test_exact_apart_and_the_same_for_any_order(data, wanted, seed):
  records = [record(p, i, size) for i, (p, size) in enumerate(data)]
  sizes = [max(1, size) for _, size in data]
  try:
    train, held, surplus = split_of(records, wanted)
  except InputError:
    return  # too many, or no complete records give the number
  assert sum(sizes[i] for i in held) == wanted
  assert sum(sizes[i] for i in train) == sum(sizes) - wanted - surplus
  assert not {data[i][0] for i in train} & {data[i][0] for i in held}
  order = np.random.default_rng(seed).permutation(len(records))
  shuffled = [records[i] for i in order]
  again = split_of(shuffled, wanted)
  assert {shuffled[i].uid for i in again[1]} == {records[i].uid for i in held}
  assert again[2] == surplus


def test_later_prompts_complete_the_number():
  first, second, third = by_hash([1, 2, 3])
  records = [record(first, 0, 2), record(second, 1, 2), record(third, 2, 1)]
  train, held, surplus = split_of(records, 3)
  assert held.tolist() == [0, 2] and train.tolist() == [1] and surplus == 0


def test_records_without_comparisons_count_as_one():
  records = [record(i, i, 0) for i in range(5)]
  assert len(split_of(records, 2)[1]) == 2


@pytest.mark.parametrize('wanted', [-1, 6, 7])
def test_more_than_there_are_is_refused(wanted):
  records = [record(i, i, 2) for i in range(3)]
  with pytest.raises(InputError, match='of 6 comparisons cannot .*; fix: '):
    split_of(records, wanted)


def test_a_number_that_no_records_make_is_refused_with_one_that_works():
  records = [record(i, i, 2) for i in range(9)]
  with pytest.raises(InputError, match='make 5 comparisons; fix: hold out 4'):
    split_of(records, 5)
  assert len(split_of(records, 4)[1]) == 2


def test_none_held_out():
  train, held, surplus = split_of([record(1, 1)], 0)
  assert (train.tolist(), held.tolist(), surplus) == ([0], [], 0)
