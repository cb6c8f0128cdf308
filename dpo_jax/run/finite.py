"""metrics and states -> Diverged, if a number is not finite.

Comes in: the metrics of a step on the host, or a state on the devices. Goes
out: nothing, or Diverged, which names the metric or the leaf and its likely
cause. A state is tested on the devices: one scalar comes back.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import optim, tree
from dpo_jax.run.preemption import Diverged
from dpo_jax.types import Frozen, Guard, Params

TOO_FAST = 'a lower optim.learning_rate or optim.clip_norm'


def check_metrics(where: str, metrics: Mapping[str, float], fix: str) -> None:
  """Raises Diverged naming the first metric that is not finite."""
  bad = _not_finite(metrics)
  if bad:
    raise Diverged(f'{where}: {bad}; nothing of this step is saved; fix: {fix}')


def problem(metrics: Mapping[str, float], guard: Guard) -> str:
  """Returns what is wrong with the numbers of an update, '' if nothing is.

  Args:
    metrics: on the host.
    guard: of the update, on the host.
  """
  bad = _not_finite(metrics)
  if bad or not guard.is_bad:
    return bad
  if not guard.second_moment < optim.MOST_MOMENT:
    return f'the largest second moment is {float(guard.second_moment):.3g}'
  if not abs(metrics['loss']) < optim.MOST_LOSS:
    return f'loss is {metrics["loss"]:.3g}'
  if not guard.num_tokens > 0:
    return 'no token of a completion is in its loss'
  return 'a sum of its metrics is not finite'


def _not_finite(metrics: Mapping[str, float]) -> str:
  """Names the first metric that is not finite; '' if all are."""
  return next(
    (
      f'{name} is {value}'
      for name, value in metrics.items()
      if not math.isfinite(value)
    ),
    '',
  )


def check_evaluation(
  step: int,
  metrics: Mapping[str, float],
  params: Params,
  reference: Frozen,
  config: Any,
) -> None:
  """As `check_metrics`, of an evaluation after `step` updates.

  Args:
    step: updates done.
    metrics: on the host.
    params: what is trained.
    reference: what every step reads beside it.
    config: of the run.
  """
  if not all(map(math.isfinite, metrics.values())):
    fix = cause(step, params, reference, config)
    check_metrics(f'step {step}, held out', metrics, fix)


def check_state(where: str, items: Mapping[str, Any], fix: str) -> None:
  """Raises Diverged naming the first leaf that is not finite.

  Args:
    where: in words.
    items: {name: pytree of arrays on the devices}.
    fix: in words.
  """
  leaf = bad_leaf(items)
  if leaf:
    raise Diverged(
      f'{where}: {leaf} is not finite; this step is not saved; fix: {fix}'
    )


def bad_leaf(items: Any) -> str:
  """Returns the name of the first leaf that is not finite, '' if none is."""
  leaves = {
    name: leaf
    for name, leaf in tree.flatten_with_names(items)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
  }
  if not leaves or jax.device_get(_all_finite(list(leaves.values()))):
    return ''
  # Only now leaf by leaf: the usual case waits for one scalar.
  bad = (n for n, x in leaves.items() if not jax.device_get(_all_finite([x])))
  return next(bad, '')


def cause(step: int, params: Params, reference: Frozen, config: Any) -> str:
  """Returns what to mend if the numbers of an evaluation are not finite.

  Args:
    step: updates done.
    params: what is trained.
    reference: what every step reads beside it.
    config: of the run.
  """
  given = config.model.init_from or config.model.preset
  own = config.reference.init_from
  for side, source in (
    (reference.weights, f'config.reference.init_from {own!r}' if own else ''),
    ((reference.base, reference.adapter), ''),
    (params if step == 0 else (), ''),
  ):
    leaf = bad_leaf(side)
    if leaf:
      source = source or f'config.model.init_from {given!r}'
      return f'sound weights: {leaf} of {source} is not finite'
  if step == 0:
    return (
      'other weights or held-out records: no update was made yet, so no '
      'learning rate is at fault'
    )
  return f'{TOO_FAST}, or look at the held-out records'


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> jax.Array:
  """Returns whether all elements of all arrays are finite, bool []."""
  return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
