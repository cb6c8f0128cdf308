"""Options that read the whole batch: a beta and a mean of all comparisons.

Comes in: beta, or the values of a loss, with the comparisons of the global
batch. Goes out: another beta, another mean. options.py has the forms.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register_option
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array

_SMALLEST_STD = 1e-6  # nats; if all gaps are equal, so are all chances
_MOST_DRAWS = 2**31 - 1  # fits a uint32; counting starts again after it


def update_beta_dpo(
  state: dict[str, Array],
  pairs: PairScores,
  *,
  beta_dpo_momentum: Array,
  **_: Array,
) -> dict[str, Array]:
  """Updates the moving mean and deviation of the gap h with a batch.

  Args:
    state: `mean` and `std` in nats, which start at 0 as in the authors' code
      (every gap is 0 if the policy starts at its reference); `num_draws`.
    pairs: scores of the comparisons.
    beta_dpo_momentum: weight of the old value in [0, 1).

  Returns:
    The new state, this batch included.
  """
  is_real = (pairs.weight > 0).astype(pairs.weight.dtype)
  count = jnp.sum(is_real)
  gap = jnp.where(is_real > 0, pairs.log_ratio_gap, 0.0)
  mean = jnp.sum(gap) / jnp.maximum(count, 1)
  squares = jnp.sum(is_real * (gap - mean) ** 2)
  # The unbiased deviation, as in the authors' code.
  std = jnp.sqrt(squares / jnp.maximum(count - 1, 1))

  def mixed(old, new):
    return beta_dpo_momentum * old + (1 - beta_dpo_momentum) * new

  return {
    'mean': mixed(state['mean'], mean),
    'std': mixed(state['std'], std),
    'num_draws': state['num_draws'] + 1,
  }


def select_beta_dpo(
  state: dict[str, Array], pairs: PairScores, *, beta_dpo_rho: Array, **_: Array
) -> Array:
  """Draws the comparisons that a training step keeps.

  It keeps floor((1 - rho) count) of them, at least one, drawn without
  replacement with chances proportional to exp(-((h - mean) / std)^2 / 2):
  those with the largest log-chance plus Gumbel noise. The noise depends on
  the number of draws so far alone, so that a resumed run draws the same.

  Args:
    state: of `update_beta_dpo`, this batch included.
    pairs: scores of the comparisons.
    beta_dpo_rho: share of the comparisons to leave out.

  Returns:
    Bool [P], True for the comparisons that are kept.
  """
  is_real = pairs.weight > 0
  scaled = (pairs.log_ratio_gap - state['mean']) / jnp.maximum(
    state['std'], _SMALLEST_STD
  )
  draw = jnp.mod(state['num_draws'], _MOST_DRAWS).astype(jnp.uint32)
  key = jax.random.fold_in(jax.random.key(0), draw)
  noise = jax.random.gumbel(key, is_real.shape, pairs.weight.dtype)
  score = jnp.where(is_real, noise - scaled**2 / 2, -jnp.inf)
  rank = jnp.argsort(jnp.argsort(-score))
  # A float32 product such as 0.8 * 5 may lie just below the integer.
  num_kept = jnp.floor((1 - beta_dpo_rho) * jnp.sum(is_real) + 1e-3)
  return is_real & (rank < jnp.maximum(num_kept, 1))


@register_option(
  label='beta-DPO',
  paper='Wu et al. 2024, arXiv:2407.08639, and its code',
  formula='beta -> sg[max(beta (1 + a (mean h - EMA h)), 1e-3)], means over '
  'the (1-rho) fraction of the batch that is drawn by a Gaussian weight',
  changes='beta',
  accepts=('difference',),
  needs=('reference', 'whole_batch', 'state'),
  bounds={'beta_dpo_rho': '[0, 1)', 'beta_dpo_momentum': '[0, 1)'},
  state={'mean': 0.0, 'std': 0.0, 'num_draws': 0.0},
  update=update_beta_dpo,
  select=select_beta_dpo,
)
def beta_dpo(
  beta: Array,
  pairs: PairScores,
  state: dict[str, Array],
  *,
  beta_dpo_a: float = 0.6,
  beta_dpo_rho: float = 0.2,
  beta_dpo_momentum: float = 0.9,
  beta_dpo_per: Literal['batch', 'comparison'] = 'batch',
) -> Array:
  """beta-DPO: the beta of a batch grows with its gap h over the moving mean.

  `max(beta (1 + a (mean h - EMA h)), 1e-3)`, without gradient; h is in nats,
  as in the authors' code. A training step keeps only the comparisons that
  `select_beta_dpo` draws, and the mean is over those; an evaluation keeps all.
  Means of h leave the weights of comparisons out, but for those of 0.

  Source: arXiv:2407.08639, and its code.

  Args:
    beta: the loss's beta, per nat.
    pairs: scores of the comparisons.
    state: of `update_beta_dpo`, this batch included.
    beta_dpo_a: the paper's alpha, per nat; 0 changes no beta.
    beta_dpo_rho: share of comparisons that a training step leaves out.
    beta_dpo_momentum: weight of the old mean and deviation.
    beta_dpo_per: 'comparison' gives each its own beta, by its own h: the
      paper's ablation.

  Returns:
    Betas [P].
  """
  del beta_dpo_rho, beta_dpo_momentum  # read by select and update
  gap = pairs.log_ratio_gap
  if beta_dpo_per == 'batch':
    is_real = pairs.weight > 0
    mean = jnp.sum(jnp.where(is_real, gap, 0.0)) / jnp.maximum(
      jnp.sum(is_real), 1
    )
    gap = jnp.broadcast_to(mean, gap.shape)
  scaled = jnp.maximum(beta * (1 + beta_dpo_a * (gap - state['mean'])), 1e-3)
  return jax.lax.stop_gradient(scaled)


@register_option(
  label='Dr. DPO',
  paper='Wu et al. 2024, arXiv:2407.07880, and its code',
  formula="mean L -> -b' log mean exp(-L/b'), means over the batch",
  changes='mean',
  accepts=('difference', 'absolute', 'reference_free'),
  needs=('whole_batch',),
  bounds={'dr_beta': '(0, inf)'},
)
def dr_dpo(values: Array, weight: Array, *, dr_beta: float = 1.0) -> Array:
  """Dr. DPO: comparisons with a large loss, perhaps mislabelled, count less.

  `-b' log mean exp(-L/b')` in place of `mean L`, weighted means over the
  global batch. A comparison's gradient has the factor `exp(-L/b')` over its
  mean. In a mix each loss has its own; the NLL of cpo, orpo and nll keeps its
  mean over tokens.

  Source: arXiv:2407.07880, and its code, where the mean is over one device's
  part of the batch.

  Args:
    values: losses [P].
    weight: weights [P]; 0 = padding.
    dr_beta: the paper's beta', in the unit of the losses; the mean at infinity.

  Returns:
    Scalar between the least loss and the mean loss; 0 if all weights are 0.
  """
  total = jnp.sum(weight)
  share = weight / jnp.where(total > 0, total, 1.0)
  least = jnp.min(jnp.where(weight > 0, values, jnp.inf))
  least = jax.lax.stop_gradient(jnp.where(total > 0, least, 0.0))
  above = jnp.where(weight > 0, (values - least) / dr_beta, 0.0)
  # Near 1 (a large b') the mean's distance to 1 has digits that it has not.
  fall = jnp.sum(share * jnp.expm1(-above))
  near_1 = fall > -0.5
  mean = jnp.sum(share * jnp.exp(-above))
  log_mean = jnp.where(
    near_1,
    jnp.log1p(jnp.where(near_1, fall, 0.0)),
    jnp.log(jnp.where(near_1, 1.0, mean)),
  )
  return least - dr_beta * log_mean
