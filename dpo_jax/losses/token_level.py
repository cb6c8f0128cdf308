"""Losses of every token's whole distribution, under policy and reference.

Comes in: PairScores [P] with KL divergences, or with the gaps of the policy
moved away from the reference and toward it. Goes out: one value per
comparison [P], not reduced. Notation: h the gap of the log-ratios, K = sum
over the completion's tokens of KL(ref, pi) over the vocabulary, z the logits,
s the logistic function, sg stop-gradient.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array


@register(
  label='TDPO-1',
  paper='Zeng et al. 2024, arXiv:2404.11999',
  formula='-log s(beta (h - (K_l - K_w))), K = sum of KL(ref, pi) over tokens',
  needs=('reference', 'distributions'),
  grid={'beta': (0.1, 0.5)},
  bounds={'beta': '(0, inf)'},
)
def tdpo1(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """Token-level DPO, first form: h less the difference of the KL sums.

  `-log s(beta (h - (K_l - K_w)))`.

  Source: arXiv:2404.11999.

  Args:
    pairs: scores of the comparisons, with KL divergences.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [P] in nats; ln 2 where policy and reference agree.
  """
  drift = pairs.rejected_kl - pairs.chosen_kl
  return -jax.nn.log_sigmoid(beta * (pairs.log_ratio_gap - drift))


@register(
  label='TDPO-2',
  paper='Zeng et al. 2024, arXiv:2404.11999',
  formula='-log s(beta (h - alpha (K_l - sg K_w)))',
  needs=('reference', 'distributions'),
  grid={'alpha': (0.5, 1.0)},
  bounds={'beta': '(0, inf)', 'alpha': '[0, inf)'},
)
def tdpo2(pairs: PairScores, *, beta: float = 0.1, alpha: float = 0.5) -> Array:
  """Token-level DPO, second form: K of the chosen completion has no gradient.

  `-log s(beta (h - alpha (K_l - sg K_w)))`.

  Source: arXiv:2404.11999.

  Args:
    pairs: scores of the comparisons, with KL divergences.
    beta: strength of the pull to the reference, per nat.
    alpha: weight of the difference of the KL sums.

  Returns:
    Losses [P] in nats; ln 2 where policy and reference agree.
  """
  drift = pairs.rejected_kl - jax.lax.stop_gradient(pairs.chosen_kl)
  return -jax.nn.log_sigmoid(beta * (pairs.log_ratio_gap - alpha * drift))


def update_epsilon_dpo(
  state: dict[str, Array], pairs: PairScores, *, epsilon: Array, **_: Array
) -> dict[str, Array]:
  """Moves beta by the mean step of a batch, for the next batch.

  Args:
    state: `scale` and `next_scale`, factors of beta for the last batch and for
      the next one.
    pairs: scores of the comparisons; every one of positive weight counts once.
    epsilon: as in the loss.

  Returns:
    The new state, whose `scale` is for this batch.
  """
  is_real = pairs.weight > 0
  steps = jnp.sum(jnp.where(is_real, _step(pairs), 0.0))
  mean = steps / jnp.maximum(jnp.sum(is_real), 1)
  scale = state['next_scale']
  return {'scale': scale, 'next_scale': scale / (1 + epsilon * mean)}


@register(
  label='epsilon-DPO',
  paper='Lee et al. 2025, arXiv:2502.13177',
  formula='-log s(beta_t h / (1 + epsilon d)), d = 1 where the gap of log pi '
  'grows away from ref and falls toward it, -1 in the reverse case, else 0; '
  'beta_t <- beta_t / (1 + epsilon mean d)',
  needs=('reference', 'distributions', 'tilted', 'whole_batch', 'state'),
  grid={'epsilon': (0.005, 0.01, 0.02)},
  bounds={'beta': '(0, inf)', 'epsilon': '[0, 1)'},
  state={'scale': 1.0, 'next_scale': 1.0},
  update=update_epsilon_dpo,
)
def epsilon_dpo(
  pairs: PairScores,
  state: dict[str, Array],
  *,
  beta: float = 0.01,
  epsilon: float = 0.01,
) -> Array:
  """epsilon-DPO: DPO whose beta follows what a small change of it would do.

  `-log s(beta_t h / (1 + epsilon d))`. With g the gap of log pi, d is 1 where
  g under softmax((1 + epsilon) z - epsilon z_ref) exceeds g and g exceeds that
  under softmax((1 - epsilon) z + epsilon z_ref); -1 where both are reversed;
  else 0. After a batch, `beta_t <- beta_t / (1 + epsilon mean d)`.

  Source: arXiv:2502.13177, its code.

  Args:
    pairs: scores of the comparisons, with the gaps of the moved policy.
    state: of `update_epsilon_dpo`, this batch included.
    beta: the first beta_t, per nat.
    epsilon: size of a step, relative to beta; 0 is the sigmoid loss.

  Returns:
    Losses [P] in nats; ln 2 where policy and reference agree. An evaluation
    has the beta_t of the last batch that was trained on.
  """
  own = beta * state['scale'] / (1 + epsilon * _step(pairs))
  return -jax.nn.log_sigmoid(own * pairs.log_ratio_gap)


def _step(pairs: PairScores) -> Array:
  """d of epsilon-DPO, -1, 0 or 1 [P]."""
  up = (pairs.away_gap > 0) & (pairs.toward_gap < 0)
  down = (pairs.away_gap < 0) & (pairs.toward_gap > 0)
  return up.astype(pairs.weight.dtype) - down.astype(pairs.weight.dtype)
