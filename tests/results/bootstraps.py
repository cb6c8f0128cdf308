"""Intervals of statistics.py beside those of bootstraps, on saved runs.

    python -m tests.results.bootstraps RUNS...
    python -m tests.results.bootstraps RUNS... --rliable=PYTHON

The second needs a Python in which `rliable_intervals.PACKAGES` are installed.
Prints, for every cell and difference of the runs, our interval, scipy's BCa
over whole prompts, and rliable's stratified percentile bootstrap; `apart` is
the larger distance of two ends, as a share of our interval's width.
"""

import argparse
import itertools
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np
from scipy import stats

from dpo_jax.results import collect, measures, statistics
from dpo_jax.storage import files

SCRIPT = pathlib.Path(__file__).with_name('rliable_intervals.py')
NAMES = ('loss', 'rewards/accuracies', 'rewards/margins')
DRAWS = 9_999


class Beside(NamedTuple):
  """One number with two intervals."""

  name: str
  ours: statistics.Interval
  low: float  # of the bootstrap
  high: float

  @property
  def apart(self) -> float:
    """The larger distance of two ends, in widths of our interval."""
    ends = abs(self.ours.low - self.low), abs(self.ours.high - self.high)
    return max(ends) / (self.ours.high - self.ours.low)

  @property
  def ratio(self) -> float:
    """The bootstrap's width over ours."""
    return (self.high - self.low) / (self.ours.high - self.ours.low)


def bca(values, prompts, weights=None) -> tuple[float, float]:
  """scipy's BCa interval of the weighted mean; draws whole prompts.

  Source: Efron, J. American Statistical Association 82 (1987).
  """
  weights = np.ones(len(values)) if weights is None else weights
  index = np.unique(prompts, return_inverse=True)[1]
  sums = np.bincount(index, weights * values), np.bincount(index, weights)
  drawn = stats.bootstrap(
    sums,
    lambda total, weight, axis: total.sum(axis) / weight.sum(axis),
    paired=True,
    vectorized=True,
    n_resamples=DRAWS,
    method='BCa',
    rng=np.random.default_rng(0),
  )
  return drawn.confidence_interval.low, drawn.confidence_interval.high


def rliable(python: str, matrices: dict[str, np.ndarray]) -> dict[str, dict]:
  """rliable's intervals {name: {'mean': [low, high], 'iqm': [low, high]}}.

  Args:
    python: that has rliable.
    matrices: name -> [runs, tasks]. Runs are drawn again within each task.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'matrices.npz'
    np.savez(path, **matrices)
    done = subprocess.run(
      [python, str(SCRIPT), str(path)], capture_output=True, text=True
    )
  assert done.returncode == 0, done.stderr[-2000:]
  return files.parse_json(done.stdout.encode(), SCRIPT.name, fix='')


def values_of(run: collect.Run, name: str) -> np.ndarray:
  """The values per comparison [P] behind a metric of a run."""
  measure = next(m for m in measures.choose([name], {name}))
  each = measures.per_example(measure, run.examples.arrays)
  return np.asarray(each, np.float64)


def cells(run: collect.Run, label: str) -> list[Beside]:
  """The metrics of one run, over its prompts."""
  prompts, found = run.examples.prompt, []
  for name in NAMES:
    values = values_of(run, name)
    interval = statistics.clustered_mean
    if set(values) <= {0.0, 1.0}:
      interval = statistics.clustered_share
    ours = interval(values, prompts)
    found.append(Beside(f'{label} {name}', ours, *bca(values, prompts)))
  return found


def differences(first: collect.Run, second: collect.Run, label: str):
  """Metrics of the first minus the second, one seed each."""
  prompts, found = first.examples.prompt, []
  assert np.array_equal(first.examples.uid, second.examples.uid)
  for name in NAMES:
    each = [values_of(run, name) for run in (first, second)]
    jacks = [[statistics.leave_out(values, prompts)] for values in each]
    ours = statistics.difference(*jacks, paired=True)
    other = bca(each[0] - each[1], prompts)
    found.append(Beside(f'{label} {name}', ours, *other))
  return found


def by_rliable(python: str, groups, label: str = 'rliable') -> list[Beside]:
  """What rliable can say: prompts as its runs, and seeds as its runs."""
  matrices, ours = {}, {}
  for number, group in enumerate(groups):
    prompts = group.runs[0].examples.prompt
    for name in NAMES:
      seeds = np.array([values_of(run, name) for run in group.runs])
      # One task, whose runs are the prompts: the bootstrap of one seed.
      key = f'{label}, {len(seeds[0])} prompts, row {number} {name}'
      matrices[key] = seeds[0][:, None]
      ours[key] = statistics.clustered_mean(seeds[0], prompts)
      if len(seeds) > 1:
        key = f'{label}, {len(seeds)} seeds, row {number} {name}'
        matrices[key] = seeds.mean(1)[:, None]
        ours[key] = statistics.mean_ci_t(seeds.mean(1))
        key = f'{label}, {seeds.shape} stratified, row {number} {name}'
        matrices[key] = seeds
        ours[key] = statistics.mean_ci_t(seeds.mean(1))
  found = rliable(python, matrices)
  return [Beside(key, ours[key], *found[key]['mean']) for key in matrices]


def main(arguments=None) -> int:
  """Prints a line per number."""
  parser = argparse.ArgumentParser()
  parser.add_argument('runs', nargs='+')
  parser.add_argument('--rliable', default='', help='a Python that has it')
  options = parser.parse_args(arguments)
  groups = collect.group_runs(collect.collect(options.runs))
  found = []
  for number, group in enumerate(groups):
    found += cells(group.runs[0], f'BCa row {number}')
  for one, other in itertools.combinations(range(len(groups)), 2):
    pair = groups[one].runs[0], groups[other].runs[0]
    found += differences(*pair, f'BCa row {one} - row {other}')
  if options.rliable:
    found += by_rliable(options.rliable, groups)
  for each in found:
    print(
      f'{each.name}: ours {each.ours.mean:.4f} [{each.ours.low:.4f}, '
      f'{each.ours.high:.4f}], bootstrap [{each.low:.4f}, {each.high:.4f}], '
      f'apart {each.apart:.3f}, width {each.ratio:.3f}'
    )
  return 0


if __name__ == '__main__':
  sys.exit(main())
