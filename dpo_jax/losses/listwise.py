"""Losses of all completions of a prompt at once.

Comes in: ListScores [C]. Goes out: one value per prompt, not reduced, in an
array [C]: a batch has at most as many prompts as completions.
"""

import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import ListScores
from dpo_jax.types import Array


@register(
  label='InfoNCA',
  paper='Chen et al. 2024, arXiv:2402.05369',
  formula='cross-entropy of softmax(scores/alpha) and softmax(r_1..r_K)',
  needs=('reference', 'scores'),
  view='lists',
  grid={'alpha': (0.01, 0.1, 1.0)},
  bounds={'beta': '(0, inf)', 'alpha': '(0, inf)'},
)
def infonca(
  lists: ListScores, *, beta: float = 0.1, alpha: float = 1.0
) -> Array:
  """InfoNCA: the policy's rewards rank K completions as the data's scores do.

  `-sum_k softmax(scores / alpha)_k log softmax(r)_k`, r_k = beta a_k, over
  the K completions of a prompt.

  Source: arXiv:2402.05369.

  Args:
    lists: scores of the completions, grouped by prompt.
    beta: strength of the pull to the reference, per nat.
    alpha: temperature of the data's scores, in their own unit. As it goes to
      0, the best completion takes all weight: for K = 2 the sigmoid loss.

  Returns:
    Losses [C] in nats, one per prompt; log K where policy and reference agree.
  """
  target = jnp.exp(lists.log_softmax(lists.scores / alpha))
  return -lists.sum(target * lists.log_softmax(beta * lists.log_ratio))
