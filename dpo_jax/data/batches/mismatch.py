"""tokens -> rows: the mismatched answers of a batch, for KTO's baseline.

Comes in: the records of a global batch, as indices into a `LengthTable`. Goes
out: for each record, the record whose first completion is also read after its
prompt, as one more branch; or none. Reads no files.

The rule is a cyclic shift, which uses every answer equally often: a prompt
takes the answer of the next record of the batch that has another prompt and
whose first completion fits. No answer is cut, and no text is longer than
data.max_length. The batch is the global one, whatever its microbatches and
devices. A record without such a neighbour has no mismatched answer; the
baseline is then the mean over the other records. `Plan.summary` counts the
records that have one.
"""

import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.types import EncodedRecord


def choose(
  table: LengthTable, records: np.ndarray, max_length: int
) -> np.ndarray:
  """Returns the records whose first completions are the mismatched answers.

  Args:
    table: of the store.
    records: int [B], indices into the table; -1 = empty place.
    max_length: most tokens of a prompt and its mismatched answer.

  Returns:
    int64 [B], indices into the table; -1 = none.
  """
  chosen = np.full(len(records), -1, np.int64)
  places = np.flatnonzero(records >= 0)
  present = records[places]
  prompts, lengths = table.prompts[present], table.prompt_lengths[present]
  answers = table.completion_lengths[table.offsets[present]]
  # Nearest neighbours first; a later shift only fills what is still empty.
  for shift in range(1, len(present)):
    fits = lengths + np.roll(answers, -shift) <= max_length
    is_other = prompts != np.roll(prompts, -shift)
    take = (chosen[places] < 0) & fits & is_other
    chosen[places[take]] = np.roll(present, -shift)[take]
    if (chosen[places] >= 0).all():
      break
  return chosen


def marks(others: np.ndarray, completions_per_prompt: int) -> np.ndarray:
  """Returns 1 for completions that answer another prompt, else 0, int32 [C].

  Args:
    others: int [B], from `choose`.
    completions_per_prompt: C / B; the last of each prompt is the mismatched
      answer.
  """
  marks_BK = np.zeros((len(others), completions_per_prompt), np.int32)
  marks_BK[:, -1] = others >= 0
  return marks_BK.reshape(-1)


def check(table: LengthTable, indices: np.ndarray, batch_size: int) -> None:
  """Refuses training data in which no record can have a mismatched answer.

  Args:
    table: of the store.
    indices: int [N], the records that are used.
    batch_size: prompts per batch.

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
  # `prompts` are hashes: equal ones are one prompt.
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
  """Returns the record with an answer of another as its completion `place`.

  Args:
    record: whose prompt stays.
    other: its first completion is taken; None = the record stays as it is.
    place: at least the number of the record's completions; the places between
      are empty completions.
  """
  if other is None:
    return record
  # The answer is the last completion, whatever number the record has.
  empty = np.zeros(0, np.int32)
  missing = (empty,) * (place - len(record.completions))
  answers = (*record.completions, *missing, other.completions[0])
  # A mask is needed for all completions as soon as one has a mask.
  trained = None
  if record.trained or other.trained:
    trained = (*masks(record), *(empty.astype(bool) for _ in missing))
    trained += masks(other)[:1]
  return record._replace(completions=answers, trained=trained)


def masks(record: EncodedRecord) -> tuple[np.ndarray, ...]:
  """Returns the trained tokens of each completion, bool [n_k], never None."""
  if record.trained is not None:
    return record.trained
  return tuple(np.ones(len(ids), bool) for ids in record.completions)
