"""Everything about encoded records but their tokens, as one table.

Comes in: encoded records. Goes out: a `LengthTable` of numpy arrays, small
enough to stay in memory, from which batches are planned. Holds no tokens and
touches no disk: `storage/token_store.py` keeps both.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.types import Comparison, EncodedRecord


class LengthTable(NamedTuple):
  """Everything about N encoded records except their tokens, numpy arrays.

  Record i owns `offsets[i]` to `offsets[i + 1]` of the arrays that are flat
  over completions, and likewise with those that are flat over comparisons.
  """

  prompt_lengths: np.ndarray  # int32 [N], tokens
  completion_lengths: np.ndarray  # int32, flat over completions, tokens
  offsets: np.ndarray  # int64 [N + 1]
  num_comparisons: np.ndarray  # int32 [N]
  comparison_offsets: np.ndarray  # int64 [N + 1]
  winner: np.ndarray  # int32, flat over comparisons: index in the record
  loser: np.ndarray  # int32, flat over comparisons
  weight: np.ndarray  # float64, flat over comparisons
  margin: np.ndarray  # float64, flat over comparisons
  labels: np.ndarray  # int8, flat over completions; -1 = none
  scores: np.ndarray  # float64, flat over completions; NaN = none
  uids: np.ndarray  # bytes 'S16' [N]


def make_table(records: Iterable[EncodedRecord]) -> LengthTable:
  """The table of records, in one pass; a list of records is then a store."""
  prompt_lengths, completion_lengths, uids = [], [], []
  num_completions, num_comparisons = [], []
  comparisons: list[Comparison] = []
  labels: list[int] = []
  scores: list[float] = []
  for record in records:
    count = len(record.completions)
    prompt_lengths.append(len(record.prompt))
    completion_lengths.extend(map(len, record.completions))
    num_completions.append(count)
    num_comparisons.append(len(record.comparisons))
    comparisons.extend(record.comparisons)
    labels.extend(record.labels or [-1] * count)
    scores.extend(record.scores or [math.nan] * count)
    uids.append(record.uid.encode())
  winner, loser, weight, margin = zip(*comparisons) if comparisons else [()] * 4
  return LengthTable(
    prompt_lengths=np.array(prompt_lengths, np.int32),
    completion_lengths=np.array(completion_lengths, np.int32),
    offsets=_starts(num_completions),
    num_comparisons=np.array(num_comparisons, np.int32),
    comparison_offsets=_starts(num_comparisons),
    winner=np.array(winner, np.int32),
    loser=np.array(loser, np.int32),
    weight=np.array(weight, np.float64),
    margin=np.array(margin, np.float64),
    labels=np.array(labels, np.int8),
    scores=np.array(scores, np.float64),
    uids=np.array(uids, 'S16'),
  )


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
  """Where each of the counted groups starts, and where the last ends."""
  return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
