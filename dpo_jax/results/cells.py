"""Runs -> cells: one row per group of runs, each number with its interval.

Comes in: `Run`s. Goes out: a `Table`: labels, cells before and after
training, differences between the rows. Formats nothing, reads no files, and
computes no reward and no loss: measures.py reads what the runs saved.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.results import collect, labels, measures, options, statistics

WHENS = ('before', 'after')
DEFAULT = options.Options()


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
  steps: tuple[int, ...]  # distinct steps of the cells 'after', ascending
  cells: dict[tuple[str, str], Cell]  # (label of the measure, when) -> cell


class Difference(NamedTuple):
  """A row minus the first row on the same evaluation comparisons."""

  row: int
  baseline: int  # the row that is subtracted
  metric: str  # label of the measure
  interval: statistics.Interval
  num_seeds: tuple[int, int]  # of the row and of the baseline

  @property
  def over(self) -> str:
    """What varies in the interval: 'seeds and prompts', or 'prompts'."""
    return 'seeds and prompts' if min(self.num_seeds) > 1 else 'prompts'


class Table(NamedTuple):
  """Everything that the texts say."""

  labels: labels.Labels
  measures: tuple[measures.Measure, ...]  # asked for, in order
  columns: tuple[tuple[str, str], ...]  # (label of the measure, when)
  rows: tuple[Row, ...]
  differences: tuple[Difference, ...]


def make_table(
  runs: Sequence[collect.Run], chosen: options.Options = DEFAULT
) -> Table:
  """Groups the runs, measures every cell and compares the rows.

  Args:
    runs: at least one.
    chosen: which rows and columns. Without `metrics`, the default ones, with a
      column for those that some evaluation has.

  Raises:
    InputError: a name that no run reports and that results do not know.
  """
  groups = labels.ordered(collect.group_runs(runs))
  row_labels = labels.make_labels(groups)
  names = chosen.metrics
  shown = measures.choose(names, reported(runs))
  # The loss always has a column, so that a run without any evaluation has a
  # row all the same.
  evaluated = reported(runs, 'eval') | {measures.LOSS.name}
  in_columns = [
    measure
    for measure in shown
    if names is not None or measure.name in evaluated
  ]
  rows = tuple(
    _row(label, group, in_columns)
    for label, group in zip(row_labels.values, groups)
  )
  return Table(
    row_labels,
    shown,
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
  at = {run.step for run in group.runs}
  cells = {
    (measure.label, when): _cell(group, measure, when)
    for measure in columns
    for when in WHENS
  }
  return Row(tuple(label), group, tuple(sorted(at)), cells)


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
  step = 0 if when == 'before' else run.step
  # A run that was evaluated at step 0 only has no 'after'.
  if when == 'after' and step == 0:
    return None
  return steps.get(step, {}).get(measure.name)


def _over_prompts(run, measure, when, value) -> statistics.Interval | None:
  """Interval from the saved values, if they give this very value."""
  step = 0 if when == 'before' else run.step
  jack = _saved(run, measure, step, value)
  if jack is None:
    return None
  if measure.is_share:
    interval = _of_share(run.examples, measure, jack, step)
  else:
    interval = statistics.interval(jack)
  # One prompt alone tells nothing.
  return interval if interval and math.isfinite(interval.low) else None


def _of_share(examples, measure, jack, step) -> statistics.Interval | None:
  """Wilson's interval; None if policy = reference, so that all pairs tie."""
  each = measures.per_example(measure, examples.arrays)
  if each is None:  # labelled completions: a share of pairs that overlap
    tie = is_tie(step, measure.name, jack.mean)
    return None if tie else statistics.share_interval(jack)
  if np.array_equal(*(examples.arrays[field] for field in measure.fields)):
    return None
  weight = examples.arrays.get('weight')
  return statistics.clustered_share(each, examples.prompt, weight)


def _saved(run, measure, step, value) -> statistics.Jackknife | None:
  """The mean of the values that a run saved; None if it is not `value`."""
  examples = run.examples
  if examples is None or examples.step != step:
    return None
  jack = measures.jackknife(measure, examples.arrays, examples.prompt)
  # The run summed float32 in another order; another quantity under the same
  # name differs by far more than the tolerance.
  if jack is None or not math.isclose(
    jack.mean, value, rel_tol=1e-3, abs_tol=1e-4
  ):
    return None
  return jack


class _Scored(NamedTuple):
  """A row's values on the evaluation data, of one measure."""

  row: int
  uid: np.ndarray  # [P], sorted
  prompt: np.ndarray  # [P]
  # seed -> (value in the metrics, arrays by field, [P] each) of each run
  seeds: dict[Any, list[tuple[float, dict[str, np.ndarray]]]]


def _differences(rows: Sequence[Row], columns) -> tuple[Difference, ...]:
  """Rows minus the first one that has per-example values.

  The difference is that of the cells. Its interval is over prompts, and over
  seeds too if both rows have several.
  """
  differences = []
  for measure in columns:
    if not measure.compared:
      continue
    scored = [
      values
      for index, row in enumerate(rows)
      if (values := _scored(index, row, measure)) is not None
    ]
    # Rows on other comparisons than the first have no difference.
    for other in scored[1:]:
      first = scored[0]
      if np.array_equal(other.uid, first.uid):
        interval = statistics.difference(
          _per_seed(other, measure, first.prompt),
          _per_seed(first, measure, first.prompt),
          paired=list(other.seeds) == list(first.seeds),
        )
        seeds = len(other.seeds), len(first.seeds)
        differences.append(
          Difference(other.row, first.row, measure.label, interval, seeds)
        )
  return tuple(sorted(differences, key=lambda difference: difference.row))


def _scored(index: int, row: Row, measure: measures.Measure) -> _Scored | None:
  """The row's values; None if a run that the cell counts has none."""
  ids, seeds = [], {}
  for run in row.group.runs:
    value = _value(run, measure, 'after')
    if value is None:
      continue  # as in the cell
    if _saved(run, measure, run.step, value) is None:
      return None
    # Runs may hold the comparisons in another order. Those of one record keep
    # theirs.
    order = np.argsort(run.examples.uid, kind='stable')
    ids.append((run.examples.uid[order], run.examples.prompt[order]))
    arrays = {name: array[order] for name, array in run.examples.arrays.items()}
    seeds.setdefault(run.config.get('seed'), []).append((value, arrays))
  if not ids or any(not np.array_equal(uid, ids[0][0]) for uid, _ in ids):
    return None
  return _Scored(index, *ids[0], seeds)


def _per_seed(scored: _Scored, measure, prompt) -> list[statistics.Jackknife]:
  """One Jackknife per seed, over these prompts [P]; the means are the cell's.

  Runs that repeat a seed count once.
  """
  return [
    statistics.average(
      measures.jackknife(measure, arrays, prompt)._replace(mean=value)
      for value, arrays in runs
    )
    for runs in scored.seeds.values()
  ]
