"""Losses of single completions that are desirable or not.

Comes in: LabelledScores [E]. Goes out: one value per completion [E], not
reduced (bco: one per divisor). A comparison is read as a desirable and an
undesirable completion. Notation: a the log-ratio to the reference, r = beta a,
s the logistic function, sg stop-gradient.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import LabelledScores
from dpo_jax.types import Array


@register(
  label='KTO',
  paper='Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7',
  formula='desirable: lambda_D (1 - s(r - z)), undesirable: lambda_U '
  '(1 - s(z - r)), z = sg[beta max(0, mean mismatched a)]',
  needs=('reference', 'labels', 'mismatched', 'whole_batch'),
  view='completions',
  grid={'beta': (0.01, 0.05, 0.1)},
  bounds={
    'beta': '(0, inf)',
    'desirable_weight': '[0, inf)',
    'undesirable_weight': '[0, inf)',
  },
)
def kto(
  completions: LabelledScores,
  *,
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> Array:
  """KTO: gains and losses against a baseline of the whole batch.

  `lambda_D (1 - s(r - z))` of desirable completions, `lambda_U (1 - s(z - r))`
  of undesirable ones, z = `sg[beta max(0, mean mismatched a)]`. The baseline z
  estimates the KL divergence of policy and reference by the mean log-ratio of
  *mismatched* completions: each is scored with a prompt that is not its own.

  Source: arXiv:2402.01306, eq. 7.

  Args:
    completions: scores of desirable and undesirable completions.
    beta: risk aversion, per nat.
    desirable_weight: the paper's lambda_D.
    undesirable_weight: the paper's lambda_U.

  Returns:
    Losses [E]; lambda / 2 where policy and reference agree.
  """
  # Clipped at 0: a KL divergence is not negative, its estimate may be.
  baseline = jax.lax.stop_gradient(
    jnp.maximum(beta * completions.mismatched_log_ratio, 0.0)
  )
  gain = beta * completions.log_ratio - baseline
  return jnp.where(
    completions.desirable == 1,
    desirable_weight * (1 - jax.nn.sigmoid(gain)),
    undesirable_weight * (1 - jax.nn.sigmoid(-gain)),
  )


def update_bco(
  state: dict[str, Array], completions: LabelledScores, *, beta: Array
) -> dict[str, Array]:
  """Updates the running mean rewards of both labels with a batch.

  Args:
    state: `desirable`, `undesirable`: mean reward of all completions so far;
      `num_desirable`, `num_undesirable`: the sums of their weights.
    completions: the batch.
    beta: as in the loss.

  Returns:
    The new state, this batch included.
  """
  rewards = beta * completions.log_ratio
  new = {}
  for label, value in (('desirable', 1), ('undesirable', 0)):
    weight = completions.weight * (completions.desirable == value)
    num = state[f'num_{label}'] + jnp.sum(weight)
    # Padding may hold infinities; 0 times them would be NaN.
    off = jnp.where(weight > 0, weight * (rewards - state[label]), 0.0)
    new[label] = state[label] + jnp.sum(off) / jnp.where(num > 0, num, 1.0)
    new[f'num_{label}'] = num
  return new


@register(
  label='BCO',
  paper='Jung et al. 2024, arXiv:2404.04656',
  formula='-log s(r_w - d) - log s(-(r_l - d)), '
  'd = running mean of (E r_w + E r_l)/2',
  needs=('reference', 'labels', 'whole_batch', 'state'),
  view='completions',
  grid={'beta': (0.01, 0.1)},
  bounds={'beta': '(0, inf)'},
  state={
    'desirable': 0.0,
    'num_desirable': 0.0,
    'undesirable': 0.0,
    'num_undesirable': 0.0,
  },
  update=update_bco,
)
def bco(
  completions: LabelledScores, state: dict[str, Array], *, beta: float = 0.1
) -> dict[str, Array]:
  """Binary classifier optimisation (BCO) with the reward shift.

  `E_D[-log s(r - d)] + E_U[-log s(-(r - d))]`, E_D and E_U the means over
  desirable and undesirable completions. The shift d has no gradient: half the
  sum of the running mean rewards of both labels, this batch included.

  Source: arXiv:2404.04656.

  Args:
    completions: scores of desirable and undesirable completions.
    state: of `update_bco`, this batch included.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [E] in nats by label, each divided by the completions of its own
    label: 2 ln 2 at step 0, where policy and reference agree; ln 2 if the
    batch has one label only.
  """
  shift = jax.lax.stop_gradient(state['desirable'] + state['undesirable']) / 2
  above = beta * completions.log_ratio - shift
  return {
    'desirable': -jax.nn.log_sigmoid(above),
    'undesirable': -jax.nn.log_sigmoid(-above),
  }
