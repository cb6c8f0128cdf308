"""The table of lengths: which columns the data has, and the longest text."""

import numpy as np

from dpo_jax.data.batches import length_table
from dpo_jax.types import Comparison, EncodedRecord


def record(prompt_length, *lengths, **known):
  completions = tuple(np.ones(n, np.int32) for n in lengths)
  comparisons = known.pop('comparisons', ())
  return EncodedRecord(
    np.ones(prompt_length, np.int32), completions, comparisons, **known
  )


def columns(records, indices):
  return length_table.columns(length_table.make_table(records), indices)


def test_columns_are_those_of_the_records_that_are_used():
  records = [
    record(1, 1),
    record(1, 1, labels=(False,), scores=(2.0,)),
    record(1, 1, 2, comparisons=(Comparison(0, 1),), scores=(2.0, 1.0)),
    record(1, 1, 2, comparisons=(Comparison(0, 1, 1.0, 0.5),)),
  ]
  assert columns(records, [0]) == frozenset()
  bad = 'undesirable answers'
  assert columns(records, [1]) == {'labels', 'scores', bad}
  assert columns(records, [2]) == {'comparisons', 'lists', 'scores', bad}
  assert columns(records, [3]) == {'comparisons', 'lists', 'margin', bad}
  desirable = record(1, 1, labels=(True,))
  assert columns([desirable], [0]) == {'labels'}
  # A score that is missing anywhere would be read as 0.
  every = {'comparisons', 'labels', 'lists', 'margin', bad}
  assert columns(records, range(4)) == every


def test_reference_scores_are_given_by_every_record_or_by_none():
  records = [
    record(1, 1, labels=(True,), quantiles=(0.5,)),
    record(1, 1, labels=(True,)),
  ]
  assert columns(records, [0]) == {'labels', 'reference_scores'}
  assert columns(records, [0, 1]) == {'labels'}


def test_the_longest_text_is_a_prompt_with_one_completion():
  table = length_table.make_table([record(5, 2, 3), record(1, 6), record(9, 9)])
  assert length_table.longest_text(table, [0]) == 5 + 3
  assert length_table.longest_text(table, [0, 1]) == 8
  assert length_table.longest_text(table, [0, 1, 2]) == 18
