"""tokens -> rows: the plan of every batch, from (seed, step, lengths) alone.

Comes in: a `LengthTable`; for `Plan.batch` also a store, any object with
`store[i] -> EncodedRecord`. Goes out: `StepPlan`s and `types.Batch`es of numpy
arrays. Every process computes the same global plan and reads only the records
of its own rows. Resuming needs only the step number. Knows no paths, no
devices and no model.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches import (
  judgements,
  length_table,
  limits,
  mismatch,
  prompt_weights,
)
from dpo_jax.data.batches import rows as rows_lib
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.types import Batch, EncodedRecord

_SIMULATED_STEPS = 1000  # enough to show the spread of row counts in an epoch

# One microbatch: the units of each row, without the empty rows.
_Placed = list[list[rows_lib.Unit]]


class StepPlan(NamedTuple):
  """One batch before its tokens are read; the same in every process."""

  records: np.ndarray  # int64 [B], index into the store; -1 = empty place
  rows: tuple[_Placed, ...]  # [M]; without the empty rows
  num_rows: int  # R: rows of each microbatch, including the empty ones
  filled_slots: int  # slots in use, of M * R * L
  # [B]: the mismatched answer of each place. None if the plan has none.
  others: mismatch.Answers | None = None


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
  weigh_prompts: bool = False,
) -> 'Plan':
  """Plans all batches and chooses the row counts that will be compiled.

  Args:
    table: lengths of the records of a store.
    seed: of the order; not used if `shuffle` is False.
    batch_size: B, prompts per update, over all microbatches and processes.
    microbatches: M; each holds B / M prompts with all their completions.
    row_length: L, slots per row.
    layout: 'shared', 'packed' or 'padded', see `rows.make_units`.
    row_multiple: every row count is a multiple of this, the device count.
    max_shapes: most row counts to choose; each is one compiled program.
    shuffle: True: epochs without end, each in its own order. False: a single
      pass in the given order, whose last batch may be partly empty.
    indices: the records to use, in this order; None = all.
    mismatched_length: if above 0, every prompt is also read with another
      prompt's answer (mismatch.py). Most tokens of the two together.
    weigh_prompts: the comparisons of a prompt weigh one (prompt_weights.py).

  Raises:
    InputError: a value cannot be planned; names the config key.
  """
  indices = np.arange(len(table.prompt_lengths)) if indices is None else indices
  indices = np.asarray(indices, np.int64)
  _check_layout(layout)
  limits.check_sizes(
    len(indices), batch_size, microbatches, max_shapes, one_pass=not shuffle
  )
  # A text of n tokens takes n - 1 slots: its last token predicts nothing.
  longest = length_table.longest_text(table, indices)
  limits.check_row_length(longest - 1, row_length)
  if mismatched_length and shuffle:
    mismatch.check(table, indices, batch_size)
  lists = prompt_weights.of_lists(table)
  if weigh_prompts:
    weight, lists = prompt_weights.by_prompt(table, indices)
    table = table._replace(weight=weight)
  plan = Plan(
    table,
    lists,
    indices,
    seed=seed if shuffle else None,
    batch_size=batch_size,
    microbatches=microbatches,
    row_length=row_length,
    layout=layout,
    row_multiple=row_multiple,
    mismatched_length=min(mismatched_length, row_length),
  )
  # Row counts are chosen for the steps of one epoch; a later step that needs
  # more rows than any of them takes what it needs.
  num_steps = min(plan.steps_per_epoch, _SIMULATED_STEPS)
  needs, most = Counter(), 1
  for t in range(num_steps):
    needs[plan.rows_needed(t)] += 1
    most = max(most, plan.prompts_needed(t))
  plan.row_counts = rows_lib.choose_row_counts(needs, max_shapes)
  plan.most_prompts = most
  return plan


class Plan:
  """The batches of a run: `step(t)` and `batch(t, store)`, made by make_plan.

  Every batch has the same sizes. `num_completions` C is batch_size times the
  most completions of any record; completion k of the prompt in place i has the
  number `i * C / batch_size + k`. A plan with mismatched answers has one more
  completion per prompt, the last. `num_comparisons` P is batch_size times the
  most comparisons of any record, and at least batch_size. `row_counts` are the
  sizes chosen for R, ascending. `most_prompts` is the most prompts of a row,
  which kernels of attention need: a step that would have more packs its rows
  anew.
  """

  def __init__(
    self,
    table: LengthTable,
    list_weights: np.ndarray,
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
    """See make_plan. seed None: a single pass in the given order."""
    self.table = table
    self.list_weights = list_weights
    self.batch_size = batch_size
    self.microbatches = microbatches
    self.row_length = row_length
    self.layout = layout
    self.row_multiple = row_multiple
    self.mismatched_length = mismatched_length
    self.row_counts: tuple[int, ...] = ()
    self.most_prompts = 0  # not known yet
    # Rounded up: the last step of an epoch may be partly of the next.
    self.steps_per_epoch = -(-len(indices) // batch_size)
    self._indices = indices
    self._order = None
    if seed is not None:
      order = grain.MapDataset.range(len(indices)).seed(seed)
      self._order = order.shuffle().repeat()
    counts = np.diff(table.offsets)
    # The last completion of each prompt is left for the mismatched answer.
    self._most_completions = int(counts[indices].max()) + self.is_mismatched
    self._most_comparisons = max(1, int(table.num_comparisons[indices].max()))
    self.num_completions = batch_size * self._most_completions
    self.num_comparisons = batch_size * self._most_comparisons
    # Those of an evaluation follow from the whole set, not from its batches.
    self._others = None
    if self.is_mismatched and seed is None:
      self._others = mismatch.of_set(table, indices, mismatched_length)
    # Asked for several times per step: by step(), batch() and summary().
    self._placed = functools.lru_cache(maxsize=16)(self._place)

  @property
  def is_mismatched(self) -> bool:
    """Whether prompts are also read with the answer of another prompt."""
    return self.mismatched_length > 0

  @property
  def most_branches(self) -> int:
    """Most branches of a prompt in a row."""
    return self._most_completions if self.layout == 'shared' else 1

  def records(self, t: int) -> np.ndarray:
    """Returns the store indices of step t, int64 [B]; -1 = empty place."""
    first = t * self.batch_size
    last = first + self.batch_size
    # grain's shuffle is an index: any place of any epoch in constant time.
    if self._order is not None:
      return self._indices[[self._order[i] for i in range(first, last)]]
    if not 0 <= first < len(self._indices):
      raise IndexError(f'step {t} of a plan of {self.steps_per_epoch} steps')
    chosen = np.full(self.batch_size, -1, np.int64)
    part = self._indices[first:last]
    chosen[: len(part)] = part
    return chosen

  def step(self, t: int) -> StepPlan:
    """Returns the plan of step t, a pure function of (seed, t, lengths)."""
    records, others, placed = self._placed(t)
    # All microbatches have one shape, that of the fullest.
    need = self._round_up(max(map(len, placed)))
    num_rows = min((n for n in self.row_counts if n >= need), default=need)
    filled = sum(u.num_slots for part in placed for row in part for u in row)
    return StepPlan(records, placed, num_rows, filled, others)

  def rows_needed(self, t: int) -> int:
    """Returns the fewest rows that hold step t, a multiple of row_multiple."""
    *_, placed = self._placed(t)
    return self._round_up(max(map(len, placed)))

  def prompts_needed(self, t: int) -> int:
    """Returns the most prompts that a row of step t has."""
    *_, placed = self._placed(t)
    return max(len(row) for part in placed for row in part)

  def completion_index(self, t: int) -> np.ndarray:
    """Returns the index in the table of each completion, int64 [C]; -1 = none.

    A mismatched answer has none: the table's entry belongs to another prompt.
    """
    records, *_ = self._placed(t)
    return judgements.flat_index(
      self.table.offsets, records, self._most_completions
    )

  def batch(
    self,
    t: int,
    store: Mapping[int, EncodedRecord] | Sequence[EncodedRecord],
    rows: np.ndarray | slice | None = None,
  ) -> Batch:
    """Returns the batch of step t, with `Rows` [M, R, L] or some of them.

    Args:
      t: the step, from 0.
      store: holds the tokens; only the records of the chosen rows are read.
      rows: numbers in [0, R), or a slice of it, to fill in every microbatch,
        such as the rows of one process; None = all.
    """
    plan = self.step(t)
    numbers = np.arange(plan.num_rows)[slice(None) if rows is None else rows]
    parts = []
    for placed in plan.rows:
      chosen = [placed[i] if i < len(placed) else [] for i in numbers]
      # Only the records of these rows are read from the store.
      wanted = sorted({unit.prompt for row in chosen for unit in row})
      parts.append(
        rows_lib.fill(
          chosen,
          self._read(plan, wanted, store),
          row_length=self.row_length,
          completions_per_prompt=self._most_completions,
        )
      )
    rows_MRL = rows_lib.Rows(*(np.stack(field) for field in zip(*parts)))
    batch = judgements.make_batch(
      self.table,
      plan.records,
      plan.others and plan.others.records,
      most_completions=self._most_completions,
      most_comparisons=self._most_comparisons,
      list_weights=self.list_weights,
    )
    return batch._replace(rows=rows_MRL)

  def summary(self, num_steps: int | None = None) -> dict[str, Any]:
    """Returns counts over the first steps.

    Args:
      num_steps: how many; None = one epoch, at most 1,000.

    Returns:
      Counts by name. `packing_efficiency` is `num_tokens` (filled slots) over
      `num_slots` (M * R * L, all steps), `num_separate_tokens` the number of
      tokens with one sequence per completion and no padding, `num_mismatched`
      the number of prompts with a mismatched answer, if the plan has any.
    """
    if num_steps is None:
      num_steps = min(self.steps_per_epoch, _SIMULATED_STEPS)
    plans = [self.step(t) for t in range(num_steps)]
    units = [u for plan in plans for part in plan.rows for r in part for u in r]
    # Without sharing, each branch would repeat its trunk.
    separate = sum(unit.trunk * len(unit.lengths) for unit in units)
    separate += sum(sum(unit.lengths) for unit in units)
    shapes = Counter(plan.num_rows for plan in plans)
    slots = sum(r * n for r, n in shapes.items())
    slots *= self.microbatches * self.row_length
    tokens = sum(plan.filled_slots for plan in plans)
    counts = {}
    if self.is_mismatched:
      marks = [int((plan.others.records >= 0).sum()) for plan in plans]
      counts['num_mismatched'] = sum(marks)
    return counts | {
      'num_steps': num_steps,
      'num_prompts': sum(int((plan.records >= 0).sum()) for plan in plans),
      'steps_per_epoch': self.steps_per_epoch,
      'row_shapes': dict(sorted(shapes.items())),  # R -> number of steps
      'num_slots': slots,
      'num_tokens': tokens,
      'num_predicted_tokens': self._num_trained(plans),
      'num_separate_tokens': separate,
      'packing_efficiency': tokens / slots,
    }

  def _num_trained(self, plans: Sequence[StepPlan]) -> int:
    """Number of tokens that these steps predict."""
    num, starts = self.table.num_trained, self.table.offsets[:-1]
    # The sum over each record's completions.
    of_record, total = np.add.reduceat(num, starts), 0
    for plan in plans:
      total += of_record[plan.records[plan.records >= 0]].sum()
      if plan.others is not None:
        answers = plan.others.completions
        total += num[answers[answers >= 0]].sum()
    return int(total)

  def _read(self, plan, places, store) -> dict[int, EncodedRecord]:
    """The records by place, with a mismatched answer as last completion."""
    own = {i: int(plan.records[i]) for i in places}
    last = self._most_completions - 1
    return mismatch.read(own, plan.others, store, self.table.offsets, last)

  def _place(
    self, t: int
  ) -> tuple[np.ndarray, mismatch.Answers | None, tuple[_Placed, ...]]:
    """StepPlan's records, others and rows of step t."""
    records = self.records(t)
    others = self._mismatched(t, records)
    units = []
    for i, record in enumerate(records.tolist()):
      if record >= 0:
        answer = -1 if others is None else int(others.completions[i])
        units.append(
          rows_lib.make_units(
            i,
            int(self.table.prompt_lengths[record]),
            self._lengths(record, answer),
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
          most_units=self.most_prompts,
        )
        # Microbatches get equal numbers of prompts and nearly equal slots.
        for part in rows_lib.deal(
          [sum(u.num_slots for u in us) for us in units],
          self.microbatches,
          self.batch_size // self.microbatches,
        )
      ),
    )

  def _mismatched(self, t: int, records: np.ndarray) -> mismatch.Answers | None:
    """The mismatched answers of step t [B]; None if the plan has none."""
    if not self.is_mismatched:
      return None
    if self._others is None:
      return mismatch.of_batch(self.table, records, t, self.mismatched_length)
    return mismatch.part(self._others, t * self.batch_size, self.batch_size)

  def _lengths(self, record: int, answer: int) -> list[int]:
    """Tokens of a record's completions, then of its mismatched answer."""
    lengths, offsets = self.table.completion_lengths, self.table.offsets
    own = lengths[offsets[record] : offsets[record + 1]].tolist()
    if answer >= 0:
      # Length 0: a completion that the record does not have.
      own += [0] * (self._most_completions - 1 - len(own))
      own.append(int(lengths[answer]))
    return own

  def _round_up(self, num_rows: int) -> int:
    """The next multiple of row_multiple, at least row_multiple itself."""
    return max(1, -(-num_rows // self.row_multiple)) * self.row_multiple


def _check_layout(layout: str) -> None:
  """Refuses an unknown layout."""
  if layout not in rows_lib.LAYOUTS:
    raise errors.refuse(
      'config.data.layout',
      f'{layout!r} is not among {", ".join(rows_lib.LAYOUTS)}',
      f'{errors.did_you_mean(layout, rows_lib.LAYOUTS)}use one of them',
    )
