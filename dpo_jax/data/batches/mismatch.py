"""tokens -> rows: whose answer a prompt is scored with for KTO's baseline.

Comes in: the records of a global batch, as indices into a `LengthTable`. Goes
out: for each the record whose first completion is read after its prompt, as
one more branch, or none. Reads no tokens but those it is given.

The rule is a cyclic shift, so that every answer is as likely a baseline: the
next record of the batch that has another prompt, and whose first completion
fits: no answer is cut, and no text is longer than data.max_length. It is the
global batch's, whatever its microbatches and devices. A record without such
a neighbour has no mismatched completion, and the baseline is the mean of the
others'; `Plan.summary` counts them.
"""

import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.types import EncodedRecord


def choose(
  table: LengthTable, records: np.ndarray, max_length: int
) -> np.ndarray:
  """The record that each record of a batch takes its mismatched answer from.

  Args:
    table: of the store.
    records: int [B], indices into the table; -1 = empty place.
    max_length: most tokens of a prompt and its mismatched completion.

  Returns:
    int64 [B], indices into the table; -1 = none.
  """
  chosen = np.full(len(records), -1, np.int64)
  places = np.flatnonzero(records >= 0)
  mine = records[places]
  prompts, lengths = table.prompts[mine], table.prompt_lengths[mine]
  answers = table.completion_lengths[table.offsets[mine]]
  for shift in range(1, len(mine)):
    fits = lengths + np.roll(answers, -shift) <= max_length
    other = prompts != np.roll(prompts, -shift)
    take = (chosen[places] < 0) & fits & other
    chosen[places[take]] = np.roll(mine, -shift)[take]
    if (chosen[places] >= 0).all():
      break
  return chosen


def marks(others: np.ndarray, completions_per_prompt: int) -> np.ndarray:
  """1 at the completions that answer another prompt, int32 [C].

  Args:
    others: int [B], what `choose` gave.
    completions_per_prompt: C / B; the last of each prompt is the mismatched.
  """
  marks_BK = np.zeros((len(others), completions_per_prompt), np.int32)
  marks_BK[:, -1] = others >= 0
  return marks_BK.reshape(-1)


def check(table: LengthTable, indices: np.ndarray, batch_size: int) -> None:
  """Refuses training data in which no record can have a mismatched answer.

  Args:
    table: of the store.
    indices: int [N], the records that are used.
    batch_size: prompts a batch.

  Raises:
    InputError: batches of one prompt, or data of one prompt.
  """
  if batch_size < 2:
    raise errors.refuse(
      'config.train.batch_size',
      f'{batch_size} is not allowed with a loss that scores every prompt with '
      "another prompt's answer",
      '2 or more',
    )
  if len(set(table.prompts[indices])) < 2:
    raise errors.refuse(
      'config.data.train',
      f'all {len(indices)} records have the same prompt, and the loss scores '
      "every prompt with another prompt's answer",
      'data with more prompts, or the loss bco',
    )


def with_answer(
  record: EncodedRecord, other: EncodedRecord | None, place: int
) -> EncodedRecord:
  """The record with another's first completion as its completion `place`."""
  if other is None:
    return record
  empty = np.zeros(0, np.int32)
  missing = (empty,) * (place - len(record.completions))
  answers = (*record.completions, *missing, other.completions[0])
  trained = None
  if record.trained or other.trained:
    trained = (*masks(record), *(empty.astype(bool) for _ in missing))
    trained += masks(other)[:1]
  return record._replace(completions=answers, trained=trained)


def masks(record: EncodedRecord) -> tuple[np.ndarray, ...]:
  """Which tokens of each completion are trained, bool [n_k], spelt out."""
  whole = (np.ones(len(ids), bool) for ids in record.completions)
  return tuple(whole) if record.trained is None else record.trained
