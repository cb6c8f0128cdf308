"""tokens -> rows: the branch layout, from lengths to int32 arrays.

Comes in: the lengths of prompts and completions, then the tokens of the records
whose rows are filled. Goes out: the units of each row, and `types.Rows`.
Chooses neither records nor their order: `pipeline.py` does.

A unit is a trunk and its branches, side by side in one row. A prompt of T
tokens has a trunk of T - 1 slots: all tokens except the last. A completion of n
tokens has a branch of n slots. It starts with a copy of the prompt's last
token, which predicts the completion's first. It ends before the completion's
last token, which predicts nothing. A unit therefore takes T - 1 + n_1 + n_2 +
... slots. A completion token that is not trained has its slot, but no position
predicts it.
"""

import bisect
import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.data.batches import limits
from dpo_jax.types import EncodedRecord, Rows

LAYOUTS = ('shared', 'packed', 'padded')


class Unit(NamedTuple):
  """A trunk and the branches that share it, in one row."""

  prompt: int  # the prompt's place in the batch, from 0
  branches: tuple[int, ...]  # numbers of its completions, from 0
  trunk: int  # slots of the trunk
  lengths: tuple[int, ...]  # slots of each branch

  @property
  def num_slots(self) -> int:
    """Slots that the unit takes in a row."""
    return self.trunk + sum(self.lengths)


def make_units(
  prompt: int,
  prompt_length: int,
  completion_lengths: Sequence[int],
  *,
  row_length: int,
  layout: str,
) -> list[Unit]:
  """Makes units of one prompt and its completions, each of which fits a row.

  'shared' makes one unit; if the branches do not fit one row, it makes several
  and repeats the trunk. 'packed' and 'padded' make one unit per completion. A
  completion of length 0 does not exist.
  """
  trunk = prompt_length - 1
  limits.check_row_length(trunk + max(completion_lengths), row_length)
  present = [(k, n) for k, n in enumerate(completion_lengths) if n]
  branches, lengths = zip(*present)
  shared = Unit(prompt, branches, trunk, lengths)
  if layout != 'shared':
    return _split(shared)
  if shared.num_slots <= row_length:
    return [shared]
  groups: list[list[Unit]] = []
  free: list[tuple[int, int]] = []
  for branch in sorted(_split(shared), key=_by_size):
    # Each group repeats the trunk, so its branches share what that leaves.
    _put(groups, free, branch, sum(branch.lengths), row_length - trunk)
  return [_join(group) for group in groups]


def place(
  units: Sequence[Unit], *, row_length: int, layout: str, most_units: int = 0
) -> list[list[Unit]]:
  """Packs units into few rows; 'padded' gives each unit its own row.

  A 'shared' unit may be split, with its trunk repeated, if that fills gaps and
  saves a row. Rows have at most `most_units` units, if it is not 0. The result
  is a pure function of the arguments.
  """
  if layout == 'padded':
    return [[unit] for unit in units]
  # Best-fit decreasing: large units first, small ones fill the gaps.
  units = sorted(units, key=_by_size)
  rows = _pack(units, row_length, may_split=False)
  slots = sum(unit.num_slots for unit in units)
  # Splitting can save a row only if all slots would fit in one row fewer.
  if layout == 'shared' and (len(rows) - 1) * row_length >= slots:
    gapless = _pack(units, row_length, may_split=True)
    rows = min(rows, [_merge(row) for row in gapless], key=len)
  # Packed anew, rows that are within the limit anyway stay what they were.
  if most_units and max(map(len, rows), default=0) > most_units:
    rows = _pack(units, row_length, may_split=False, most=most_units)
  return rows


def deal(sizes: Sequence[int], hands: int, most: int) -> list[list[int]]:
  """Deals items to `hands` of at most `most` items and nearly equal sums.

  The largest item comes first; each goes to the hand with the least sum that
  is not full.

  Returns:
    The indices of each hand's items.
  """
  dealt: list[list[int]] = [[] for _ in range(hands)]
  heap = [(0, h) for h in range(hands)]  # (sum, hand) of those not full
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
  """Writes the arrays of these rows.

  Args:
    rows: the units of each row; an empty row is padding.
    records: `records[unit.prompt]` for every unit in `rows`.
    row_length: slots per row.
    completions_per_prompt: completion k of prompt i has the completion_id
      `i * completions_per_prompt + k`.

  Returns:
    Rows of int32 [len(rows), row_length].
  """
  shape = (len(rows), row_length)
  out = Rows(*(np.zeros(shape, np.int32) for _ in Rows._fields))
  # 0 is padding in every field but this one, where it is a completion.
  out.completion_id.fill(-1)
  for r, units in enumerate(rows):
    # Views of one row: writing to them fills `out`.
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
  """Chooses the row counts that leave the fewest rows empty.

  A step takes the smallest count that holds its rows. This is a dynamic
  programme over the needs in ascending order: the best cover of the first j
  needs with n + 1 counts is the best cover of the first i < j with n counts,
  and the j-th need as the count for those between.

  Args:
    needs: row count -> number of steps that need exactly this count.
    max_shapes: most counts to choose, at least 1.

  Returns:
    At most max_shapes of the needs, ascending, including the largest.
  """
  # Sums over the first j needs: of steps, and of the rows that they fill.
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


def _fill_unit(
  row: Rows, start: int, unit: Unit, record: EncodedRecord, first_id: int
) -> None:
  """Writes the trunk and the branches of a unit into the arrays of a row."""
  stop = start + unit.trunk
  row.tokens[start:stop] = record.prompt[:-1]
  row.positions[start:stop] = np.arange(unit.trunk)
  for branch, k in enumerate(unit.branches, 1):
    completion = record.completions[k]
    start, stop = stop, stop + len(completion)
    # The branch's first slot repeats the prompt's last token, at its position.
    row.tokens[start] = record.prompt[-1]
    row.tokens[start + 1 : stop] = completion[:-1]
    row.positions[start:stop] = unit.trunk + np.arange(len(completion))
    row.branch[start:stop] = branch
    row.targets[start:stop] = completion
    row.completion_id[start:stop] = first_id + k
    if record.trained is not None:
      untrained = start + np.flatnonzero(~record.trained[k])
      # Read as input, but predicted by no position.
      row.targets[untrained] = 0
      row.completion_id[untrained] = -1


def _pack(
  units: Sequence[Unit], row_length: int, may_split: bool, most: int = 0
) -> list[list[Unit]]:
  """Best-fit decreasing; the units come largest first. See `place`."""
  rows: list[list[Unit]] = []
  free: list[tuple[int, int]] = []
  for unit in units:
    # `free` is in the order of room: the last row has the most.
    full = not free or free[-1][0] < unit.num_slots
    pieces = _split(unit) if full and may_split else []
    if len(pieces) > 1 and _fit_gaps(pieces, free):
      for piece in sorted(pieces, key=_by_size):
        _put(rows, free, piece, piece.num_slots, row_length)
    else:
      _put(rows, free, unit, unit.num_slots, row_length, most)
  return rows


def _put(
  bins: list[list[Unit]],
  free: list[tuple[int, int]],
  unit: Unit,
  size: int,
  capacity: int,
  most: int = 0,
) -> None:
  """Puts a unit into the bin with the least sufficient room, or a new bin.

  `free` holds (room left, bin) of the bins that are not full, sorted. A bin of
  `most` units is full, if that is not 0.
  """
  # -1 is below every bin's number: the first entry with room >= size.
  at = bisect.bisect_left(free, (size, -1))
  if at < len(free):
    room, b = free.pop(at)
  else:
    room, b = capacity, len(bins)
    bins.append([])
  bins[b].append(unit)
  if room > size and len(bins[b]) != most:
    bisect.insort(free, (room - size, b))


def _fit_gaps(pieces: Sequence[Unit], free: list[tuple[int, int]]) -> bool:
  """Whether every piece fits into an open row; places none of them."""
  left = list(free)
  for piece in sorted(pieces, key=_by_size):
    at = bisect.bisect_left(left, (piece.num_slots, -1))
    if at == len(left):
      return False
    room, b = left.pop(at)
    bisect.insort(left, (room - piece.num_slots, b))
  return True


def _split(unit: Unit) -> list[Unit]:
  """One unit per branch, each with its own trunk."""
  return [
    Unit(unit.prompt, (k,), unit.trunk, (n,))
    for k, n in zip(unit.branches, unit.lengths)
  ]


def _merge(row: Sequence[Unit]) -> list[Unit]:
  """Joins the pieces of each prompt that are in the same row."""
  pieces: dict[int, list[Unit]] = {}
  for unit in row:
    pieces.setdefault(unit.prompt, []).append(unit)
  return [_join(group) for group in pieces.values()]


def _join(units: Sequence[Unit]) -> Unit:
  """Joins units with the same trunk; their branches are sorted by number."""
  branches, lengths = zip(
    *sorted(pair for u in units for pair in zip(u.branches, u.lengths))
  )
  return Unit(units[0].prompt, branches, units[0].trunk, lengths)


def _by_size(unit: Unit) -> int:
  """Sort key: the largest unit first. Ties keep their order."""
  return -unit.num_slots
