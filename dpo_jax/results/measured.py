"""Runs -> values: what a run measured, and how well its prompts know it.

Comes in: a `Run`, or the runs of one group, and a measure. Goes out: the value
that the run reported, and the jackknife of what it saved per comparison.
Computes no reward and no loss, and compares no rows.
"""

import math

import numpy as np

from dpo_jax.results import collect, measures, statistics


def value(run: collect.Run, measure: measures.Measure, when: str):
  """What the run reported, 'before' at step 0 or 'after' at its step; None."""
  step = 0 if when == 'before' else run.step
  # A run that was evaluated at step 0 only has no 'after'.
  if when == 'after' and step == 0:
    return None
  return run.records.get('eval', {}).get(step, {}).get(measure.name)


def over_prompts(
  run: collect.Run, measure: measures.Measure, when: str, mean: float
) -> statistics.Interval | None:
  """Interval from the saved values, if they give this very mean."""
  step = 0 if when == 'before' else run.step
  jack = saved(run, measure, step, mean)
  if jack is None:
    return None
  if measure.is_share:
    interval = _of_share(run.examples, measure, jack, step)
  else:
    interval = statistics.interval(jack)
  # One prompt alone tells nothing.
  return interval if interval and math.isfinite(interval.low) else None


def saved(
  run: collect.Run, measure: measures.Measure, step: int, mean: float
) -> statistics.Jackknife | None:
  """The mean of the values that a run saved; None if it is not `mean`."""
  examples = run.examples
  if examples is None or examples.step != step:
    return None
  jack = measures.jackknife(measure, examples.arrays, examples.prompt)
  # The run summed float32 in another order; another quantity under the same
  # name differs by far more than the tolerance.
  if jack is None or not math.isclose(
    jack.mean, mean, rel_tol=1e-3, abs_tol=1e-4
  ):
    return None
  return jack


def is_tie(step: int, name: str, mean: float) -> bool:
  """Whether an accuracy says only that policy and reference are equal.

  At step 0 no reward differs, and a comparison that is not won counts 0.
  """
  return step == 0 and name == measures.ACCURACY.name and mean == 0


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
