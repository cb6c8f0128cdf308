"""records -> lengths: encoded records without their tokens, as one table.

Comes in: encoded records. Goes out: a `LengthTable` of numpy arrays, from which
batches are planned; it is small enough to stay in memory. Holds no tokens and
touches no disk: `storage/token_store.py` keeps tokens and table.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.storage import files
from dpo_jax.types import Comparison, EncodedRecord


class LengthTable(NamedTuple):
  """Everything about N encoded records except their tokens, numpy arrays.

  Record i owns the entries `offsets[i]` to `offsets[i + 1]` of the arrays that
  are flat over completions, and `comparison_offsets[i]` to
  `comparison_offsets[i + 1]` of those that are flat over comparisons.
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
  quantiles: np.ndarray  # float64, flat over completions; NaN = none


def make_table(records: Iterable[EncodedRecord]) -> LengthTable:
  """Makes the table in one pass. A list of the records can serve as a store."""
  prompt_lengths, completion_lengths, uids, prompts = [], [], [], []
  num_completions, num_comparisons, num_trained = [], [], []
  comparisons: list[Comparison] = []
  labels: list[int] = []
  scores: list[float] = []
  quantiles: list[float] = []
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
    # Sentinels keep the flat arrays aligned with the completions.
    labels.extend(record.labels or [-1] * count)
    scores.extend(record.scores or [math.nan] * count)
    quantiles.extend(record.quantiles or [math.nan] * count)
    uids.append(record.uid.encode())
    prompts.append(prompt_id(record.prompt))
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
    quantiles=np.array(quantiles, np.float64),
  )


def take(table: LengthTable, indices: np.ndarray) -> LengthTable:
  """Returns the table of some records, in the order of the table."""
  own = dict(zip(('record', 'completion', 'comparison'), masks(table, indices)))
  return _made(
    {name: part[own[_OWNERS[name]]] for name, part in _flat(table)},
    np.diff(table.offsets)[own['record']],
  )


def join(tables: Sequence[LengthTable]) -> LengthTable:
  """Returns one table of the records of all tables, in order."""
  parts = zip(*(_flat(table) for table in tables))
  return _made(
    {same[0][0]: np.concatenate([part for _, part in same]) for same in parts},
    np.concatenate([np.diff(table.offsets) for table in tables]),
  )


def columns(table: LengthTable, indices: np.ndarray) -> frozenset[str]:
  """Returns which data these records have, as losses.rules.check_data needs it.

  Args:
    table: of the store.
    indices: int [N], the records that are used.

  Returns:
    'comparisons', 'labels', 'margin' (other than 0): some record has one.
    'undesirable answers': some record has one by its label, or a loser.
    'lists': some record has two or more completions.
    'scores', 'reference_scores': every completion has a score, or a quantile,
    since a missing one would be read as 0.
  """
  used, completions, comparisons = masks(table, indices)
  margins = table.margin[comparisons]
  has = {
    'comparisons': len(margins) > 0,
    'labels': (table.labels[completions] >= 0).any(),
    'undesirable answers': len(margins) > 0
    or (table.labels[completions] == 0).any(),
    'scores': not np.isnan(table.scores[completions]).any(),
    'reference_scores': not np.isnan(table.quantiles[completions]).any(),
    'margin': margins.any(),
    'lists': (np.diff(table.offsets)[used] > 1).any(),
  }
  return frozenset(name for name, is_present in has.items() if is_present)


def longest_text(table: LengthTable, indices: np.ndarray) -> int:
  """Returns the tokens of the longest prompt + completion of these records."""
  return int(text_lengths(table, indices).max())


def text_lengths(table: LengthTable, indices: np.ndarray) -> np.ndarray:
  """Returns the tokens of each prompt + completion of these records."""
  counts = np.diff(table.offsets)
  text = np.repeat(table.prompt_lengths, counts) + table.completion_lengths
  return text[masks(table, indices)[1]]


def masks(
  table: LengthTable, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns which entries of the table belong to these records, as bool arrays.

  Args:
    table: of the store.
    indices: int [n], the records.

  Returns:
    (records [N]; flat over completions; flat over comparisons).
  """
  used = np.zeros(len(table.prompt_lengths), bool)
  used[indices] = True
  completions = np.repeat(used, np.diff(table.offsets))
  return used, completions, np.repeat(used, table.num_comparisons)


def prompt_id(prompt: np.ndarray) -> bytes:
  """Returns the first 32 hex digits of the sha256 of the tokens as int32."""
  # A fixed byte order: the digest must not depend on the machine.
  tokens = np.ascontiguousarray(prompt, '<i4')
  return files.bytes_digest([tokens])[:32].encode()


# Of each column that is no offset: the things that it has an entry for.
_OWNERS = {
  'prompt_lengths': 'record',
  'completion_lengths': 'completion',
  'num_trained': 'completion',
  'num_comparisons': 'record',
  'winner': 'comparison',
  'loser': 'comparison',
  'weight': 'comparison',
  'margin': 'comparison',
  'labels': 'completion',
  'scores': 'completion',
  'uids': 'record',
  'prompts': 'record',
  'quantiles': 'completion',
}


def _flat(table: LengthTable) -> list[tuple[str, np.ndarray]]:
  """The columns that are no offsets, with their names."""
  return [(name, getattr(table, name)) for name in _OWNERS]


def _made(
  flat: dict[str, np.ndarray], num_completions: np.ndarray
) -> LengthTable:
  """A table of columns and the completions of each record."""
  return LengthTable(
    **flat,
    offsets=_starts(num_completions),
    comparison_offsets=_starts(flat['num_comparisons']),
  )


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
  """The start of each of the counted groups, and the end of the last."""
  return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
