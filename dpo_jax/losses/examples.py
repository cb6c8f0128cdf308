"""scores -> what is saved of every comparison and labelled answer.

Comes in: an objective and the scores of an evaluation batch. Goes out:
Examples: what tables take their intervals from, and what anyone can compute
another loss from later. Nothing is reduced or written here.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import views
from dpo_jax.losses.objective import LossState, Objective
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array


class Examples(NamedTuple):
  """The judgements of a batch, or of an evaluation; weight 0 = padding."""

  comparisons: PairScores  # [P]
  labelled: views.LabelledScores | None  # [C], where a loss reads labels


def gather(
  objective: Objective,
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  batch: types.Batch,
  hyper: Mapping[str, Array],
  state: LossState | None = None,
) -> Examples:
  """The scores of each judgement, with the loss of each comparison.

  Args:
    objective: the losses.
    policy: scores of the whole batch [C].
    reference: likewise, or None.
    batch: the batch.
    hyper: as in Objective.
    state: the running numbers.

  Returns:
    Examples; `comparisons.loss` is None where the loss is no mean over
    comparisons, and `labelled.mismatched_log_ratio`, KTO's baseline, is that
    of each one's batch.
  """
  pairs = objective.pairs(policy, reference, batch, hyper)
  loss = _losses(objective, policy, reference, batch, hyper, state)
  pairs = pairs._replace(loss=loss)
  if 'completions' not in objective.views:
    return Examples(pairs, None)
  seen = views.gather_labelled(policy, reference, batch)
  num_pairs = 2 * batch.comparisons.weight.shape[0]
  each = seen._replace(
    mismatched_log_ratio=jnp.broadcast_to(
      seen.mismatched_log_ratio, seen.weight.shape
    )
  )
  return Examples(
    pairs, views.LabelledScores(*(field[num_pairs:] for field in each))
  )


def _losses(objective, policy, reference, batch, hyper, state) -> Array | None:
  """The weighted sum of the terms of each comparison [P], if it has one.

  A loss of completions gives a comparison both of its values. A loss that is
  sorted over the batch, of lists or over tokens has none of its own.
  """
  each = objective.values(policy, reference, batch, hyper, state)
  num, total = batch.comparisons.weight.shape[0], 0.0
  for loss in objective.losses:
    if loss.kind == 'transport':
      return None
    _, values = each[loss.name]
    if loss.view == 'completions':
      values = values[:num] + values[num : 2 * num]
    if loss.normaliser == 'completions':  # twice as many as comparisons
      values = values / 2
    if loss.normaliser in ('chosen_tokens', 'lists'):
      return None
    total = total + hyper[f'weight/{loss.name}'] * values
  return total
