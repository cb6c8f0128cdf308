"""Per-example values of a group -> one array each, its seeds pooled.

Comes in: a group of runs. Goes out: the values of every comparison of every
seed, with the prompt of each, by which intervals cluster. Draws nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.results import collect


class Pooled(NamedTuple):
  """Comparisons of all runs of a group, [N] each."""

  runs: tuple[collect.Run, ...]  # those that saved the fields
  fields: dict[str, np.ndarray]
  prompt: np.ndarray
  weight: np.ndarray

  @property
  def num_seeds(self) -> int:
    """Distinct seeds behind the values."""
    return len({run.config.get('seed') for run in self.runs})


def _after(run: collect.Run):
  """The values of the run's own step; None if that is the start."""
  return run.examples if run.examples and run.examples.step > 0 else None


def pool(
  group: collect.Group,
  *names: str,
  get: Callable[[collect.Run], Any] = _after,
) -> Pooled | None:
  """Joins the comparisons of a group's runs; None if no run saved them all.

  Args:
    group: the runs.
    names: the fields, such as 'reward_chosen'.
    get: run -> the examples of one evaluation, or None.
  """
  saved = [(run, get(run)) for run in group.runs]
  saved = [
    (run, examples)
    for run, examples in saved
    if examples is not None and all(n in examples.arrays for n in names)
  ]
  if not saved:
    return None
  parts = [examples for _, examples in saved]
  # Prompts are bytes of a fixed width, or whatever uids are.
  return Pooled(
    tuple(run for run, _ in saved),
    {
      name: np.concatenate([part.arrays[name] for part in parts])
      for name in names
    },
    np.concatenate([part.prompt for part in parts]),
    np.concatenate(
      [part.arrays.get('weight', np.ones(len(part.uid))) for part in parts]
    ),
  )


def equal_bins(values: np.ndarray, num: int) -> list[np.ndarray]:
  """Indexes of at most `num` bins of about equally many values, ascending.

  Equal values share a bin.
  """
  inner = np.quantile(values, np.linspace(0, 1, num + 1)[1:-1], method='higher')
  index = np.digitize(values, np.unique(inner))
  return [np.flatnonzero(index == bin) for bin in np.unique(index)]
