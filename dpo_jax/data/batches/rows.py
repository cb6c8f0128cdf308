"""tokens -> rows: the branch layout, from lengths to int32 arrays.

Comes in: the lengths of prompts and completions, then the tokens of those
records whose rows are wanted. Goes out: which unit lies in which row, and
`types.Rows`. Chooses neither records nor their order: `pipeline.py` does.

A unit is a trunk and its branches, side by side in one row. A prompt of T
tokens has a trunk of T - 1 slots, all but its last token. A branch of n tokens
has n slots: it starts with a copy of the prompt's last token, which predicts
the completion's first, and leaves out the completion's last token, which
predicts nothing. So a unit takes T - 1 + n_1 + n_2 + ... slots. A token of a
completion that is not trained takes its slot, and no position predicts it.
"""

import bisect
import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.types import EncodedRecord, Rows

LAYOUTS = ('shared', 'packed', 'padded')


class Unit(NamedTuple):
  """A trunk and the branches that share it, in one row."""

  prompt: int  # the prompt's place in the batch, from 0
  branches: tuple[int, ...]  # which of its completions, from 0
  trunk: int  # slots of the trunk
  lengths: tuple[int, ...]  # slots of each branch

  @property
  def num_slots(self) -> int:
    """How much of a row the unit takes."""
    return self.trunk + sum(self.lengths)


def make_units(
  prompt: int,
  prompt_length: int,
  completion_lengths: Sequence[int],
  *,
  row_length: int,
  layout: str,
) -> list[Unit]:
  """Cuts one prompt and its completions into units that each fit a row.

  'shared' makes one unit, or as few as it can with the trunk repeated where
  the branches do not fit one row; 'packed' and 'padded' make one a completion.
  A completion of length 0 is not there.
  """
  trunk = prompt_length - 1
  check_row_length(trunk + max(completion_lengths), row_length)
  there = [(k, n) for k, n in enumerate(completion_lengths) if n]
  branches, lengths = zip(*there)
  whole = Unit(prompt, branches, trunk, lengths)
  if layout != 'shared':
    return _split(whole)
  if whole.num_slots <= row_length:
    return [whole]
  groups: list[list[Unit]] = []
  free: list[tuple[int, int]] = []
  for branch in sorted(_split(whole), key=_by_size):
    # Branches alone share the room that one trunk leaves.
    _put(groups, free, branch, sum(branch.lengths), row_length - trunk)
  return [_join(group) for group in groups]


def place(
  units: Sequence[Unit], *, row_length: int, layout: str
) -> list[list[Unit]]:
  """Packs units into few rows; 'padded' gives each a row of its own.

  A 'shared' unit may be cut in two or more, its trunk repeated, where that
  fills gaps and saves a row. The result depends on the arguments alone.
  """
  if layout == 'padded':
    return [[unit] for unit in units]
  units = sorted(units, key=_by_size)
  rows = _pack(units, row_length, may_split=False)
  slots = sum(unit.num_slots for unit in units)
  if layout == 'shared' and (len(rows) - 1) * row_length >= slots:
    gapless = _pack(units, row_length, may_split=True)
    rows = min(rows, [_merge(row) for row in gapless], key=len)
  return rows


def deal(sizes: Sequence[int], hands: int, most: int) -> list[list[int]]:
  """Deals items to `hands` of at most `most` items, of nearly equal sums.

  Largest first, each to the hand that holds least and is not full.
  """
  dealt: list[list[int]] = [[] for _ in range(hands)]
  heap = [(0, h) for h in range(hands)]
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    total, h = heapq.heappop(heap)
    dealt[h].append(i)
    if len(dealt[h]) < most:
      heapq.heappush(heap, (total + sizes[i], h))
  return dealt


def fill(
  rows: Sequence[Sequence[Unit]],
  records: Mapping[int, EncodedRecord] | Sequence[EncodedRecord],
  *,
  row_length: int,
  completions_per_prompt: int,
) -> Rows:
  """Writes the arrays of these rows, and of no others.

  Args:
    rows: the units of each row; an empty row is padding.
    records: `records[unit.prompt]` for every unit in `rows`.
    row_length: slots in a row.
    completions_per_prompt: completion k of prompt i has the completion_id
      `i * completions_per_prompt + k`.

  Returns:
    Rows of int32 [len(rows), row_length].
  """
  shape = (len(rows), row_length)
  out = Rows(*(np.zeros(shape, np.int32) for _ in Rows._fields))
  out.completion_id.fill(-1)
  for r, units in enumerate(rows):
    row = Rows(*(array_RL[r] for array_RL in out))
    start = 0
    for prompt_id, unit in enumerate(units, 1):
      stop = start + unit.num_slots
      row.prompt_id[start:stop] = prompt_id
      first_id = unit.prompt * completions_per_prompt
      _fill_unit(row, start, unit, records[unit.prompt], first_id)
      start = stop
  return out


def choose_row_counts(
  needs: Mapping[int, int], max_shapes: int
) -> tuple[int, ...]:
  """Row counts, ascending, that leave the fewest rows empty.

  A step takes the smallest count that it fits in. Dynamic programme over the
  needs in ascending order: the best cover of the first j with n + 1 counts is
  the best of the first i < j with n, and need j for all between.

  Args:
    needs: row count -> how many steps need just that many.
    max_shapes: how many to choose at most, from 1.

  Returns:
    At most max_shapes of the needs, the largest among them.
  """
  sizes = sorted(needs)
  steps = list(itertools.accumulate((needs[s] for s in sizes), initial=0))
  full = list(itertools.accumulate((s * needs[s] for s in sizes), initial=0))
  best = {0: (0, ())}  # needs covered -> (empty rows, counts chosen)
  for _ in range(min(max_shapes, len(sizes))):
    best = {
      j: min(
        (
          empty + size * (steps[j] - steps[i]) - (full[j] - full[i]),
          (*chosen, size),
        )
        for i, (empty, chosen) in best.items()
        if i < j
      )
      for j, size in enumerate(sizes, 1)
      if j > min(best)
    }
  return best[len(sizes)][1]


def check_row_length(longest: int, row_length: int, what: str = '') -> None:
  """Refuses rows that cannot hold the longest prompt + one completion.

  Args:
    longest: its slots.
    row_length: slots of a row.
    what: the name of what is that long, for the message.
  """
  if longest > row_length:
    what = what or f'a prompt and one completion of {longest}'
    raise errors.refuse(
      'config.data.row_length',
      f'{row_length} slots cannot hold {what}',
      f'use 0 (= data.max_length) or at least {longest}, or a data.max_length '
      f'of at most {row_length}',
    )


def check_microbatches(batch_size: int, microbatches: int) -> None:
  """Refuses microbatches that would not hold equally many prompts."""
  if microbatches < 1 or batch_size % microbatches:
    up_to_root = range(1, math.isqrt(batch_size) + 1)
    small = [n for n in up_to_root if batch_size % n == 0]
    divisors = sorted({*small, *(batch_size // n for n in small)})
    raise errors.refuse(
      'config.train.microbatches',
      f'{microbatches} do not divide train.batch_size={batch_size}',
      f'use one of {", ".join(map(str, divisors))}',
    )


def _fill_unit(
  row: Rows, start: int, unit: Unit, record: EncodedRecord, first_id: int
) -> None:
  """Writes one unit's trunk and branches into arrays of one row."""
  stop = start + unit.trunk
  row.tokens[start:stop] = record.prompt[:-1]
  row.positions[start:stop] = np.arange(unit.trunk)
  for branch, k in enumerate(unit.branches, 1):
    completion = record.completions[k]
    start, stop = stop, stop + len(completion)
    row.tokens[start] = record.prompt[-1]
    row.tokens[start + 1 : stop] = completion[:-1]
    row.positions[start:stop] = unit.trunk + np.arange(len(completion))
    row.branch[start:stop] = branch
    row.targets[start:stop] = completion
    row.completion_id[start:stop] = first_id + k
    if record.trained is not None:
      untrained = start + np.flatnonzero(~record.trained[k])
      row.targets[untrained] = 0
      row.completion_id[untrained] = -1


def _pack(
  units: Sequence[Unit], row_length: int, may_split: bool
) -> list[list[Unit]]:
  """Best-fit decreasing over units that come largest first."""
  rows: list[list[Unit]] = []
  free: list[tuple[int, int]] = []
  for unit in units:
    full = not free or free[-1][0] < unit.num_slots
    pieces = _split(unit) if full and may_split else []
    if len(pieces) > 1 and _fit_gaps(pieces, free):
      for piece in sorted(pieces, key=_by_size):
        _put(rows, free, piece, piece.num_slots, row_length)
    else:
      _put(rows, free, unit, unit.num_slots, row_length)
  return rows


def _put(
  bins: list[list[Unit]],
  free: list[tuple[int, int]],
  unit: Unit,
  size: int,
  capacity: int,
) -> None:
  """Puts a unit where the least room stays, or into a new bin.

  `free` holds (room left, bin) of the bins that are not full, in that order.
  """
  at = bisect.bisect_left(free, (size, -1))
  if at < len(free):
    room, b = free.pop(at)
  else:
    room, b = capacity, len(bins)
    bins.append([])
  bins[b].append(unit)
  if room > size:
    bisect.insort(free, (room - size, b))


def _fit_gaps(pieces: Sequence[Unit], free: list[tuple[int, int]]) -> bool:
  """Whether every piece fits an open row, without trying to put it there."""
  left = list(free)
  for piece in sorted(pieces, key=_by_size):
    at = bisect.bisect_left(left, (piece.num_slots, -1))
    if at == len(left):
      return False
    room, b = left.pop(at)
    bisect.insort(left, (room - piece.num_slots, b))
  return True


def _split(unit: Unit) -> list[Unit]:
  """A unit for each branch, every one with its own trunk."""
  return [
    Unit(unit.prompt, (k,), unit.trunk, (n,))
    for k, n in zip(unit.branches, unit.lengths)
  ]


def _merge(row: Sequence[Unit]) -> list[Unit]:
  """Joins pieces of one prompt that came to lie in the same row."""
  pieces: dict[int, list[Unit]] = {}
  for unit in row:
    pieces.setdefault(unit.prompt, []).append(unit)
  return [_join(group) for group in pieces.values()]


def _join(units: Sequence[Unit]) -> Unit:
  """One unit of the branches of several with the same trunk, by branch."""
  branches, lengths = zip(
    *sorted(pair for u in units for pair in zip(u.branches, u.lengths))
  )
  return Unit(units[0].prompt, branches, units[0].trunk, lengths)


def _by_size(unit: Unit) -> int:
  """Sorts the largest unit first; sorted() is stable, so ties keep order."""
  return -unit.num_slots
