"""lengths -> batch without rows: comparisons, labels, scores, prompt indices.

Comes in: a `LengthTable` and the records of a batch. Goes out: a `types.Batch`
of numpy arrays whose rows are None. Reads no tokens and chooses no records:
pipeline.py does both.

Completion k of the prompt in place i has the number `i * most_completions + k`.
Places of the batch that are empty, and completions that a record does not
have, are padding.
"""

import numpy as np

from dpo_jax.data.batches import mismatch
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.types import Batch, Comparisons


def flat_index(
  offsets: np.ndarray, records: np.ndarray, most: int
) -> np.ndarray:
  """Returns the flat indices of what each record owns, int64 [B * most].

  Args:
    offsets: int64 [N + 1], where each record's entries begin in a flat array.
    records: int64 [B], indices into the table; -1 = empty place.
    most: entries per place; those that a record does not have are -1.
  """
  # An empty place reads the last offset, and is masked below.
  first = offsets[records][:, None]
  index = first + np.arange(most)
  is_owned = (index < offsets[records + 1][:, None]) & (records >= 0)[:, None]
  return np.where(is_owned, index, -1).reshape(-1)


def make_batch(
  table: LengthTable,
  records: np.ndarray,
  others: np.ndarray | None,
  *,
  most_completions: int,
  most_comparisons: int,
  list_weights: np.ndarray | None = None,
) -> Batch:
  """Returns the batch of these records, without its rows.

  Args:
    table: of the store.
    records: int64 [B], indices into the table; -1 = empty place.
    others: int64 [B], the record of each place's mismatched answer; -1 = none.
      None if the plan has no mismatched answers.
    most_completions: completions per place, a mismatched answer included.
    most_comparisons: comparisons per place.
    list_weights: float [N], of each record's list of completions, see
      prompt_weights.py; None leaves them out of the batch.
  """
  c = flat_index(table.offsets, records, most_completions)
  p = flat_index(table.comparison_offsets, records, most_comparisons)
  is_present, marks = c >= 0, None
  if others is not None:
    marks = mismatch.marks(others, most_completions)
    is_present = is_present | (marks == 1)
  # The number in the batch of the first completion of each comparison's record.
  first = np.arange(len(records) * most_comparisons) // most_comparisons
  first = np.where(p >= 0, first * most_completions, 0).astype(np.int32)
  return Batch(
    rows=None,
    comparisons=Comparisons(
      winner=first + _pick(table.winner, p, 0, np.int32),
      loser=first + _pick(table.loser, p, 0, np.int32),
      weight=_pick(table.weight, p, 0, np.float32),
      margin=_pick(table.margin, p, 0, np.float32),
    ),
    labels=_pick(table.labels, c, -1, np.int32),
    scores=np.nan_to_num(_pick(table.scores, c, 0, np.float32)),
    prompt_index=np.where(
      is_present, np.arange(len(c)) // most_completions, -1
    ).astype(np.int32),
    mismatched=marks,
    list_weight=list_weights
    if list_weights is None
    else _pick(
      np.repeat(list_weights, np.diff(table.offsets)), c, 0, np.float32
    ),
    quantiles=None
    if np.isnan(table.quantiles).all()
    else np.nan_to_num(_pick(table.quantiles, c, 0, np.float32)),
  )


def _pick(
  values: np.ndarray, index: np.ndarray, empty: float, dtype: type
) -> np.ndarray:
  """values[index], and `empty` where the index is -1."""
  # Index -1 reads the last entry, which is `empty`.
  padded = np.append(values, np.array(empty, values.dtype))
  return padded[index].astype(dtype)
