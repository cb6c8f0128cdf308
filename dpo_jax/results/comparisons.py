"""Groups of runs -> differences between them, with tests.

Comes in: groups and a measure. Goes out: the difference of pairs of groups on
the same evaluation comparisons, and the groups that no other one beats. Makes
no cells and formats nothing.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.results import collect, measured, measures, statistics

# Whether rows differ is decided at this level, after Holm.
ALPHA = 1 - statistics.LEVEL


class Scored(NamedTuple):
  """A group's values on the evaluation data, of one measure."""

  uid: np.ndarray  # [P], sorted
  prompt: np.ndarray  # [P]
  # seed -> the mean over the comparisons, of the runs of that seed
  seeds: Mapping[Any, statistics.Jackknife]


def score(group: collect.Group, measure: measures.Measure) -> Scored | None:
  """The group's values; None if a run that its cell counts saved none."""
  ids, seeds = [], {}
  for run in group.runs:
    mean = measured.value(run, measure, 'after')
    if mean is None:
      continue  # as in the cell
    if measured.saved(run, measure, run.step, mean) is None:
      return None
    # Runs may hold the comparisons in another order. Those of one record keep
    # theirs.
    order = np.argsort(run.examples.uid, kind='stable')
    ids.append((run.examples.uid[order], run.examples.prompt[order]))
    arrays = {name: array[order] for name, array in run.examples.arrays.items()}
    jack = measures.jackknife(measure, arrays, ids[0][1])
    jack = jack._replace(mean=mean)
    seeds.setdefault(run.config.get('seed'), []).append(jack)
  if not ids or any(not np.array_equal(uid, ids[0][0]) for uid, _ in ids):
    return None
  # Runs that repeat a seed count once.
  return Scored(
    *ids[0], {seed: statistics.average(each) for seed, each in seeds.items()}
  )


def difference(first: Scored, second: Scored) -> statistics.Interval | None:
  """First minus second; None if they were evaluated on other comparisons.

  The interval is over prompts, and over seeds too if both have several.
  """
  same = np.array_equal(first.uid, second.uid)
  if not same or not np.array_equal(first.prompt, second.prompt):
    return None
  return statistics.difference(
    list(first.seeds.values()),
    list(second.seeds.values()),
    paired=list(first.seeds) == list(second.seeds),
  )


def unbeaten(
  scored: Sequence[Scored | None], better: str
) -> tuple[frozenset[int], int]:
  """Indices that no other one beats significantly, and the number of tests.

  All pairs are tested, and Holm's method adjusts their p-values: index i is
  beaten if some j is better and their adjusted p is at most ALPHA.

  Args:
    scored: of every group with a value.
    better: 'higher' or 'lower'.

  Returns:
    No index if all are unbeaten, or if two of them cannot be compared.
  """
  if not better or len(scored) < 2 or any(each is None for each in scored):
    return frozenset(), 0
  pairs = list(itertools.combinations(range(len(scored)), 2))
  intervals = [difference(scored[i], scored[j]) for i, j in pairs]
  if any(each is None for each in intervals):
    return frozenset(), 0
  tests = [statistics.p_value(each) for each in intervals]
  if not np.isfinite(tests).all():
    return frozenset(), 0
  sign = 1 if better == 'higher' else -1
  beaten = {
    j if sign * interval.mean > 0 else i
    for (i, j), interval, p in zip(pairs, intervals, statistics.holm(tests))
    if p <= ALPHA
  }
  kept = frozenset(range(len(scored))) - beaten
  return (kept if beaten else frozenset()), len(pairs)
