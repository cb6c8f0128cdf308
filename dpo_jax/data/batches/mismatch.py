"""tokens -> rows: the mismatched answers of KTO's baseline.

Comes in: records as indices into a `LengthTable`. Goes out: for each record,
the completion of another record that is also read after its prompt, as one more
branch; or none. Reads no files.

The rule is a cyclic shift. Each record offers one of its completions, whatever
its label or rank: the baseline is the mean log-ratio of answers of both kinds
(HALOs, train/dataloader.py, draws from both). A prompt takes the offer of the
next record that has another prompt and whose offer fits. No answer is cut, and
no text is longer than data.max_length. A record without such a neighbour has no
mismatched answer, and the baseline is the mean over the other records.
`Plan.summary` counts the records that have one.

In training the records are those of the global batch, whatever its microbatches
and devices, and offers take turns by place and step. In evaluation they are the
held-out set in the order of its uids, so that the baseline depends neither on
the order of the file nor on the batch size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.types import EncodedRecord


class Answers(NamedTuple):
  """The mismatched answer of each record; int64, -1 = none."""

  records: np.ndarray  # index into the table: the record that offers it
  completions: (
    np.ndarray
  )  # index into the arrays that are flat over completions


def of_batch(
  table: LengthTable, records: np.ndarray, step: int, max_length: int
) -> Answers:
  """Returns the mismatched answers of a training batch.

  The record in place i offers its completion (i + step) mod K: in a batch of
  pairs, half of the offers are chosen answers.

  Args:
    table: of the store.
    records: int [B], indices into the table; -1 = empty place.
    step: of the batch, from 0.
    max_length: most tokens of a prompt and its mismatched answer.

  Returns:
    Answers [B].
  """
  places = np.flatnonzero(records >= 0)
  answers = _shift(table, records[places], places + step, max_length)
  batch = Answers(*(np.full(len(records), -1, np.int64) for _ in answers))
  for field, values in zip(batch, answers):
    field[places] = values
  return batch


def of_set(table: LengthTable, indices: np.ndarray, max_length: int) -> Answers:
  """Returns the mismatched answers of a held-out set.

  The record with the n-th uid offers its completion n mod K. A function of the
  set alone: equal records offer the same completion.

  Args:
    table: of the store.
    indices: int [N], indices into the table, in any order.
    max_length: most tokens of a prompt and its mismatched answer.

  Returns:
    Answers [N], in the order of `indices`.
  """
  _, ranks = np.unique(table.uids[indices], return_inverse=True)
  order = np.argsort(ranks, kind='stable')
  answers = _shift(table, indices[order], ranks[order], max_length)
  back = np.argsort(order)
  return Answers(*(field[back] for field in answers))


def part(answers: Answers, first: int, size: int) -> Answers:
  """Returns `size` of the answers from `first` on; -1 beyond the last."""
  parts = [field[first : first + size] for field in answers]
  missing = (0, size - len(parts[0]))
  return Answers(*(np.pad(own, missing, constant_values=-1) for own in parts))


def marks(others: np.ndarray, completions_per_prompt: int) -> np.ndarray:
  """Returns 1 for completions that answer another prompt, else 0, int32 [C].

  Args:
    others: int [B], the records of `Answers`.
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


def read(
  own: dict[int, int],
  answers: Answers | None,
  store: Any,
  offsets: Sequence[int] | np.ndarray,
  last: int,
) -> dict[int, EncodedRecord]:
  """Returns the records of some places, with their mismatched answers.

  Args:
    own: place -> index in the store.
    answers: of all places; None = there are none.
    store: is asked once for all records, if it has `read_all`.
    offsets: of the table, [N + 1].
    last: the number of a mismatched answer among a record's completions.
  """
  others = {}
  if answers is not None:
    both = {i: tuple(int(field[i]) for field in answers) for i in own}
    others = {i: pair for i, pair in both.items() if pair[0] >= 0}
  wanted = sorted({*own.values(), *(other for other, _ in others.values())})
  read_all = getattr(store, 'read_all', lambda all_: [store[i] for i in all_])
  records = dict(zip(wanted, read_all(wanted), strict=True))
  done = {i: records[index] for i, index in own.items()}
  for i, (other, answer) in others.items():
    k = answer - int(offsets[other])
    done[i] = with_answer(done[i], records[other], k, last)
  return done


def with_answer(
  record: EncodedRecord, other: EncodedRecord, k: int, place: int
) -> EncodedRecord:
  """Returns the record with an answer of another as its completion `place`.

  Args:
    record: whose prompt stays.
    other: whose completion `k` is taken.
    k: index of a completion of `other`.
    place: at least the number of the record's completions; the places between
      are empty completions.
  """
  # The answer is the last completion, whatever number the record has.
  empty = np.zeros(0, np.int32)
  missing = (empty,) * (place - len(record.completions))
  answers = (*record.completions, *missing, other.completions[k])
  # A mask is needed for all completions as soon as one has a mask.
  trained = None
  if record.trained or other.trained:
    trained = (*masks(record), *(empty.astype(bool) for _ in missing))
    trained += masks(other)[k : k + 1]
  return record._replace(completions=answers, trained=trained)


def masks(record: EncodedRecord) -> tuple[np.ndarray, ...]:
  """Returns the trained tokens of each completion, bool [n_k], never None."""
  if record.trained is not None:
    return record.trained
  return tuple(np.ones(len(ids), bool) for ids in record.completions)


def _shift(
  table: LengthTable, records: np.ndarray, turns: np.ndarray, max_length: int
) -> Answers:
  """The answers of records in a circle.

  Args:
    table: of the store.
    records: int [N], indices into the table.
    turns: int [N]; record i offers its completion turns[i] mod K.
    max_length: most tokens of a prompt and its mismatched answer.
  """
  prompts, lengths = table.prompts[records], table.prompt_lengths[records]
  counts = table.offsets[records + 1] - table.offsets[records]
  offers = table.offsets[records] + turns % counts
  sizes = table.completion_lengths[offers]
  chosen = np.full(len(records), -1, np.int64)
  # Nearest neighbours first; a later shift only fills what is still empty.
  left = np.arange(len(records))
  for shift in range(1, len(records)):
    other = (left + shift) % len(records)
    fits = lengths[left] + sizes[other] <= max_length
    take = fits & (prompts[left] != prompts[other])
    chosen[left[take]] = other[take]
    left = left[~take]
    if not len(left):
      break
  return Answers(
    records=np.where(chosen >= 0, records[chosen], -1),
    completions=np.where(chosen >= 0, offers[chosen], -1),
  )
