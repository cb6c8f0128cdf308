"""Runs -> the best value of a swept key, with its interval over seeds.

    python -m dpo_jax.results.optimum RUNS --key=loss.beta \\
      --metrics=-loss,rewards/accuracies

Comes in: runs that differ in `seed` and in one positive number. Goes out: per
metric, where each seed's best value lies, and the mean over seeds. A metric
with '-' before it is better if it is low.

Between the values of the grid, the best one is the vertex of the parabola
through a seed's best point and its two neighbours, over the logarithm of the
key. A seed that is best at an end of the grid tells no more than that: its end
counts, and the line says how many there are.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.results import collect, statistics
from dpo_jax.types import InputError


class Optimum(NamedTuple):
  """The best value of a key by one metric."""

  metric: str  # '-' before it: low is good
  grid_best: float  # the value of the grid whose mean over seeds is best
  grid_value: float  # that mean, in the metric's unit
  best: float  # geometric mean over seeds of their own optimum
  low: float  # 95 % interval over seeds (Student's t, of the logarithm)
  high: float
  per_seed: tuple[float, ...]  # in order of seed
  num_at_ends: int  # seeds that are best at an end of the grid


def find(
  runs: Sequence[collect.Run], key: str, metrics: Sequence[str]
) -> list[Optimum]:
  """Returns the best value of `key` by each metric.

  Args:
    runs: one per seed and value, at least three values, the same of each seed.
    key: dotted config key of a number above 0.
    metrics: names in metrics.jsonl; '-' before one that is good if low.

  Raises:
    InputError: other keys differ, a run is missing or twice, or a run has no
      such metric.
  """
  values, seeds, table = _by_place(runs, key)
  found = []
  for name in metrics:
    metric = name.removeprefix('-')
    sign = -1.0 if name.startswith('-') else 1.0
    scores_SV = np.array(
      [[sign * _read(table[s, v], metric) for v in values] for s in seeds]
    )
    logs = np.log(values)
    places = np.array([_vertex(logs, scores) for scores in scores_SV])
    over_seeds = statistics.mean_ci_t(places)
    means = scores_SV.mean(axis=0)
    best = int(means.argmax())
    found.append(
      Optimum(
        metric=name,
        grid_best=float(values[best]),
        grid_value=float(sign * means[best]),
        best=math.exp(over_seeds.mean),
        low=math.exp(over_seeds.low),
        high=math.exp(over_seeds.high),
        per_seed=tuple(np.exp(places).tolist()),
        num_at_ends=int(np.isin(places, logs[[0, -1]]).sum()),
      )
    )
  return found


def markdown(key: str, optima: Sequence[Optimum]) -> str:
  """The optima as a Markdown table."""
  lines = [
    f'| metric | best {key} of the grid | its mean | best {key} [95 % interval '
    'over seeds] | per seed | at an end |',
    '| --- | ---: | ---: | ---: | --- | ---: |',
  ]
  for one in optima:
    per_seed = ', '.join(f'{value:.2g}' for value in one.per_seed)
    lines.append(
      f'| {one.metric.removeprefix("-")} | {one.grid_best:g} | '
      f'{one.grid_value:.3f} | {one.best:.2g} [{one.low:.2g}, {one.high:.2g}] '
      f'| {per_seed} | {one.num_at_ends} of {len(one.per_seed)} |'
    )
  return '\n'.join(lines) + '\n'


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads a command line: runs, key, metrics."""
  parser = argparse.ArgumentParser(
    prog='python -m dpo_jax.results.optimum',
    description='Best value of a swept key, with its interval over seeds.',
  )
  parser.add_argument('runs', nargs='+', metavar='RUNS')
  parser.add_argument('--key', required=True, help='e.g. loss.beta')
  parser.add_argument(
    '--metrics',
    default='-loss,rewards/accuracies',
    help="names in metrics.jsonl; '-' before one that is good if low",
  )
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  given = parse(arguments)
  try:
    runs = collect.collect(given.runs)
    optima = find(runs, given.key, given.metrics.split(','))
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  print(markdown(given.key, optima), end='')
  return 0


def _by_place(
  runs: Sequence[collect.Run], key: str
) -> tuple[list[float], list, dict]:
  """(values ascending, seeds, {(seed, value): run}) of a complete grid."""
  table, rest = {}, {}
  for run in runs:
    config = collect.counted(run.config)
    seed, value = config.pop('seed'), config.pop(key, None)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value <= 0:
      raise errors.refuse(
        run.path, f'config.{key} is {value!r}', 'name a key of numbers above 0'
      )
    rest = rest or config
    others = [
      k for k in config.keys() | rest.keys() if _differ(config, rest, k)
    ]
    if others:
      raise errors.refuse(
        run.path,
        f'differs from {runs[0].path} in config.{min(others)} too',
        f'give runs that differ in {key} and seed alone',
      )
    if (seed, value) in table:
      raise errors.refuse(
        run.path,
        f'{key} {value:g} of seed {seed} is there twice',
        f'leave it or {table[seed, value].path} out',
      )
    table[seed, value] = run
  values = sorted({value for _, value in table})
  seeds = sorted({seed for seed, _ in table})
  missing = [(s, v) for s in seeds for v in values if (s, v) not in table]
  if missing:
    seed, value = missing[0]
    raise errors.refuse(
      f'config.{key}',
      f'there is no run of {value:g} with seed {seed}',
      'finish the sweep, or leave that seed or value out',
    )
  if len(values) < 3:
    raise errors.refuse(
      f'config.{key}',
      f'the runs have {len(values)} values of it',
      'give runs of at least three',
    )
  return values, seeds, table


def _differ(one: dict, other: dict, key: str) -> bool:
  return json.dumps(one.get(key)) != json.dumps(other.get(key))


def _read(run: collect.Run, metric: str) -> float:
  """The metric at the run's step."""
  metrics = run.records.get('eval', {}).get(run.step, {})
  if metric not in metrics:
    hint = errors.did_you_mean(metric, metrics)
    raise errors.refuse(
      run.path,
      f'reports no {metric!r} at step {run.step}',
      f'{hint}name one that every run reports',
    )
  return metrics[metric]


def _vertex(logs: np.ndarray, scores: np.ndarray) -> float:
  """The place of the largest score; an end of the grid stays where it is.

  Args:
    logs: float64 [V], ascending.
    scores: float64 [V]; high is good. Equal ones: the middle of them counts.
  """
  largest = np.flatnonzero(scores == scores.max())
  best = int(largest[(len(largest) - 1) // 2])
  if best in (0, len(logs) - 1):
    return float(logs[best])
  x, y = logs[best - 1 : best + 2], scores[best - 1 : best + 2]
  square, slope, _ = np.polyfit(x - x[1], y, 2)
  # Three equal scores have no vertex.
  return float(x[1] if square >= 0 else x[1] - slope / (2 * square))


if __name__ == '__main__':
  sys.exit(main())
