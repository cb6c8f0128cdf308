"""What a run measured, as the checks of symptoms.py read it.

Comes in: metrics of two evaluations, their history, the config, values per
comparison. Goes out: a `Case`, and numbers as text. Judges nothing.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
  """What a run measured; any part may be empty."""

  first: Mapping[str, float]  # evaluation before training
  last: Mapping[str, float]  # evaluation to speak about
  # split -> step -> metrics, steps ascending: 'train', 'eval', and 'samples'
  # with the mean `num_tokens` of what the run sampled
  history: Mapping[str, Mapping[int, Mapping[str, float]]]
  knobs: Mapping[str, Any]  # {dotted key: value} of the config
  arrays: Mapping[str, np.ndarray]  # per comparison [P], of the last evaluation

  def change(self, name: str) -> float:
    """Last minus first of a held-out metric; NaN unless both are there."""
    return self.last.get(name, math.nan) - self.first.get(name, math.nan)

  def steps(self, split: str, name: str) -> dict[int, float]:
    """{step: value} of a metric of a split, finite values only, ascending."""
    return {
      step: metrics[name]
      for step, metrics in sorted(self.history.get(split, {}).items())
      if math.isfinite(metrics.get(name, math.nan))
    }

  def knob(self, key: str) -> str:
    """A key of the config with its value, if that is known."""
    value = self.knobs.get(key)
    return key if value is None else f'{key} (now {value:g})'

  def has_loss(self, name: str) -> bool:
    """Whether a loss is one of the run's terms."""
    return bool((self.knobs.get('loss.terms') or {}).get(name))


def mean_at_end(values: Mapping[int, float]) -> float:
  """Mean of the last tenth of the steps; NaN if there are none."""
  return mean_before(values, max(values, default=0))


def mean_before(values: Mapping[int, float], step: int) -> float:
  """Mean of the tenth of the steps that ends at `step`."""
  before = [value for at, value in values.items() if at <= step]
  count = max(1, len(values) // 10)
  return float(np.mean(before[-count:])) if before else math.nan


def short(value: float) -> str:
  """Three digits."""
  return f'{value:.3g}'
