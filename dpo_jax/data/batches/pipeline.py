"""tokens -> rows: the plan of every batch, from (seed, step, lengths) alone.

Comes in: a `LengthTable`, and for `Plan.batch` a store, anything that has
`store[i] -> EncodedRecord`. Goes out: `StepPlan`s and `types.Batch`es of numpy
arrays. Every process computes the same global plan, and reads only the records
of its own rows; resuming needs the step number and nothing else. Knows no
paths, no devices and no model.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches import length_table, mismatch
from dpo_jax.data.batches import rows as rows_lib
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.types import Batch, Comparisons, EncodedRecord, InputError

_SIMULATED_STEPS = 1000  # enough to see the spread of row counts in an epoch


class StepPlan(NamedTuple):
  """One batch before its tokens are read; the same in every process."""

  records: np.ndarray  # int64 [B], index into the store; -1 = empty place
  rows: tuple[list[list[rows_lib.Unit]], ...]  # [M]; without the empty rows
  num_rows: int  # R: rows of each microbatch, the empty ones included
  filled_slots: int  # slots in use, of M * R * L
  # int64 [B]: the record whose first completion is each one's mismatched
  # answer; -1 = none. None where the plan has none at all.
  others: np.ndarray | None = None


def make_plan(
  table: LengthTable,
  *,
  seed: int,
  batch_size: int,
  microbatches: int = 1,
  row_length: int,
  layout: str = 'shared',
  row_multiple: int = 1,
  max_shapes: int = 4,
  shuffle: bool = True,
  indices: Sequence[int] | np.ndarray | None = None,
  mismatched_length: int = 0,
) -> 'Plan':
  """Plans all batches and chooses the row counts that will be compiled.

  Args:
    table: lengths of the records of a store.
    seed: of the order; unused where `shuffle` is False.
    batch_size: B, prompts an update, over all microbatches and processes.
    microbatches: M; each holds B / M prompts with all their completions.
    row_length: L, slots in a row.
    layout: 'shared', 'packed' or 'padded', see `rows.make_units`.
    row_multiple: every row count is a multiple of this (of the device count).
    max_shapes: how many row counts to choose at most.
    shuffle: True: epoch after epoch, each in its own order, without end.
      False: once through in the given order, the last batch partly empty.
    indices: the records to use, in this order; all where None.
    mismatched_length: above 0, every prompt is also read with another one's
      answer, see mismatch.py, of at most this many tokens with the prompt.

  Raises:
    InputError: for values that cannot be planned, naming the config key.
  """
  indices = np.arange(len(table.prompt_lengths)) if indices is None else indices
  indices = np.asarray(indices, np.int64)
  _check(len(indices), batch_size, microbatches, layout, max_shapes, shuffle)
  longest = length_table.longest_text(table, indices)
  rows_lib.check_row_length(longest - 1, row_length)
  if mismatched_length and shuffle:
    mismatch.check(table, indices, batch_size)
  plan = Plan(
    table,
    indices,
    seed=seed if shuffle else None,
    batch_size=batch_size,
    microbatches=microbatches,
    row_length=row_length,
    layout=layout,
    row_multiple=row_multiple,
    mismatched_length=min(mismatched_length, row_length),
  )
  num_steps = min(plan.steps_per_epoch, _SIMULATED_STEPS)
  needs = Counter(plan.rows_needed(t) for t in range(num_steps))
  plan.row_counts = rows_lib.choose_row_counts(needs, max_shapes)
  return plan


class Plan:
  """The batches of a run: `step(t)` and `batch(t, store)`, made by make_plan.

  Sizes that hold for every batch: `num_completions` C is batch_size times the
  most completions a record has, and completion k of prompt i of the batch is
  number `i * C / batch_size + k`; the mismatched answer, where there is one,
  is one more completion, the last. `num_comparisons` P likewise, and at least
  batch_size. `row_counts` are the sizes chosen for R, ascending.
  """

  def __init__(
    self,
    table: LengthTable,
    indices: np.ndarray,
    *,
    seed: int | None,
    batch_size: int,
    microbatches: int,
    row_length: int,
    layout: str,
    row_multiple: int,
    mismatched_length: int = 0,
  ):
    """See make_plan; seed None is the given order, once."""
    self.table = table
    self.batch_size = batch_size
    self.microbatches = microbatches
    self.row_length = row_length
    self.layout = layout
    self.row_multiple = row_multiple
    self.mismatched_length = mismatched_length
    self.row_counts: tuple[int, ...] = ()
    self.steps_per_epoch = -(-len(indices) // batch_size)  # the last in part
    self._indices = indices
    self._order = None
    if seed is not None:
      order = grain.MapDataset.range(len(indices)).seed(seed)
      self._order = order.shuffle().repeat()
    counts = np.diff(table.offsets)
    # The last place is the mismatched answer's, and no record fills it.
    self._most_completions = int(counts[indices].max()) + self.is_mismatched
    self._most_comparisons = max(1, int(table.num_comparisons[indices].max()))
    self.num_completions = batch_size * self._most_completions
    self.num_comparisons = batch_size * self._most_comparisons
    self._placed = functools.lru_cache(maxsize=16)(self._place)

  @property
  def is_mismatched(self) -> bool:
    """Whether prompts are also read with another prompt's answer."""
    return self.mismatched_length > 0

  def records(self, t: int) -> np.ndarray:
    """Store indices of step t's prompts, int64 [B]; -1 = empty place."""
    first = t * self.batch_size
    last = first + self.batch_size
    if self._order is not None:
      return self._indices[[self._order[i] for i in range(first, last)]]
    if not 0 <= first < len(self._indices):
      raise IndexError(f'step {t} of a plan of {self.steps_per_epoch} steps')
    chosen = np.full(self.batch_size, -1, np.int64)
    part = self._indices[first:last]
    chosen[: len(part)] = part
    return chosen

  def step(self, t: int) -> StepPlan:
    """The plan of step t, a pure function of (seed, t, lengths)."""
    records, others, placed = self._placed(t)
    need = self._round_up(max(map(len, placed)))
    num_rows = min((n for n in self.row_counts if n >= need), default=need)
    filled = sum(u.num_slots for part in placed for row in part for u in row)
    return StepPlan(records, placed, num_rows, filled, others)

  def rows_needed(self, t: int) -> int:
    """The fewest rows, a multiple of row_multiple, that step t fits in."""
    *_, placed = self._placed(t)
    return self._round_up(max(map(len, placed)))

  def completion_index(self, t: int) -> np.ndarray:
    """Which completion of the table each of step t's is, int64 [C]; -1 none.

    A mismatched answer is none of the table's: its prompt is another one.
    """
    offsets = self.table.offsets
    return self._flat_index(t, offsets, self._most_completions)

  def batch(
    self,
    t: int,
    store: Mapping[int, EncodedRecord] | Sequence[EncodedRecord],
    rows: slice | None = None,
  ) -> Batch:
    """Step t's arrays: `Rows` [M, R, L], or only some rows of every microbatch.

    Args:
      t: the step, from 0.
      store: where the tokens are; only the records of the rows are read.
      rows: the slice of [0, R) to fill, R / processes rows say; all where None.
    """
    plan = self.step(t)
    parts = []
    for placed in plan.rows:
      empty = plan.num_rows - len(placed)
      chosen = [*placed, *([] for _ in range(empty))][rows or slice(None)]
      wanted = sorted({unit.prompt for row in chosen for unit in row})
      parts.append(
        rows_lib.fill(
          chosen,
          {i: self._read(plan, i, store) for i in wanted},
          row_length=self.row_length,
          completions_per_prompt=self._most_completions,
        )
      )
    rows_MRL = rows_lib.Rows(*(np.stack(field) for field in zip(*parts)))
    return self._judgements(t)._replace(rows=rows_MRL)

  def summary(self, num_steps: int | None = None) -> dict[str, Any]:
    """Counts over the first steps (an epoch, at most 1,000, where None).

    `packing_efficiency` is `num_tokens`, the filled slots, over `num_slots`,
    M * R * L of all steps. `num_separate_tokens` is what the model would read
    with one sequence a completion and no padding. `num_mismatched` is how many
    prompts are also read with another one's answer, in a plan of such.
    """
    if num_steps is None:
      num_steps = min(self.steps_per_epoch, _SIMULATED_STEPS)
    plans = [self.step(t) for t in range(num_steps)]
    units = [u for plan in plans for part in plan.rows for r in part for u in r]
    separate = sum(unit.trunk * len(unit.lengths) for unit in units)
    separate += sum(sum(unit.lengths) for unit in units)
    shapes = Counter(plan.num_rows for plan in plans)
    slots = sum(r * n for r, n in shapes.items())
    slots *= self.microbatches * self.row_length
    tokens = sum(plan.filled_slots for plan in plans)
    found = {}
    if self.is_mismatched:
      marks = [int((plan.others >= 0).sum()) for plan in plans]
      found['num_mismatched'] = sum(marks)
    return found | {
      'num_steps': num_steps,
      'num_prompts': sum(int((plan.records >= 0).sum()) for plan in plans),
      'steps_per_epoch': self.steps_per_epoch,
      'row_shapes': dict(sorted(shapes.items())),  # R -> how many steps
      'num_slots': slots,
      'num_tokens': tokens,
      'num_predicted_tokens': self._num_trained(plans),
      'num_separate_tokens': separate,
      'packing_efficiency': tokens / slots,
    }

  def _num_trained(self, plans: Sequence[StepPlan]) -> int:
    """How many tokens these steps predict."""
    num, starts = self.table.num_trained, self.table.offsets[:-1]
    of_record, total = np.add.reduceat(num, starts), 0
    for plan in plans:
      total += of_record[plan.records[plan.records >= 0]].sum()
      if plan.others is not None:
        total += num[starts[plan.others[plan.others >= 0]]].sum()
    return int(total)

  def _read(self, plan: StepPlan, i: int, store) -> EncodedRecord:
    """The record of place i, its mismatched answer the last completion."""
    record = store[int(plan.records[i])]
    if plan.others is None or plan.others[i] < 0:
      return record
    other = store[int(plan.others[i])]
    return mismatch.with_answer(record, other, self._most_completions - 1)

  def _place(
    self, t: int
  ) -> tuple[
    np.ndarray, np.ndarray | None, tuple[list[list[rows_lib.Unit]], ...]
  ]:
    """Step t's records, others, and rows a microbatch without empty ones."""
    records, others = self.records(t), None
    if self.is_mismatched:
      others = mismatch.choose(self.table, records, self.mismatched_length)
    units = []
    for i, record in enumerate(records.tolist()):
      if record >= 0:
        other = -1 if others is None else int(others[i])
        units.append(
          rows_lib.make_units(
            i,
            int(self.table.prompt_lengths[record]),
            self._lengths(record, other),
            row_length=self.row_length,
            layout=self.layout,
          )
        )
    return (
      records,
      others,
      tuple(
        rows_lib.place(
          [unit for i in part for unit in units[i]],
          row_length=self.row_length,
          layout=self.layout,
        )
        for part in rows_lib.deal(
          [sum(u.num_slots for u in us) for us in units],
          self.microbatches,
          self.batch_size // self.microbatches,
        )
      ),
    )

  def _lengths(self, record: int, other: int) -> list[int]:
    """Tokens of a record's completions, then of the mismatched one."""
    lengths, offsets = self.table.completion_lengths, self.table.offsets
    mine = lengths[offsets[record] : offsets[record + 1]].tolist()
    if other >= 0:
      mine += [0] * (self._most_completions - 1 - len(mine))
      mine.append(int(lengths[offsets[other]]))
    return mine

  def _round_up(self, num_rows: int) -> int:
    """The next multiple of row_multiple, at least one."""
    return max(1, -(-num_rows // self.row_multiple)) * self.row_multiple

  def _flat_index(self, t: int, offsets: np.ndarray, most: int) -> np.ndarray:
    """Flat table indices of what step t's records own, [B * most]; -1 none."""
    records, *_ = self._placed(t)
    first = offsets[records][:, None]
    index = first + np.arange(most)
    there = (index < offsets[records + 1][:, None]) & (records >= 0)[:, None]
    return np.where(there, index, -1).reshape(-1)

  def _judgements(self, t: int) -> Batch:
    """Everything of the batch but its rows, from the table alone."""
    table = self.table
    c = self.completion_index(t)
    _, others, _ = self._placed(t)
    there, extra = c >= 0, None
    if others is not None:
      extra = mismatch.marks(others, self._most_completions)
      there = there | (extra == 1)
    p = self._flat_index(t, table.comparison_offsets, self._most_comparisons)
    first = np.arange(self.num_comparisons) // self._most_comparisons
    first = np.where(p >= 0, first * self._most_completions, 0)
    first = first.astype(np.int32)
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
        there, np.arange(len(c)) // self._most_completions, -1
      ).astype(np.int32),
      mismatched=extra,
    )


def _check(
  num_records: int,
  batch_size: int,
  microbatches: int,
  layout: str,
  max_shapes: int,
  shuffle: bool,
) -> None:
  """Refuses what cannot be planned."""
  problem = None
  if layout not in rows_lib.LAYOUTS:
    near = errors.nearest(layout, rows_lib.LAYOUTS, cutoff=0)
    names = ', '.join(rows_lib.LAYOUTS)
    problem = (
      f'config.data.layout: {layout!r} is not among {names}; fix: {near!r}?'
    )
  elif num_records < 1:
    problem = (
      'config.data.max_length: no record is left to train or evaluate on;'
      ' fix: see the counts of dropped records, raise it or change the data'
    )
  elif batch_size < 1:
    problem = f'config.train.batch_size: {batch_size}; fix: 1 or more'
  elif shuffle and num_records < batch_size:
    problem = (
      f'config.train.batch_size: {batch_size} prompts, but the data has only'
      f' {num_records}; fix: at most {num_records}, or more data'
    )
  elif max_shapes < 1:
    problem = f'config.data.max_shapes: {max_shapes}; fix: 1 or more'
  if problem:
    raise InputError(problem)
  rows_lib.check_microbatches(batch_size, microbatches)


def _pick(
  values: np.ndarray, index: np.ndarray, empty: float, dtype: type
) -> np.ndarray:
  """values[index], and `empty` where index is -1."""
  padded = np.append(values, np.array(empty, values.dtype))
  return padded[index].astype(dtype)
