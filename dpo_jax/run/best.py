"""held-out metrics -> the best step of a run, and the step that a flag names.

Comes in: the evaluations of metrics.jsonl and the metric of train.keep_best.
Goes out: the first step with the best value. Saves nothing; metrics.jsonl is
where the values are.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.storage import metrics_file
from dpo_jax.storage.run_dir import RunDir

FLAG = '--step'


class Best:
  """The best evaluation of a run so far.

  Args:
    metric: of config.train.keep_best: a name, with '-' before it if the lowest
      value is the best; '' keeps none.
    directory: of the run, whose evaluations so far count.
  """

  def __init__(self, metric: str, directory: RunDir):
    """Reads the evaluations that the run has."""
    self._metric = metric
    self._values = _values(directory, metric) if metric else {}

  @property
  def step(self) -> int | None:
    """The first step with the best value; None if there is none."""
    return best_step(self._values, self._metric)

  def forget_after(self, step: int) -> None:
    """Forgets later evaluations: the run goes on from this step."""
    self._values = {k: v for k, v in self._values.items() if k <= step}

  def take(self, step: int, metrics: Mapping[str, float]) -> bool:
    """Takes an evaluation; returns whether its step is the best now.

    Raises:
      InputError: there is no such metric.
    """
    if not self._metric:
      return False
    name = self._metric.removeprefix('-')
    if name not in metrics:
      raise errors.refuse(
        'config.train.keep_best',
        f'{name!r} is no held-out metric of this run',
        f'{errors.did_you_mean(name, metrics)}use one of {", ".join(metrics)}, '
        "with '-' before it if low is good",
      )
    self._values[step] = metrics[name]
    return self.step == step


def best_step(values: Mapping[int, float], metric: str) -> int | None:
  """The first step with the best value; None if there is none.

  Args:
    values: of the metric, by step.
    metric: with '-' before it if the lowest value is the best.
  """
  signed = {step: _signed(metric, value) for step, value in values.items()}
  # The first of equals: max() keeps the earliest of the ascending steps.
  return max(sorted(signed), key=signed.__getitem__, default=None)


def check_flag(text: str) -> None:
  """Refuses a --step that is neither a number nor 'best'."""
  if text != 'best' and not re.fullmatch('[0-9]{1,9}', text):
    raise errors.refuse(
      FLAG, f'{text!r} is not allowed', 'use a number of updates, or best'
    )


def parse_step(text: str, directory: RunDir, config: Any) -> int | None:
  """The step that a flag names: a number, 'best', or '' for the newest.

  Args:
    text: of the flag.
    directory: of the run.
    config: of the run.

  Returns:
    None for the newest.

  Raises:
    InputError: neither, or the run has no best step.
  """
  if not text:
    return None
  check_flag(text)
  if text != 'best':
    return int(text)
  metric = config.train.keep_best
  if not metric:
    raise errors.refuse(
      FLAG,
      "'best' is not known: the run was trained with train.keep_best=''",
      "give a number, or train with --config.train.keep_best='-loss'",
    )
  step = Best(metric, directory).step
  if step is None:
    raise errors.refuse(
      directory.path / 'metrics.jsonl',
      f'no evaluation has {metric!r}',
      f'give {FLAG} a number',
    )
  return step


def _values(directory: RunDir, metric: str) -> dict[int, float]:
  """{step: value} of the run's evaluations."""
  path, name = directory.path / 'metrics.jsonl', metric.removeprefix('-')
  if not path.exists():
    return {}
  return {
    entry['step']: entry[name]
    for entry in metrics_file.read(path)
    if entry['split'] == 'eval' and entry.get(name) is not None
  }


def _signed(metric: str, value: float) -> float:
  value = -value if metric.startswith('-') else value
  return value if math.isfinite(value) else -math.inf
