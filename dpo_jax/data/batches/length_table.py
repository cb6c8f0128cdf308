"""Everything about encoded records but their tokens, as one table.

Comes in: encoded records. Goes out: a `LengthTable` of numpy arrays, small
enough to stay in memory, from which batches are planned. Holds no tokens and
touches no disk: `storage/token_store.py` keeps both.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.storage import files
from dpo_jax.types import Comparison, EncodedRecord


class LengthTable(NamedTuple):
  """Everything about N encoded records except their tokens, numpy arrays.

  Record i owns `offsets[i]` to `offsets[i + 1]` of the arrays that are flat
  over completions, and likewise with those that are flat over comparisons.
  """

  prompt_lengths: np.ndarray  # int32 [N], tokens
  completion_lengths: np.ndarray  # int32, flat over completions, tokens
  num_trained: np.ndarray  # int32, flat over completions: tokens predicted
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
  prompts: np.ndarray  # bytes 'S32' [N]: hex of sha256(prompt tokens)


def make_table(records: Iterable[EncodedRecord]) -> LengthTable:
  """The table of records, in one pass; a list of records is then a store."""
  prompt_lengths, completion_lengths, uids, prompts = [], [], [], []
  num_completions, num_comparisons, num_trained = [], [], []
  comparisons: list[Comparison] = []
  labels: list[int] = []
  scores: list[float] = []
  for record in records:
    count = len(record.completions)
    prompt_lengths.append(len(record.prompt))
    completion_lengths.extend(map(len, record.completions))
    num_trained.extend(
      map(len, record.completions)
      if record.trained is None
      else map(np.count_nonzero, record.trained)
    )
    num_completions.append(count)
    num_comparisons.append(len(record.comparisons))
    comparisons.extend(record.comparisons)
    labels.extend(record.labels or [-1] * count)
    scores.extend(record.scores or [math.nan] * count)
    uids.append(record.uid.encode())
    prompts.append(_hash(record.prompt))
  winner, loser, weight, margin = zip(*comparisons) if comparisons else [()] * 4
  return LengthTable(
    prompt_lengths=np.array(prompt_lengths, np.int32),
    completion_lengths=np.array(completion_lengths, np.int32),
    num_trained=np.array(num_trained, np.int32),
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
    prompts=np.array(prompts, 'S32'),
  )


def columns(table: LengthTable, indices: np.ndarray) -> frozenset[str]:
  """What is known of these records, in the words of loss_rules.check_data.

  Args:
    table: of the store.
    indices: int [N], the records that are used.

  Returns:
    'comparisons', 'labels' and 'margin' where any record has one (a margin
    other than 0), 'lists' where any has two completions or more, 'scores'
    where every completion has one: 0 would be read in place of the others.
  """
  used, mine = _used(table, indices)
  margins = table.margin[np.repeat(used, table.num_comparisons)]
  found = {
    'comparisons': len(margins) > 0,
    'labels': (table.labels[mine] >= 0).any(),
    'scores': not np.isnan(table.scores[mine]).any(),
    'margin': margins.any(),
    'lists': (np.diff(table.offsets)[used] > 1).any(),
  }
  return frozenset(name for name, there in found.items() if there)


def longest_text(table: LengthTable, indices: np.ndarray) -> int:
  """Tokens of the longest prompt with one completion, of these records."""
  counts = np.diff(table.offsets)
  text = np.repeat(table.prompt_lengths, counts) + table.completion_lengths
  return int(text[_used(table, indices)[1]].max())


def _used(
  table: LengthTable, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Masks of these records [N] and, flat, of their completions."""
  used = np.zeros(len(table.prompt_lengths), bool)
  used[indices] = True
  return used, np.repeat(used, np.diff(table.offsets))


def _hash(prompt: np.ndarray) -> bytes:
  """The first 32 hex digits of sha256 over the tokens as int32."""
  tokens = np.ascontiguousarray(prompt, '<i4')
  return files.bytes_digest([tokens])[:32].encode()


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
  """Where each of the counted groups starts, and where the last ends."""
  return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
