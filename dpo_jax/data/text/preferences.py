"""record -> record of a stage: what SFT or preference training uses of it.

Comes in: PreferenceRecords, then token ids. Goes out: the record as the stage
needs it, or ledger.Dropped; the uid of an encoded record. Encodes nothing.
"""

import math
from collections.abc import Sequence

import numpy as np

from dpo_jax.data.text.ledger import Dropped
from dpo_jax.storage import files
from dpo_jax.types import Comparison, EncodedRecord, PreferenceRecord


def for_stage(
  record: PreferenceRecord, stage: str
) -> PreferenceRecord | Dropped:
  """Returns the record that a stage trains on, or Dropped.

  Args:
    record: as it was read.
    stage: 'sft' takes completions to imitate, as Comparison(k, k): the one
      with the most comparisons won minus lost; without comparisons, the one
      with the highest score; without scores, every one labelled desirable.
      Any other stage takes all completions with their comparisons, labels and
      scores, and drops demonstrations.
  """
  numbers = (
    *(value for c in record.comparisons for value in (c.weight, c.margin)),
    *(record.scores or ()),
  )
  if not all(map(math.isfinite, numbers)):
    return Dropped('non_finite')
  if stage == 'sft':
    return _best(record)
  # Comparison(k, k) is a demonstration.
  real = tuple(c for c in record.comparisons if c.winner != c.loser)
  scores_differ = len(set(record.scores or ())) > 1
  if not (real or record.labels is not None or scores_differ):
    return Dropped('no_preference')
  return record._replace(comparisons=real)


def trained_sides(
  completions: Sequence[np.ndarray],
  trained: Sequence[np.ndarray] | None,
  sizes: Sequence[int] | None = None,
) -> list[np.ndarray]:
  """Returns the trained token ids of each completion.

  Args:
    completions: token ids, int32 [n_k] each.
    trained: bool [n_k] each; None = all tokens are trained.
    sizes: leading tokens of each completion that count; None = all.
  """
  masks = trained or [np.ones(len(ids), bool) for ids in completions]
  ends = sizes or [*map(len, completions)]
  return [
    ids[:end][mask[:end]] for ids, mask, end in zip(completions, masks, ends)
  ]


def without_identical(
  comparisons: Sequence[Comparison], completions: Sequence[np.ndarray]
) -> tuple[Comparison, ...]:
  """Returns the comparisons whose two sides differ, and demonstrations.

  Args:
    comparisons: of one record.
    completions: trained token ids of each completion. Sides that differ in
      other tokens only (a user's turn) teach nothing about the model's.
  """
  return tuple(
    c
    for c in comparisons
    if c.winner == c.loser
    or not np.array_equal(completions[c.winner], completions[c.loser])
  )


def with_uid(record: EncodedRecord) -> EncodedRecord:
  """Returns the record with the uid of its content.

  The uid is the first 16 hex digits of the sha256 over lengths, token ids,
  comparisons, labels, scores and, if it has any, quantiles and masks. The
  source of the record and its place there do not enter.
  """
  # Numbers are converted, so that 1 and 1.0 give the same uid.
  known = [
    [
      [int(c[0]), int(c[1]), float(c[2]), float(c[3])]
      for c in record.comparisons
    ],
    None if record.labels is None else [bool(x) for x in record.labels],
    None if record.scores is None else [float(x) for x in record.scores],
    [len(record.prompt), *map(len, record.completions)],
  ]
  # Records without quantiles keep the uid that they always had.
  if record.quantiles is not None:
    known.append([float(x) for x in record.quantiles])
  pieces = [(ids, '<i4') for ids in (record.prompt, *record.completions)]
  pieces += [(mask, '?') for mask in record.trained or ()]
  digest = files.bytes_digest(
    [
      files.canonical(known),
      *(np.ascontiguousarray(array, dtype) for array, dtype in pieces),
    ]
  )
  return record._replace(uid=digest[:16])


def _best(record: PreferenceRecord) -> PreferenceRecord | Dropped:
  num = len(record.completions)
  if record.comparisons:
    points = np.zeros(num)
    for c in record.comparisons:
      points[c.winner] += 1
      points[c.loser] -= 1
    # argmax takes the first of several that are best.
    best = int(points.argmax())
    won = (c.weight for c in record.comparisons if c.winner == best)
    return _only(record, [best], next(won, 1.0))
  if record.scores is not None:
    return _only(record, [int(np.argmax(record.scores))])
  if record.labels is not None:
    return _only(record, [k for k in range(num) if record.labels[k]])
  return _only(record, [0]) if num == 1 else Dropped('no_preference')


def _only(
  record: PreferenceRecord, kept: list[int], weight: float = 1.0
) -> PreferenceRecord | Dropped:
  """The record as demonstrations of these completions."""
  if not kept:
    return Dropped('undesirable')
  return record._replace(
    completions=tuple(record.completions[k] for k in kept),
    comparisons=tuple(Comparison(i, i, weight) for i in range(len(kept))),
    labels=None,
    scores=None,
    quantiles=None,
  )
