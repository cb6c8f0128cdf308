"""Losses whose margin, weight or beta follows the policy's own scores.

Comes in: PairScores [P], and the running numbers of a loss that has some.
Goes out: one value per comparison [P], not reduced. Notation: lp = log pi / |y|
the mean log-probability of a completion, nats per token; h the gap of the
log-ratios, D = beta h, s the logistic function, sg stop-gradient. Means and
deviations over a batch count every comparison of positive weight once.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array

_MOMENTUM = 0.9  # weight of the old moving mean, as in alpha-DPO's code
_SMALLEST_STD = 1e-6  # nats per token; below it the deviation is rounding noise
_LARGEST_EXPONENT = 40.0  # e^40: its square is finite in float32


def update_alpha_dpo(
  state: dict[str, Array], pairs: PairScores, **_: Array
) -> dict[str, Array]:
  """Updates the moving mean and deviation of the gap x with a batch.

  Args:
    state: `mean` and `std`, nats per token, which start at 0 as in the
      authors' code.
    pairs: scores of the comparisons.

  Returns:
    The new state, this batch included.
  """
  mean, std = _moments(pairs.mean_log_ratio_gap, pairs.weight)
  new = {'mean': mean, 'std': std}
  return {
    key: _MOMENTUM * state[key] + (1 - _MOMENTUM) * new[key] for key in new
  }


@register(
  label='alpha-DPO',
  paper='Wu et al. 2024, arXiv:2410.10148v4',
  formula='-log s(beta (lp_w - lp_l) - gamma - beta alpha sg[(x - mu)/sd]), '
  'x = a_w/|w| - a_l/|l|, lp = log pi/|y|, mu and sd moving',
  needs=('reference', 'whole_batch', 'state'),
  reward='mean_log_prob',
  grid={'alpha': (0.05, 0.1, 0.2)},
  bounds={'beta': '(0, inf)'},
  state={'mean': 0.0, 'std': 0.0},
  update=update_alpha_dpo,
)
def alpha_dpo(
  pairs: PairScores,
  state: dict[str, Array],
  *,
  beta: float = 2.5,
  gamma: float = 1.5,
  alpha: float = 0.2,
) -> Array:
  """alpha-DPO: SimPO with a margin that follows the reference.

  `-log s(beta (lp_w - lp_l) - gamma - beta alpha sg[(x - mu)/sd])`,
  lp = `log pi/|y|`, x = `a_w/|w| - a_l/|l|`. mu and sd are moving means of the
  batch's mean and unbiased deviation of x: .9 of the old one, from 0. A pair
  that is ahead of the others, measured from the reference, must get further.

  Source: arXiv:2410.10148v4, whose code writes gamma as a ratio to beta.

  Args:
    pairs: scores of the comparisons.
    state: of `update_alpha_dpo`, this batch included.
    beta: per nat per token.
    gamma: target margin, in units of the reward (not a ratio to beta).
    alpha: nats per token of margin, per deviation of x; 0 is SimPO.

  Returns:
    Losses [P] in nats. Where sd is below 1e-6, as before the first update, the
    margin is gamma alone.
  """
  lead = pairs.mean_log_ratio_gap - state['mean']
  scaled = jax.lax.stop_gradient(_in_deviations(lead, state['std']))
  gap = _mean_log_prob_gap(pairs)
  return -jax.nn.log_sigmoid(beta * (gap - alpha * scaled) - gamma)


@register(
  label='AMaPO',
  paper='Deng et al. 2025, arXiv:2511.09385',
  formula='-log s(beta (x - sg[m])), x = log pi_w/|w| - log pi_l/|l|, '
  'm = exp(mu (mu - x)/sd) where x < mu, else 0',
  needs=('whole_batch',),
  kind='reference_free',
  reward='mean_log_prob',
  grid={'beta': (2.0, 2.5, 3.0)},
  bounds={'beta': '(0, inf)'},
)
def amapo(pairs: PairScores, *, beta: float = 2.0) -> Array:
  """AMaPO: pairs behind the batch's mean get a margin, the others none.

  `-log s(beta (x - sg[m]))`, x = `log pi_w/|w| - log pi_l/|l|`,
  m = `exp(mu (mu - x)/sd)` where `x < mu`, else 0. mu and sd are the mean and
  the unbiased deviation of x over the batch.

  Source: arXiv:2511.09385, its code.

  Args:
    pairs: scores of the comparisons.
    beta: per nat per token.

  Returns:
    Losses [P] in nats. The exponent is at most 40, and the margin is 0 where
    sd is below 1e-6, as for one comparison alone.
  """
  gap = _mean_log_prob_gap(pairs)
  mean, std = _moments(gap, pairs.weight)
  exponent = mean * _in_deviations(mean - gap, std)
  margin = jnp.exp(jnp.minimum(exponent, _LARGEST_EXPONENT))
  is_behind = (gap < mean) & (std > _SMALLEST_STD)
  margin = jax.lax.stop_gradient(jnp.where(is_behind, margin, 0.0))
  return -jax.nn.log_sigmoid(beta * (gap - margin))


@register(
  label='Uni-DPO',
  paper='Peng et al. 2025, arXiv:2506.10054',
  formula='-q p log s(D) + nll_weight NLL_w [ref_w > pi_w] [score_w >= '
  'tau_good], q = s(reward_scale (score_w - score_l)), p = s(tau_ref - beta '
  '(lp_w - lp_l))^focal_gamma; log pi and log ref per token (mean) or summed '
  '(sum)',
  needs=('reference', 'scores'),
  grid={'beta': (2.0, 2.5, 3.5), 'nll_weight': (0.001, 0.2)},
  bounds={
    'beta': '(0, inf)',
    'reward_scale': '(0, inf)',
    'focal_gamma': '[0, inf)',
    'nll_weight': '[0, inf)',
  },
)
def uni_dpo(
  pairs: PairScores,
  *,
  beta: float = 2.0,
  reward_scale: float = 0.7,
  tau_ref: float = 0.8,
  focal_gamma: float = 3.0,
  nll_weight: float = 0.001,
  tau_good: float = 3.2,
  reduction: Literal['mean', 'sum'] = 'mean',
) -> Array:
  """Uni-DPO: DPO weighted by the data's quality and by what is learned.

  `-q p log s(D) + nll_weight NLL_w [ref_w > pi_w] [score_w >= tau_good]`,
  q = `s(reward_scale (score_w - score_l))`,
  p = `s(tau_ref - beta (lp_w - lp_l))^focal_gamma`. p has a gradient: it is
  not detached, as in the authors' code.

  Source: arXiv:2506.10054, its code.

  Args:
    pairs: scores of the comparisons.
    beta: per nat per token (reduction 'mean') or per nat ('sum').
    reward_scale: the paper's eta, per unit of the data's score.
    tau_ref: margin of the policy, without the reference, at which p is
      2^-focal_gamma.
    focal_gamma: exponent of p; 0 gives every pair p = 1.
    nll_weight: the paper's lambda, of the chosen completion's negative
      log-likelihood where the reference finds it more likely.
    tau_good: least score of a chosen completion that is imitated, in the
      data's own unit.
    reduction: 'mean' divides every log-probability by its number of tokens, as
      all published settings do; 'sum' does not.

  Returns:
    Losses [P] in nats.
  """
  lengths = pairs.chosen_tokens, pairs.rejected_tokens
  if reduction == 'sum':
    lengths = 1.0, 1.0
  chosen = pairs.policy_chosen / lengths[0]
  gap = chosen - pairs.policy_rejected / lengths[1]
  lead = pairs.chosen_log_ratio / lengths[0]
  lead = lead - pairs.rejected_log_ratio / lengths[1]
  quality = jax.nn.sigmoid(
    reward_scale * (pairs.score_chosen - pairs.score_rejected)
  )
  log_share = focal_gamma * jax.nn.log_sigmoid(tau_ref - beta * gap)
  imitated = (pairs.chosen_log_ratio < 0) & (pairs.score_chosen >= tau_good)
  preferred = -quality * jnp.exp(log_share) * jax.nn.log_sigmoid(beta * lead)
  return preferred - nll_weight * jnp.where(imitated, chosen, 0.0)


def _mean_log_prob_gap(pairs: PairScores) -> Array:
  """lp_w - lp_l, nats per token."""
  chosen = pairs.policy_chosen / pairs.chosen_tokens
  return chosen - pairs.policy_rejected / pairs.rejected_tokens


def _moments(values: Array, weight: Array) -> tuple[Array, Array]:
  """Mean and unbiased deviation of values [P] of positive weight; 0 of none."""
  is_real = weight > 0
  count = jnp.sum(is_real)
  # Padding may hold infinities.
  values = jnp.where(is_real, values, 0.0)
  mean = jnp.sum(values) / jnp.maximum(count, 1)
  squares = jnp.sum(jnp.where(is_real, (values - mean) ** 2, 0.0))
  return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))


def _in_deviations(lead: Array, std: Array) -> Array:
  """lead / std; 0 where std is rounding noise."""
  is_spread = std > _SMALLEST_STD
  return jnp.where(is_spread, lead / jnp.where(is_spread, std, 1.0), 0.0)
