"""Records of a run -> the step whose evaluation its cells are of.

Comes in: the metrics of a run by step, its config and the choice of --at. Goes
out: one evaluated step. Reads no files.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_jax import errors
from dpo_jax.results import options
from dpo_jax.run import best

Records = Mapping[str, Mapping[int, Mapping[str, float]]]  # split, step, name


def choose(
  records: Records, config: Mapping[str, Any], at: options.At, where: Any
) -> int:
  """Returns the step; 0 if no later evaluation fits.

  A budget ends at the first evaluation beyond it. Tokens are those of the
  training rows so far, between two logged steps in proportion; KL is the size
  of the metric `kl`, whatever its sign.

  Args:
    records: split -> step -> metrics.
    config: of the run.
    at: which evaluation.
    where: the run, for messages.

  Raises:
    InputError: the run names no best metric, or never reports it.
  """
  evaluations = records.get('eval', {})
  if at.kind == 'best':
    return _best(evaluations, config, at.metric, where)
  chosen = 0
  for step in sorted(evaluations):
    if _spent(records, step, at, where) > (at.limit or 0.0):
      break
    chosen = step
  return chosen


def _spent(records: Records, step: int, at: options.At, where: Any) -> float:
  """How much of the budget is gone at a step; 0 if there is no budget."""
  if at.kind == 'tokens':
    tokens = {
      each: entry['num_tokens']
      for each, entry in sorted(records.get('train', {}).items())
      if 'num_tokens' in entry
    }
    return float(np.interp(step, [0, *tokens], [0, *tokens.values()]))
  if at.kind == 'kl' and step > 0:
    metrics = records['eval'][step]
    if 'kl' not in metrics:
      raise errors.refuse(
        f'--at={at}',
        f'{where} reports no kl at step {step}',
        'leave the run out, or use another --at',
      )
    return abs(metrics['kl'])
  return 0.0


def _best(evaluations, config, metric: str, where: Any) -> int:
  metric = metric or config.get('train', {}).get('keep_best') or ''
  name = metric.removeprefix('-')
  reported = sorted({key for entry in evaluations.values() for key in entry})
  if not metric:
    raise errors.refuse(
      '--at=best',
      f"{where} was trained with train.keep_best=''",
      'name the metric: --at=best:rewards/accuracies, or --at=best:-loss',
    )
  values = {
    step: entry[name] for step, entry in evaluations.items() if name in entry
  }
  if evaluations and not values:
    raise errors.refuse(
      f'--at=best:{metric}',
      f'{where} reports no {name!r}',
      f'{errors.did_you_mean(name, reported)}use one of {", ".join(reported)}',
    )
  return best.best_step(values, metric) or 0
