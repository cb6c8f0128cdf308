"""Runs -> cells: one row per group of runs, each number with its interval.

Comes in: `Run`s and options. Goes out: a `Table`: labels, cells before and
after training, which of them are worth a column, differences between the rows,
and the rows that no other one beats. Formats nothing, reads no files, and
computes no reward and no loss: measures.py reads what the runs saved.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.results import (
  collect,
  comparisons,
  labels,
  measured,
  measures,
  options,
  selection,
  statistics,
)
from dpo_jax.types import InputError

WHENS = selection.WHENS
DEFAULT = options.Options()
_OTHER_NAMES = {'loss.terms': ('loss',)}
Column = tuple[str, str]  # (label of the measure, when)


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
  cells: dict[Column, Cell]


class Difference(NamedTuple):
  """A row minus its baseline, on the same evaluation comparisons."""

  row: int
  baseline: int  # the row that is subtracted
  metric: str  # label of the measure
  interval: statistics.Interval
  num_seeds: tuple[int, int]  # of the row and of the baseline
  p: float = math.nan  # of the hypothesis that there is none; NaN = no test
  p_holm: float = math.nan  # adjusted over the differences of the metric

  @property
  def over(self) -> str:
    """What varies in the interval: 'seeds and prompts', or 'prompts'."""
    return 'seeds and prompts' if min(self.num_seeds) > 1 else 'prompts'


class Table(NamedTuple):
  """Everything that the texts say."""

  labels: labels.Labels
  measures: tuple[measures.Measure, ...]  # asked for, in order
  columns: tuple[Column, ...]  # of every row's cells
  rows: tuple[Row, ...]
  differences: tuple[Difference, ...]
  chosen: options.Options = DEFAULT
  shown: tuple[
    Column, ...
  ] = ()  # columns of the texts; others are in the notes
  facts: tuple[str, ...] = ()  # of selection.FACTS, shown in any case
  # column -> rows that no other one beats; none if no two rows differ
  unbeaten: dict[Column, frozenset[int]] = {}
  num_tests: dict[Column, int] = {}  # behind `unbeaten`


def make_table(
  runs: Sequence[collect.Run],
  chosen: options.Options = DEFAULT,
  *,
  strict: bool = True,
) -> Table:
  """Groups the runs, measures every cell and compares the rows.

  Args:
    runs: at least one.
    chosen: which rows and columns. Without `metrics`, the default ones, with a
      column for those that some evaluation has.
    strict: whether a baseline that no row is, is refused.

  Raises:
    InputError: a name or a value in the options that no run has.
  """
  if chosen.rows:
    flat = [labels.settings(run.config) for run in runs]
    runs = [runs[index] for index in selection.keep(flat, chosen.rows)]
  groups = labels.ordered(collect.group_runs(runs))
  flat = [labels.settings(group.runs[0].config) for group in groups]
  everything = reported(runs)
  wanted = selection.columns(chosen, selection.known_keys(flat), everything)
  shown = _measures(wanted, everything, runs)
  groups, flat = _sorted(groups, flat, chosen.sort, everything)
  row_labels = labels.make_labels(groups, wanted.keys)
  _check_distinct(row_labels)
  row_labels = _renamed(row_labels, chosen, shown, strict)
  rows = tuple(
    _row(label, group, shown) for label, group in zip(row_labels.values, groups)
  )
  table = Table(
    row_labels,
    _asked(wanted, everything, runs),
    tuple((measure.label, when) for measure in shown for when in WHENS),
    rows,
    (),
    chosen,
    facts=wanted.facts,
  )
  table = table._replace(shown=_shown(table, wanted))
  bases = _bases(flat, row_labels, chosen.baseline, strict)
  scored = {
    measure.label: [comparisons.score(row.group, measure) for row in rows]
    for measure in shown
    if len(rows) > 1 and (measure.compared or measure.better)
  }
  differences = _differences(table, scored, bases)
  return _with_unbeaten(table._replace(differences=differences), scored)


def is_comparable(table: Table) -> bool:
  """Whether all rows have the same loss, so that its values compare."""
  losses = {repr(row.group.runs[0].config.get('loss')) for row in table.rows}
  return len(losses) == 1


def same(table: Table, column: Column) -> bool:
  """Whether every row that measured it has one and the same value."""
  numbers = [row.cells[column].value for row in table.rows]
  numbers = [number for number in numbers if number is not None]
  return bool(numbers) and all(
    math.isclose(number, numbers[0], rel_tol=1e-6, abs_tol=1e-9)
    for number in numbers
  )


def starts_equal(table: Table) -> bool:
  """Whether policy = reference before training, in all rows that say so."""
  firsts = [
    row.cells.get((measures.ACCURACY.label, 'before')) for row in table.rows
  ]
  numbers = {cell.value for cell in firsts if cell is not None} - {None}
  return numbers == {0}


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


def _asked(wanted, everything, runs) -> tuple[measures.Measure, ...]:
  names = None
  if wanted.metrics is not None:
    names = list(dict.fromkeys(name for name, _ in wanted.metrics))
  own = reported(runs, 'eval') - set(measures.MEASURES)
  return measures.choose(names, everything, own)


def _measures(wanted, everything, runs) -> list[measures.Measure]:
  """Measures with columns."""
  # The loss always has a column, so that a run without any evaluation has a
  # row all the same.
  evaluated = reported(runs, 'eval') | {measures.LOSS.name}
  return [
    measure
    for measure in _asked(wanted, everything, runs)
    if wanted.metrics is not None or measure.name in evaluated
  ]


def _sorted(groups, flat, names, everything):
  """The groups and their settings, in the order of --sort."""

  def number(index: int, metric: str, when: str) -> float | None:
    return _cell(groups[index], measures.find(metric, everything), when).value

  order = selection.order(names, flat, number, everything)
  return [groups[i] for i in order], [flat[i] for i in order]


def _check_distinct(row_labels: labels.Labels) -> None:
  """Refuses rows that a reader could not tell apart."""
  for label in row_labels.values:
    if row_labels.values.count(label) > 1:
      more = [*row_labels.left_out, *row_labels.implied]
      raise labels.unclear(row_labels.names, label, more)


def _renamed(
  row_labels: labels.Labels, chosen: options.Options, shown, strict: bool
) -> labels.Labels:
  """The labels with the names of --label.

  Raises:
    InputError: `strict`, and a name that nothing in the table has.
  """
  aliases = {
    name: {name, key, key.rpartition('.')[2], *_OTHER_NAMES.get(key, ())}
    for key, name in zip(row_labels.keys, row_labels.names)
  }
  known = set().union(*aliases.values(), *row_labels.values)
  known |= {each for one in shown for each in (one.name, one.label)}
  for name, _ in chosen.label if strict else ():
    if name not in known:
      raise errors.refuse(
        '--label',
        f'nothing in the table is called {name!r}',
        f'{errors.did_you_mean(name, known)}use the name of a column, a '
        'metric or a value',
      )
  return row_labels._replace(
    names=tuple(
      chosen.rename(name, *sorted(aliases.get(name, ())))
      for name in row_labels.names
    ),
    values=tuple(
      tuple(chosen.rename(text) for text in texts)
      for texts in row_labels.values
    ),
  )


def _row(label, group: collect.Group, shown) -> Row:
  steps = {run.step for run in group.runs}
  cells = {
    (measure.label, when): _cell(group, measure, when)
    for measure in shown
    for when in WHENS
  }
  return Row(tuple(label), group, tuple(sorted(steps)), cells)


def _cell(group: collect.Group, measure: measures.Measure, when: str) -> Cell:
  """Mean over seeds; with one seed, the interval is over its prompts."""
  means = []
  for runs in group.by_seed():
    # Runs that repeat a seed count once, by their mean.
    pairs = [
      (value, run)
      for run in runs
      if (value := measured.value(run, measure, when)) is not None
    ]
    if pairs:
      mean = float(np.mean([value for value, _ in pairs]))
      means.append((mean, pairs[0][1]))
  if not means:
    return Cell(None)
  if len(means) > 1:
    interval = statistics.mean_ci_t([value for value, _ in means])
    return Cell(*interval, over='seeds', num_seeds=len(means))
  value, run = means[0]
  interval = measured.over_prompts(run, measure, when, value)
  if interval is None:
    return Cell(value, num=1, num_seeds=1)
  return Cell(value, *interval[1:], over='prompts', num_seeds=1)


def _shown(table: Table, wanted: selection.Columns) -> tuple[Column, ...]:
  """Columns that tell something: by the options, else by rule.

  By rule a column is left out if all rows have the same value, or if it is a
  loss of rows with different losses; the notes say so.
  """
  chosen, by_rule, single = [], wanted.metrics is None, len(table.rows) == 1
  for measure in table.measures:
    before, after = ((measure.label, when) for when in WHENS)
    if after not in table.columns:
      continue
    asked = [
      when
      for name, when in wanted.metrics or ()
      if name in (measure.name, measure.label)
    ]
    if asked and '' not in asked:
      chosen += [(measure.label, when) for when in asked]
      continue
    if by_rule and measure == measures.LOSS and not is_comparable(table):
      continue
    numbers = [table.rows[0].cells[each].value for each in (before, after)]
    moved = single and numbers[0] is not None and numbers[0] != numbers[1]
    varies = not same(table, before) if not single else moved
    zero = single and starts_equal(table) and numbers[0] == 0
    if varies and not zero and _any(table, before):
      chosen.append(before)
    everywhere = all(row.cells[after].value is not None for row in table.rows)
    is_constant = same(table, after) and everywhere and not measure.compared
    if not by_rule or single or not is_constant:
      chosen.append(after)
  if any(_any(table, column) for column in chosen) or not by_rule:
    return tuple(chosen)
  # Nothing varies, or nothing was measured.
  return tuple(column for column in table.columns if column[1] == 'after')


def _any(table: Table, column: Column) -> bool:
  return any(row.cells[column].value is not None for row in table.rows)


def _bases(flat, row_labels, baseline, strict: bool) -> dict[int, int] | None:
  """{row: its baseline}; None = the first row that saved its values."""
  if baseline is None:
    return {}
  if not baseline:
    return None
  try:
    return selection.baselines(flat, row_labels.keys, baseline)
  except InputError:
    if strict:
      raise
    return {}


def _differences(table: Table, scored, bases) -> tuple[Difference, ...]:
  """Rows minus their baselines; p-values are adjusted per metric."""
  differences = []
  for measure in table.measures:
    if not measure.compared or measure.label not in scored:
      continue
    each, family = scored[measure.label], []
    first = next((i for i, one in enumerate(each) if one is not None), None)
    pairs = bases
    if bases is None:
      pairs = {i: first for i in range(len(each)) if i != first}
    for row, base in sorted(pairs.items()):
      if each[row] is None or each[base] is None:
        continue
      interval = comparisons.difference(each[row], each[base])
      if interval is not None:
        seeds = len(each[row].seeds), len(each[base].seeds)
        p = statistics.p_value(interval)
        family.append(Difference(row, base, measure.label, interval, seeds, p))
    adjusted = statistics.holm([one.p for one in family])
    differences += [one._replace(p_holm=p) for one, p in zip(family, adjusted)]
  return tuple(sorted(differences, key=lambda difference: difference.row))


def _with_unbeaten(table: Table, scored: dict[str, list[Any]]) -> Table:
  """The table with the rows that no other one beats, per shown column."""
  unbeaten, num_tests = {}, {}
  for measure in table.measures:
    column = measure.label, 'after'
    if column not in table.shown or measure.label not in scored:
      continue
    if measure == measures.LOSS and not is_comparable(table):
      continue
    indices = [
      index
      for index, row in enumerate(table.rows)
      if row.cells[column].value is not None
    ]
    best, num = comparisons.unbeaten(
      [scored[measure.label][index] for index in indices], measure.better
    )
    if num:
      unbeaten[column] = frozenset(indices[i] for i in best)
      num_tests[column] = num
  return table._replace(unbeaten=unbeaten, num_tests=num_tests)
