"""Runs -> cells: one row per group of runs, each number with its interval.

Comes in: `Run`s. Goes out: a `Table`: labels, cells before and after
training, differences between the rows. Formats nothing, reads no files, and
computes no reward and no loss: measures.py reads what the runs saved.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.results import collect, labels, measures, statistics

WHENS = ('before', 'after')


class Cell(NamedTuple):
  """One number of the table, and how well it is known."""

  value: float | None  # mean over seeds; None if nothing was measured
  se: float | None = None  # standard error
  low: float | None = None  # 95 % interval
  high: float | None = None
  num: int = 0  # seeds, or prompts, behind the interval
  over: str = ''  # what varies: 'seeds', 'prompts', '' = no interval
  num_seeds: int = 0  # seeds that measured it


class Row(NamedTuple):
  """One group of runs."""

  label: tuple[str, ...]
  group: collect.Group
  steps: tuple[int, ...]  # distinct last evaluated steps, ascending
  cells: dict[tuple[str, str], Cell]  # (label of the measure, when) -> cell


class Difference(NamedTuple):
  """A row minus the first row on the same evaluation comparisons."""

  row: int
  baseline: int  # the row that is subtracted
  metric: str  # label of the measure
  interval: statistics.Interval


class Table(NamedTuple):
  """Everything that the texts say."""

  labels: labels.Labels
  measures: tuple[measures.Measure, ...]  # asked for, in order
  columns: tuple[tuple[str, str], ...]  # (label of the measure, when)
  rows: tuple[Row, ...]
  differences: tuple[Difference, ...]


def make_table(
  runs: Sequence[collect.Run], names: Sequence[str] | None = None
) -> Table:
  """Groups the runs, measures every cell and compares the rows.

  Args:
    runs: at least one.
    names: metrics to show, by their name in metrics.jsonl. None takes the
      default ones, and gives a column to those that some evaluation has.

  Raises:
    InputError: a name that no run reports and that results do not know.
  """
  groups = labels.ordered(collect.group_runs(runs))
  row_labels = labels.make_labels(groups)
  chosen = measures.choose(names, reported(runs))
  # The loss always has a column, so that a run without any evaluation has a
  # row all the same.
  evaluated = reported(runs, 'eval') | {measures.LOSS.name}
  in_columns = [
    measure
    for measure in chosen
    if names is not None or measure.name in evaluated
  ]
  rows = tuple(
    _row(label, group, in_columns)
    for label, group in zip(row_labels.values, groups)
  )
  return Table(
    row_labels,
    chosen,
    tuple((measure.label, when) for measure in in_columns for when in WHENS),
    rows,
    _differences(rows, in_columns),
  )


def is_tie(step: int, name: str, value: float) -> bool:
  """Whether an accuracy says only that policy and reference are equal.

  At step 0 no reward differs, and a comparison that is not won counts 0.
  """
  return step == 0 and name == measures.ACCURACY.name and value == 0


def reported(runs: Sequence[collect.Run], *splits: str) -> set[str]:
  """Names of the metrics that some run has in `splits`; in any, if none."""
  return {
    name
    for run in runs
    for split, steps in run.records.items()
    if not splits or split in splits
    for entry in steps.values()
    for name in entry
  }


def _row(label, group: collect.Group, columns) -> Row:
  last = {max(run.records.get('eval', {0: 0})) for run in group.runs}
  cells = {
    (measure.label, when): _cell(group, measure, when)
    for measure in columns
    for when in WHENS
  }
  return Row(tuple(label), group, tuple(sorted(last)), cells)


def _cell(group: collect.Group, measure: measures.Measure, when: str) -> Cell:
  """Mean over seeds; with one seed, the interval is over its prompts."""
  values = []
  for runs in group.by_seed():
    # Runs that repeat a seed count once, by their mean.
    measured = [
      (value, run)
      for run in runs
      if (value := _value(run, measure, when)) is not None
    ]
    if measured:
      mean = float(np.mean([value for value, _ in measured]))
      values.append((mean, measured[0][1]))
  if not values:
    return Cell(None)
  if len(values) > 1:
    interval = statistics.mean_ci_t([value for value, _ in values])
    return Cell(*interval, over='seeds', num_seeds=len(values))
  value, run = values[0]
  interval = _over_prompts(run, measure, when, value)
  if interval is None:
    return Cell(value, num=1, num_seeds=1)
  return Cell(value, *interval[1:], over='prompts', num_seeds=1)


def _value(run: collect.Run, measure, when: str) -> float | None:
  steps = run.records.get('eval', {})
  step = 0 if when == 'before' else max(steps, default=0)
  # A run that was evaluated at step 0 only has no 'after'.
  if when == 'after' and step == 0:
    return None
  return steps.get(step, {}).get(measure.name)


def _over_prompts(run, measure, when, value) -> statistics.Interval | None:
  """Interval from the saved values, if they give this very value."""
  examples = run.examples
  step = 0 if when == 'before' else max(run.records['eval'])
  if examples is None or examples.step != step:
    return None
  each = measures.per_example(measure, examples.arrays)
  if each is None or _is_weighted(examples):
    return None
  # The run summed float32 in another order; another quantity under the same
  # name differs by far more than the tolerance.
  if not math.isclose(np.mean(each), value, rel_tol=1e-3, abs_tol=1e-4):
    return None
  if not measure.is_share:
    return statistics.clustered_mean(each, examples.uid)
  rewards = [examples.arrays[field] for field in measure.fields]
  if np.array_equal(*rewards):
    return None  # policy = reference: every comparison is a tie
  return statistics.clustered_share(each, examples.uid)


def _is_weighted(examples: collect.Examples) -> bool:
  """Whether comparisons count differently; no interval here knows weights."""
  weight = examples.arrays.get('weight')
  return weight is not None and bool(np.ptp(weight) > 0)


def _differences(rows: Sequence[Row], columns) -> tuple[Difference, ...]:
  """Rows minus the first one that has per-example values.

  A comparison's number is its mean over seeds, so the interval says how far
  other prompts would move the difference, not other seeds.
  """
  differences = []
  for measure in columns:
    if not measure.compared:
      continue
    scored = [
      (index, *values)
      for index, row in enumerate(rows)
      if (values := _group_examples(row, measure))
    ]
    # Rows on other comparisons than the first have no difference.
    for index, uid, values in scored[1:]:
      first, first_uid, baseline = scored[0]
      if np.array_equal(uid, first_uid):
        interval = statistics.paired_difference(values, baseline, uid)
        differences.append(Difference(index, first, measure.label, interval))
  return tuple(sorted(differences, key=lambda difference: difference.row))


def _group_examples(row: Row, measure: measures.Measure):
  """(uid [P] sorted, mean over seeds [P]), or None if a run has none."""
  uids, values = [], []
  for runs in row.group.by_seed():
    for run in runs:
      value = row.cells[measure.label, 'after'].value
      if run.examples is None or value is None or run.examples.step == 0:
        return None
      each = measures.per_example(measure, run.examples.arrays)
      if each is None:
        return None
      # Runs may hold the comparisons in another order. Those of one record
      # keep theirs.
      order = np.argsort(run.examples.uid, kind='stable')
      uids.append(run.examples.uid[order])
      values.append(each[order] / len(runs))  # a seed counts once
  if any(not np.array_equal(uid, uids[0]) for uid in uids):
    return None
  return uids[0], np.sum(values, axis=0) / len(row.group.seeds)
