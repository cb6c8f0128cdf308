"""Encoded records <-> bytes: the form in which a token store keeps them.

Comes in: encoded records. Goes out: their tokens and masks as bytes, and a
table of everything else; and the way back. Writes no files.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.data.batches import length_table
from dpo_jax.types import Comparison, EncodedRecord


class Packed(NamedTuple):
  """Some records as a store keeps them; quickly handed to another process."""

  table: length_table.LengthTable  # of these records
  data: list[bytes]  # of each record: its tokens, then its mask if it has one
  sizes: list[bytes]  # of each record: how its tokens are divided


def pack(records: Sequence[EncodedRecord]) -> Packed:
  """Returns the records as a store keeps them."""
  data, sizes = [], []
  for record in records:
    pieces = [record.prompt, *record.completions]
    tokens = np.concatenate(pieces).astype('<i4').tobytes()
    # A negative count marks a record with a mask. Records without one have
    # the digest of format 1, which names the reference scores on disk.
    count = len(pieces) if record.trained is None else -len(pieces)
    if record.trained is not None:
      tokens += np.concatenate(record.trained).astype('?').tobytes()
    data.append(tokens)
    sizes.append(np.array([count, *map(len, pieces)], '<i8').tobytes())
  return Packed(length_table.make_table(records), data, sizes)


def take(packed: Packed, is_kept: Sequence[bool]) -> Packed:
  """Returns the records that are kept."""
  if all(is_kept):
    return packed
  return Packed(
    length_table.take(packed.table, np.flatnonzero(is_kept)),
    list(itertools.compress(packed.data, is_kept)),
    list(itertools.compress(packed.sizes, is_kept)),
  )


def unpack(
  table: length_table.LengthTable, i: int, data: bytes
) -> EncodedRecord:
  """Returns record i of a table, of its bytes."""
  own = slice(table.offsets[i], table.offsets[i + 1])
  starts = np.cumsum([table.prompt_lengths[i], *table.completion_lengths[own]])
  tokens = np.frombuffer(data, '<i4', count=starts[-1])
  prompt, *completions = np.split(tokens, starts[:-1])
  # Without a mask, every token is trained.
  mask = np.frombuffer(data, '?', offset=tokens.nbytes)
  labels = table.labels[own]
  scores, quantiles = table.scores[own], table.quantiles[own]
  return EncodedRecord(
    prompt=prompt,
    completions=tuple(completions),
    comparisons=_comparisons(table, i),
    labels=None if labels[0] < 0 else tuple(map(bool, labels)),
    scores=None if np.isnan(scores[0]) else tuple(scores.tolist()),
    uid=table.uids[i].decode(),
    trained=tuple(np.split(mask, starts[1:-1] - starts[0]))
    if len(mask)
    else None,
    quantiles=None if np.isnan(quantiles[0]) else tuple(quantiles.tolist()),
  )


def _comparisons(table, i: int) -> tuple[Comparison, ...]:
  """Returns the comparisons of record i."""
  own = slice(table.comparison_offsets[i], table.comparison_offsets[i + 1])
  columns = (table.winner, table.loser, table.weight, table.margin)
  return tuple(
    Comparison(*values) for values in zip(*(c[own].tolist() for c in columns))
  )
