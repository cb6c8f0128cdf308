"""Losses of single completions with a score, against the reference's answers.

Comes in: LabelledScores [E] with quantiles. Goes out: one value per completion
[E], not reduced. A comparison is read as its two completions; labels are not
read. Notation: a the log-ratio to the reference, q the share of the
reference's own answers to the prompt that score no better.
"""

import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import LabelledScores
from dpo_jax.types import Array


@register(
  label='QRPO',
  paper='Matrenok et al. 2025, arXiv:2507.08068, eq. 11',
  formula='(q - beta log Z - beta a)^2, q = share of the reference answers '
  'that score no better, log Z = log beta + 1/beta',
  needs=('reference', 'reference_scores'),
  view='completions',
  grid={'beta': (0.0003, 0.001, 0.003, 0.01, 0.1)},
  bounds={'beta': '(0, inf)'},
)
def qrpo(completions: LabelledScores, *, beta: float = 0.1) -> Array:
  """QRPO: regression of each answer's log-ratio to its optimal value.

  `(q - beta log Z - beta a)^2`, log Z = `log beta + 1/beta`. The quantile q is
  the reward: under the reference it is uniform on [0, 1], so that the
  partition function Z = beta (exp(1/beta) - 1) is known, here without the 1.

  Source: arXiv:2507.08068, eq. 11.

  Args:
    completions: scores and quantiles of completions.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [E]; 0 where the policy is the optimal one.
  """
  # beta log Z, without 1/beta.
  log_partition = beta * jnp.log(beta) + 1
  residual = completions.quantile - log_partition
  return (residual - beta * completions.log_ratio) ** 2
