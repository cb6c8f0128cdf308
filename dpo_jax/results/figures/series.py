"""Runs -> series: the numbers of a line, with bands over seeds.

Comes in: the runs of a group and what to read of each. Goes out: plain dicts
of the form of figures.json. Draws nothing and reads no files.

A series: label, loss, beta, runs (paths from the output folder), colour,
dashes, marker, context (pale), mark ('line', 'points', 'stairs'), x, y, low,
high (null = no interval), over ('seeds', 'prompts', ''), num_seeds, and
seeds: the [x, y] of each of two seeds, which are drawn thin.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.results import cells, collect, statistics, tables
from dpo_jax.results.figures.looks import Look

_NUM_BINS = 30  # points of a training curve; more are averaged in bins
# A t interval of two seeds is 13 standard errors wide and hides the panel.
MIN_BAND = 3


class Points(NamedTuple):
  """A line: rank 1 each, x ascending."""

  x: np.ndarray
  y: np.ndarray


def read(run: collect.Run, split: str, name: str) -> Points:
  """Returns the steps and values of one metric.

  Training is averaged in at most 30 bins of equally many entries; a bin is
  drawn at the mean of its steps. Entries without the metric are left out, and
  so is the accuracy of a policy that still equals its reference.
  """
  points = [
    (step, entry[name])
    for step, entry in run.records.get(split, {}).items()
    if name in entry
    and math.isfinite(entry[name])
    and not cells.is_tie(step, name, entry[name])
  ]
  if not points:
    return Points(np.zeros(0), np.zeros(0))
  steps, values = np.array(points, np.float64).T
  if split == 'train' and len(steps) > _NUM_BINS:
    width = -(-len(steps) // _NUM_BINS)  # rounded up
    starts = np.arange(0, len(steps), width)
    counts = np.diff(np.append(starts, len(steps)))
    steps = np.add.reduceat(steps, starts) / counts
    values = np.add.reduceat(values, starts) / counts
  return Points(steps, values)


def by_seed(
  group: collect.Group, get: Callable[[collect.Run], Points | None]
) -> list[Points]:
  """The line of each seed; runs that repeat a seed count once.

  Seeds with at most half as many points as the longest are left out.
  """
  seeds = []
  for runs in group.by_seed():
    lines = [line for run in runs if (line := get(run)) and line.x.size]
    if lines:
      seeds.append(lines[0] if len(lines) == 1 else Points(*_shared(lines)[:2]))
  # A seed that has just begun would cut off the mean where it stands.
  longest = max((seed.x.size for seed in seeds), default=0)
  return [seed for seed in seeds if 2 * seed.x.size > longest]


def over_seeds(seeds: Sequence[Points], thin: bool = True) -> dict[str, Any]:
  """Mean and 95 % t interval over seeds, at the x that all of them have.

  If they share no x, the longest seed stands for all.

  Args:
    seeds: a line each.
    thin: whether each of two seeds is drawn too.

  Returns:
    x, y, low, high, over, num_seeds; `seeds` too if there are two.
  """
  x, y, values = _shared(seeds)
  num = len(values)
  low, high = [None] * len(x), [None] * len(x)
  if num >= MIN_BAND:
    intervals = [statistics.mean_ci_t(column) for column in values.T]
    low = [interval.low for interval in intervals]
    high = [interval.high for interval in intervals]
  made = {
    'x': numbers(x),
    'y': numbers(y),
    'low': numbers(low),
    'high': numbers(high),
    'over': 'seeds' if num >= MIN_BAND else '',
    'num_seeds': num,
  }
  if num == 2 and thin:
    made['seeds'] = [[numbers(seed.x), numbers(seed.y)] for seed in seeds]
  return made


def _shared(seeds: Sequence[Points]):
  """(x that all have [n], their mean [n], their values [S, n])."""
  shared = seeds[0].x
  for seed in seeds[1:]:
    shared = np.intersect1d(shared, seed.x)
  if not shared.size:
    longest = max(seeds, key=lambda seed: len(seed.x))
    return longest.x, longest.y, longest.y[None]
  values = np.stack([seed.y[np.isin(seed.x, shared)] for seed in seeds])
  return shared, values.mean(axis=0), values


def describe(
  look: Look, runs: Iterable[collect.Run], folder: str | os.PathLike
) -> dict[str, Any]:
  """What a series is of, and how it is drawn."""
  return {
    'label': look.label,
    'loss': look.loss,
    'beta': look.beta,
    'runs': [tables.run_name(run, folder) for run in runs],
    'colour': look.colour,
    'dashes': look.dashes,
    'marker': look.marker,
  }


def entry(look: Look) -> dict[str, str]:
  """An entry of the legend."""
  return {
    'label': look.label,
    'colour': look.colour,
    'dashes': look.dashes,
    'marker': look.marker,
  }


def numbers(values: Iterable[float | None]) -> list[float | None]:
  """Nine digits, so that a last bit is no change; null for no number."""
  return [
    None if value is None or not math.isfinite(value) else float(f'{value:.9g}')
    for value in values
  ]


def interval_note(all_series: Iterable[dict[str, Any]]) -> str:
  """A sentence on what lines, thin lines and bands of a figure are."""
  shown = [each for each in all_series if not each.get('context')]
  nums = sorted({each.get('num_seeds', 0) for each in shown} - {0})
  parts = []
  if nums and nums[-1] > 1:
    span = f'{nums[0]}–{nums[-1]}' if len(nums) > 1 else str(nums[0])
    parts.append(f'Line: mean of {span} seeds')
  if any(each.get('seeds') for each in shown):
    parts.append('thin line: a seed')
  overs = {each.get('over') for each in shown} - {'', None}
  if overs:
    parts.append(f'band: 95 % interval over {" or ".join(sorted(overs))}')
  text = '; '.join(parts)
  return f'{text[0].upper()}{text[1:]}.' if text else ''
