"""Held-out records that are trained on: counted by their tokens."""

import numpy as np

from dpo_jax.data.batches import length_table, overlap
from dpo_jax.data.text import preferences
from dpo_jax.types import Comparison, EncodedRecord


def record(prompt, *sides, weight=1.0):
  return preferences.with_uid(
    EncodedRecord(
      np.asarray(prompt, np.int32),
      tuple(np.asarray(side, np.int32) for side in sides),
      (Comparison(0, 1, weight),),
    )
  )


def chosen(records, indices=None):
  table = length_table.make_table(records)
  indices = range(len(records)) if indices is None else indices
  return overlap.Chosen(records, table, np.array(indices, np.int64))


def test_records_and_prompts_of_both_sides_are_counted():
  train = [
    record([1], [2], [3]),
    record([1, 2], [3], [4]),
    record([5], [6], [7]),
  ]
  held_out = [
    record([1], [2], [3]),  # the same
    record([1], [3], [2]),  # chosen and rejected swapped
    record([1], [2], [3], weight=2.0),  # another weight
    record([1, 2], [3], [5]),  # another answer
    record([1], [2, 3], [3]),  # another answer
    record([9], [2], [3]),  # another prompt
  ]
  assert overlap.count(chosen(train), chosen(held_out)) == (3, 2)
  assert overlap.count(chosen(held_out), chosen(train)) == (1, 1)


def test_records_that_are_not_used_do_not_count():
  records = [record([i], [2], [3]) for i in range(6)]
  assert overlap.count(chosen(records), chosen(records)) == (6, 0)
  count = overlap.count(chosen(records, [0, 1, 2]), chosen(records, [2, 3, 4]))
  assert count == (1, 0)
  count = overlap.count(chosen(records, [0, 1]), chosen(records, [2, 3]))
  assert count == (0, 0)
