"""Runs -> cells: one row a group of runs, each number with its interval.

Comes in: `Run`s. Goes out: a `Table`: labels, cells before and after
training, differences between the rows. Formats nothing, reads no files.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.results import collect, labels, statistics

# name in the table -> name in metrics.jsonl (TRL's)
METRICS = {
  'loss': 'loss',
  'accuracy': 'rewards/accuracies',
  'margin': 'rewards/margins',
  'KL': 'kl',
}
WHENS = ('before', 'after')


class Cell(NamedTuple):
  """One number of the table, and how well it is known."""

  value: float | None  # mean over seeds; None where nothing was measured
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
  cells: dict[tuple[str, str], Cell]  # (metric, when) -> cell


class Difference(NamedTuple):
  """A row minus the first row on the same evaluation comparisons."""

  row: int
  baseline: int  # the row that is taken off
  metric: str
  interval: statistics.Interval


class Table(NamedTuple):
  """Everything that the texts say."""

  labels: labels.Labels
  columns: tuple[tuple[str, str], ...]  # (metric, when)
  rows: tuple[Row, ...]
  differences: tuple[Difference, ...]


def make_table(runs: Sequence[collect.Run]) -> Table:
  """Groups the runs (at least one), measures every cell, compares rows."""
  groups = labels.ordered(collect.group_runs(runs))
  names = labels.make_labels(groups)
  columns = tuple(
    (metric, when)
    for metric, key in METRICS.items()
    if metric == 'loss' or any(_measured(run, key) for run in runs)
    for when in WHENS
  )
  rows = tuple(
    _row(label, group, columns) for label, group in zip(names.values, groups)
  )
  return Table(names, columns, rows, _differences(rows))


def is_tie(step: int, name: str, value: float) -> bool:
  """Whether an accuracy says only that policy and reference are equal.

  At step 0 no reward differs, and a comparison that is not won counts 0.
  """
  return step == 0 and name == METRICS['accuracy'] and value == 0


def _measured(run: collect.Run, key: str) -> bool:
  return any(key in entry for entry in run.records.get('eval', {}).values())


def _row(label, group: collect.Group, columns) -> Row:
  last = {max(run.records.get('eval', {0: 0})) for run in group.runs}
  cells = {
    (metric, when): _cell(group, metric, when) for metric, when in columns
  }
  return Row(tuple(label), group, tuple(sorted(last)), cells)


def _cell(group: collect.Group, metric: str, when: str) -> Cell:
  """Mean over seeds; with one seed, the interval is over its prompts."""
  values = []
  for runs in group.by_seed():  # the runs of one seed count once
    measured = [
      (value, run)
      for run in runs
      if (value := _value(run, metric, when)) is not None
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
  interval = _over_prompts(run, metric, when, value)
  if interval is None:
    return Cell(value, num=1, num_seeds=1)
  return Cell(value, *interval[1:], over='prompts', num_seeds=1)


def _value(run: collect.Run, metric: str, when: str) -> float | None:
  steps = run.records.get('eval', {})
  step = 0 if when == 'before' else max(steps, default=0)
  if when == 'after' and step == 0:
    return None
  return steps.get(step, {}).get(METRICS[metric])


def _over_prompts(run, metric, when, value) -> statistics.Interval | None:
  """Interval from the per-example scores, where they give this very value."""
  examples = run.examples
  step = 0 if when == 'before' else max(run.records['eval'])
  if examples is None or examples.step != step:
    return None
  each = per_example(run, metric)
  # the value was a float32 sum in another order; weights or another reward
  # differ by far more
  if each is None or not math.isclose(
    np.mean(each), value, rel_tol=1e-3, abs_tol=1e-4
  ):
    return None
  if metric == 'accuracy':
    if np.array_equal(examples.chosen_log_ratio, examples.rejected_log_ratio):
      return None  # policy = reference: every comparison is a tie
    return statistics.clustered_share(each, examples.uid)
  return statistics.clustered_mean(each, examples.uid)


def per_example(run: collect.Run, metric: str) -> np.ndarray | None:
  """The metric of each comparison [P] from the run's scores, or None.

  With a and b the log-ratios of the chosen and the rejected answer, in nats:
  margin = beta (a - b), accuracy = [a > b], KL = -(a + b) / 2. The loss is
  what the run saved; else, for the sigmoid loss alone with label smoothing s
  (DPO, arXiv:2305.18290, equation 7; cDPO), with m the margin,
  (1 - s) log(1 + exp(-m)) + s log(1 + exp(m)).
  """
  examples = run.examples
  if examples is None:
    return None
  chosen, rejected = examples.chosen_log_ratio, examples.rejected_log_ratio
  if metric == 'accuracy':
    return chosen > rejected
  if metric == 'KL':
    return -0.5 * (chosen + rejected)
  if metric == 'loss' and examples.loss is not None:
    return examples.loss
  settings, beta = _loss_settings(run), _beta(run)
  if beta is None:
    return None
  margin = beta * (chosen - rejected)
  if metric == 'margin':
    return margin
  if settings.get('terms') != {'sigmoid': 1}:
    return None
  smoothing = settings.get('label_smoothing') or 0.0
  loss = (1 - smoothing) * np.logaddexp(0, -margin)
  return loss + smoothing * np.logaddexp(0, margin)


def _loss_settings(run: collect.Run) -> dict:
  settings = run.config.get('loss')
  return settings if isinstance(settings, dict) else {}


def _beta(run: collect.Run) -> float | None:
  """The config's beta; where that is null (the loss's default), the measured.

  Rewards are beta times log-ratios, so beta is the ratio of their means.
  """
  beta = _loss_settings(run).get('beta')
  if isinstance(beta, int | float):
    return beta
  examples = run.examples
  rewards = run.records.get('eval', {}).get(examples.step, {})
  reward = rewards.get('rewards/chosen', np.nan)
  mean = np.mean(examples.chosen_log_ratio)
  return reward / mean if mean and np.isfinite(reward / mean) else None


def _differences(rows: Sequence[Row]) -> tuple[Difference, ...]:
  """Rows minus the first one that has per-example scores.

  A comparison's number is its mean over seeds, so the interval says how far
  other prompts would move the difference, not other seeds.
  """
  found = []
  for metric in ('accuracy', 'margin'):
    scored = [
      (index, *scores)
      for index, row in enumerate(rows)
      if (scores := _group_examples(row, metric))
    ]
    for index, uid, values in scored[1:]:
      first, first_uid, baseline = scored[0]
      if np.array_equal(uid, first_uid):
        interval = statistics.paired_difference(values, baseline, uid)
        found.append(Difference(index, first, metric, interval))
  return tuple(sorted(found, key=lambda difference: difference.row))


def _group_examples(row: Row, metric: str):
  """(uid [P] sorted, mean over seeds [P]), or None if a run has none."""
  uids, values = [], []
  for runs in row.group.by_seed():
    for run in runs:
      each = per_example(run, metric)
      value = row.cells.get((metric, 'after'), Cell(None)).value
      if each is None or value is None or run.examples.step == 0:
        return None
      order = np.argsort(run.examples.uid, kind='stable')
      uids.append(run.examples.uid[order])
      values.append(each[order] / len(runs))  # a seed counts once
  if any(not np.array_equal(uid, uids[0]) for uid in uids):
    return None
  return uids[0], np.sum(values, axis=0) / len(row.group.seeds)
