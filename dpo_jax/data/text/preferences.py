"""What a stage of training takes of a record, and what names a record.

Comes in: PreferenceRecords, token ids. Goes out: the record as SFT or
preference training needs it, or the reason (a key of ledger.REASONS) why it
needs none of it; uids. Encodes nothing.
"""

import math
from collections.abc import Sequence

import numpy as np

from dpo_jax.storage import files
from dpo_jax.types import Comparison, EncodedRecord, PreferenceRecord


def for_stage(record: PreferenceRecord, stage: str) -> PreferenceRecord | str:
  """The record that a stage trains on, or the reason why there is none.

  Args:
    record: as it was read.
    stage: 'sft' takes the best completion (most comparisons won less lost,
      else the highest score; of labelled ones, each that is desirable), as
      Comparison(k, k); any other stage takes the completions with their
      comparisons, labels and scores, and no demonstrations.
  """
  numbers = (
    *(value for c in record.comparisons for value in (c.weight, c.margin)),
    *(record.scores or ()),
  )
  if not all(map(math.isfinite, numbers)):
    return 'non_finite'
  if stage == 'sft':
    return _best(record)
  real = tuple(c for c in record.comparisons if c.winner != c.loser)
  scores_differ = len(set(record.scores or ())) > 1
  if not (real or record.labels is not None or scores_differ):
    return 'no_preference'
  return record._replace(comparisons=real)


def without_identical(
  comparisons: Sequence[Comparison], completions: Sequence[np.ndarray]
) -> tuple[Comparison, ...]:
  """The comparisons whose two sides are not the same tokens."""
  return tuple(
    c
    for c in comparisons
    if c.winner == c.loser
    or not np.array_equal(completions[c.winner], completions[c.loser])
  )


def with_uid(record: EncodedRecord) -> EncodedRecord:
  """The record with the uid that its content gives it.

  sha256 over lengths, token ids, comparisons, labels, scores, and masks where
  there are any; the first 16 hex digits. The source and the place in it do
  not enter.
  """
  known = [
    [
      [int(c[0]), int(c[1]), float(c[2]), float(c[3])]
      for c in record.comparisons
    ],
    None if record.labels is None else [bool(x) for x in record.labels],
    None if record.scores is None else [float(x) for x in record.scores],
    [len(record.prompt), *map(len, record.completions)],
  ]
  pieces = [(ids, '<i4') for ids in (record.prompt, *record.completions)]
  pieces += [(mask, '?') for mask in record.trained or ()]
  digest = files.bytes_digest(
    [
      files.canonical(known),
      *(np.ascontiguousarray(array, dtype) for array, dtype in pieces),
    ]
  )
  return record._replace(uid=digest[:16])


def _best(record: PreferenceRecord) -> PreferenceRecord | str:
  num = len(record.completions)
  if record.comparisons:
    points = np.zeros(num)
    for c in record.comparisons:
      points[c.winner] += 1
      points[c.loser] -= 1
    best = int(points.argmax())
    won = (c.weight for c in record.comparisons if c.winner == best)
    return _only(record, [best], next(won, 1.0))
  if record.scores is not None:
    return _only(record, [int(np.argmax(record.scores))])
  if record.labels is not None:
    return _only(record, [k for k in range(num) if record.labels[k]])
  return _only(record, [0]) if num == 1 else 'no_preference'


def _only(
  record: PreferenceRecord, kept: list[int], weight: float = 1.0
) -> PreferenceRecord | str:
  """The record as demonstrations of these completions."""
  if not kept:
    return 'undesirable'
  return record._replace(
    completions=tuple(record.completions[k] for k in kept),
    comparisons=tuple(Comparison(i, i, weight) for i in range(len(kept))),
    labels=None,
    scores=None,
  )
