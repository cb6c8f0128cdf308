"""Losses of the KL divergence of every token's whole distribution.

Comes in: PairScores [P] with KL divergences. Goes out: one value per
comparison [P], not reduced. Notation: h the gap of the log-ratios, K = sum
over the completion's tokens of KL(ref, pi) over the vocabulary, sg
stop-gradient.
"""

import jax

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
