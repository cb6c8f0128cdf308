"""Judgements that teach a loss nothing: counted, said or refused."""

import numpy as np
import pytest

from dpo_jax.data.batches import evidence, length_table
from dpo_jax.types import Comparison, EncodedRecord, InputError

ODPO = ('odpo',)


def record(*weights, **known):
  """Two completions, compared once per weight."""
  completions = tuple(np.ones(n, np.int32) for n in (2, 1))
  comparisons = tuple(Comparison(0, 1, weight) for weight in weights)
  return EncodedRecord(np.ones(3, np.int32), completions, comparisons, **known)


def scored(chosen, rejected, weight=1.0):
  return record(weight, scores=(chosen, rejected))


def report(records, indices=None, ordered=()):
  table = length_table.make_table(records)
  indices = range(len(records)) if indices is None else indices
  return evidence.report(table, np.array(indices), ordered)


def test_scores_that_tie_or_are_reversed_are_counted():
  records = [
    scored(3, 1),
    scored(2, 2),
    scored(1, 4),
    scored(0, 5),
    scored(1, 1, weight=0.0),  # it counts for nothing anyway
    scored(1 + 1e-12, 1),  # equal in float32
  ]
  counts, lines = report(records, ordered=ODPO)
  assert counts == {'zero_weights': 1, 'tied_scores': 2, 'reversed_scores': 2}
  assert lines == [
    '1 of 6 comparisons have weight 0',
    '2 of 6 comparisons have answers with equal scores: odpo gets no gradient '
    'from them',
    '2 of 6 comparisons have the higher score on the rejected answer: odpo '
    'gets no gradient from them',
  ]
  assert set(counts) == set(evidence.COUNTS)
  # Of the chosen records, and for losses that read the order.
  counts, lines = report(records, [0, 2], ODPO)
  assert counts == {'tied_scores': 0, 'reversed_scores': 1} and len(lines) == 1
  assert report(records, [0, 2]) == ({}, [])


def test_ranked_rows_have_their_winners_by_score():
  comparisons = (Comparison(2, 0), Comparison(2, 1), Comparison(0, 1))
  ranked = record(scores=(2.0, 1.0))._replace(
    completions=tuple(np.ones(n, np.int32) for n in (2, 1, 3)),
    comparisons=comparisons,
    scores=(2.0, 1.0, 3.0),
  )
  counts, lines = report([scored(0, 1), ranked], [1], ODPO)
  assert counts == {'tied_scores': 0, 'reversed_scores': 0} and not lines


@pytest.mark.parametrize(
  'label,words',
  [
    (True, 'all 6 labels are desirable: no metric that reads undesirable'),
    (False, 'all 6 labels are undesirable: no metric that reads desirable'),
  ],
)
def test_labels_of_one_kind_are_said(label, words):
  records = [record(labels=(label, label)) for _ in range(3)]
  counts, (line,) = report(records)
  assert line == f'{words} answers can be given' and not counts
  # One answer of the other kind, or a comparison, has both.
  assert report([*records, record(labels=(True, False))]) == ({}, [])
  assert report([*records, record(1.0)]) == ({}, [])
  assert (
    len(report([*records, record(labels=(not label,) * 2)], [0, 1])[1]) == 1
  )
  assert len(report([*records, record(0.0)])[1]) == 2


def test_weights_that_are_all_0():
  zeros = [record(0.0), record(0.0, 0.0)]
  assert report(zeros) == (
    {'zero_weights': 3},
    ['3 of 3 comparisons have weight 0: no metric of comparisons can be given'],
  )
  words = "config.data.train: 'weight' is 0 in all 3 comparisons, .*; fix: give"
  table = length_table.make_table([*zeros, record(1e-30)])
  with pytest.raises(InputError, match=words):
    evidence.check(table, np.arange(2))
  evidence.check(table, np.arange(3))
  # Labels are judgements too.
  labelled = length_table.make_table([*zeros, record(labels=(True, False))])
  evidence.check(labelled, np.arange(3))
  nothing = length_table.make_table([record(scores=(1.0, 2.0))])
  evidence.check(nothing, np.arange(1))
