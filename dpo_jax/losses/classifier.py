"""Losses that read D as the margin of a binary classifier.

Comes in: PairScores [P]. Goes out: one value per comparison [P], not reduced.
Notation: h = a_w - a_l the difference of the log-ratios, D = beta h, s the
logistic function. The classifier says which of two completions was chosen;
`sigmoid` and `hinge` of pairwise.py are the best known of these losses.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array

_LARGEST_EXPONENT = 40.0  # e^40: its square is finite in float32


@register(
  label='GPO exponential',
  paper='Tang et al. 2024 (GPO), arXiv:2402.05749',
  formula='exp(-D)',
  needs=('reference',),
  kind='difference',
  grid={'beta': (0.01, 0.05, 0.1)},
  bounds={'beta': '(0, inf)'},
)
def exponential(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """Exponential loss of the implicit reward margin, `exp(-D)`.

  The loss of AdaBoost: a comparison in the wrong order has a gradient that
  grows without bound. Below D = -40 the value goes on as the tangent there, so
  that value and gradient stay finite.

  Source: arXiv:2402.05749.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [P]; 1 at D = 0.
  """
  exponent = -beta * pairs.log_ratio_gap
  # The unused form gets a harmless number: no gradient is infinity times zero.
  beyond = exponent > _LARGEST_EXPONENT
  tangent = jnp.exp(_LARGEST_EXPONENT) * (exponent - _LARGEST_EXPONENT + 1)
  return jnp.where(beyond, tangent, jnp.exp(jnp.where(beyond, 0.0, exponent)))


@register(
  label='GPO truncated quadratic',
  paper='Tang et al. 2024 (GPO), arXiv:2402.05749',
  formula='max(0, 1 - D)^2',
  needs=('reference',),
  kind='difference',
  grid={'beta': (0.01, 0.05, 0.1)},
  bounds={'beta': '(0, inf)'},
)
def truncated_quadratic(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """Squared hinge on the implicit reward margin, `max(0, 1 - D)^2`.

  As IPO it regresses the margin to a target, but a margin beyond the target
  costs nothing.

  Source: arXiv:2402.05749.

  Args:
    pairs: scores of the comparisons.
    beta: margin per nat; the target gap is 1 / beta nats.

  Returns:
    Losses [P]; 1 at D = 0, and 0 with no gradient from D = 1 on.
  """
  return jax.nn.relu(1 - beta * pairs.log_ratio_gap) ** 2


@register(
  label='GPO Savage',
  paper='Tang et al. 2024 (GPO), arXiv:2402.05749',
  formula='1 / (1 + exp(D))^2',
  needs=('reference',),
  kind='difference',
  grid={'beta': (0.01, 0.05, 0.1)},
  bounds={'beta': '(0, inf)'},
)
def savage(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """Savage loss of the implicit reward margin, `1 / (1 + exp(D))^2`.

  It is bounded and not convex: a comparison that is far in the wrong order,
  perhaps a flipped label, has next to no gradient.

  Source: arXiv:2402.05749.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [P] in (0, 1); 1 / 4 at D = 0.
  """
  return _chance_of_error(beta * pairs.log_ratio_gap) ** 2


@register(
  label='SymPO',
  paper='Nishimori et al. 2025, arXiv:2505.24709',
  formula='s(-D) (sigmoid) or min(1, max(0, 1/2 - D/2)) (ramp)',
  needs=('reference',),
  kind='difference',
  grid={'beta': (0.05, 0.1, 0.5)},
  bounds={'beta': '(0, inf)'},
)
def sympo(
  pairs: PairScores,
  *,
  beta: float = 0.1,
  shape: Literal['sigmoid', 'ramp'] = 'sigmoid',
) -> Array:
  """SymPO: symmetric losses, whose optimum flipped labels do not move.

  `s(-D)` (sigmoid) or `min(1, max(0, 1/2 - D/2))` (ramp). The losses of D and
  of -D add up to 1, so labels flipped with probability e < 1/2 only scale the
  mean loss and shift it by a constant. The authors' code clamps the reward of
  each completion to +-10 first, which is left out here.

  Source: arXiv:2505.24709.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    shape: 'sigmoid' or 'ramp'; the ramp has no gradient outside of
      -1 < D < 1.

  Returns:
    Losses [P] in [0, 1]; 1 / 2 at D = 0.
  """
  margin = beta * pairs.log_ratio_gap
  if shape == 'ramp':
    return jnp.clip(0.5 - 0.5 * margin, 0.0, 1.0)
  return _chance_of_error(margin)


def _chance_of_error(margin: Array) -> Array:
  """s(-margin), with a gradient that does not round to 0 at either end."""
  # The derivative of jax.nn.sigmoid is s (1 - s), which is 0 once s rounds
  # to 1: from 17 on in float32.
  return jnp.exp(jax.nn.log_sigmoid(-margin))
