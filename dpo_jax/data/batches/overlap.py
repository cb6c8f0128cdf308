"""lengths -> counts: held-out records that are trained on too.

Comes in: two sets of encoded records with their length tables. Goes out: how
many held-out records, and how many of their prompts, the training data
contains. Removes nothing and touches no disk.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.data.batches import length_table
from dpo_jax.types import EncodedRecord


class Chosen(NamedTuple):
  """Some of a set of records."""

  records: Sequence[EncodedRecord] | Any  # a list, or a store
  table: length_table.LengthTable  # of the records
  indices: np.ndarray  # int64, those that count


def report(train: Chosen, held_out: Chosen) -> tuple[dict[str, int], list[str]]:
  """Returns the counts of `count` by name, and a line per count above 0."""
  records, prompts = count(train, held_out)
  lines = []
  if records:
    lines.append(
      f'held out: {records} of {len(held_out.indices)} records are training '
      'records, so their numbers say nothing about unseen data'
    )
  if prompts:
    lines.append(
      f'held out: {prompts} more records have the prompt of a training record'
    )
  return {'trained_on': records, 'trained_prompts': prompts}, lines


def count(train: Chosen, held_out: Chosen) -> tuple[int, int]:
  """Returns how many held-out records are training records.

  Returns:
    (held-out records whose prompt and completions are those of a training
    record, in any order, whatever their weights or scores; further held-out
    records that share their prompt with one).
  """
  # Tokens are read only of records whose prompt is on both sides.
  shared = np.intersect1d(
    train.table.prompts[train.indices],
    held_out.table.prompts[held_out.indices],
  )
  known = set(_contents(train, shared))
  among = [content in known for content in _contents(held_out, shared)]
  return sum(among), len(among) - sum(among)


def _contents(chosen: Chosen, prompts: np.ndarray):
  """The tokens of each record that has one of these prompts, hashable."""
  own = chosen.table.prompts[chosen.indices]
  for index in chosen.indices[np.isin(own, prompts)]:
    record = chosen.records[int(index)]
    sides = sorted(ids.tobytes() for ids in record.completions)
    yield (record.prompt.tobytes(), *sides)
