"""What `rewards/...` means for a loss: the reward that it trains.

Comes in: scores of completions and the hyper-parameters. Goes out: a reward
each. A loss without a reference has a reward without one.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from dpo_jax.losses.reference_free import alpha_reward
from dpo_jax.types import Array


def implicit_reward(
  name: str,
  policy: Array,
  reference: Array,
  num_tokens: Array,
  hyper: Mapping[str, Array],
) -> Array:
  """The reward of completions, in units of the loss's margin.

  Args:
    name: one of registry.REWARDS but 'none': `log_ratio` beta (log pi - log
      ref), `log_prob` beta log pi, `mean_log_prob` beta log pi / |y|,
      `alpha_log_prob` AlphaPO's beta (1 - p^-alpha) / alpha.
    policy: log pi, sums over tokens.
    reference: log ref, likewise.
    num_tokens: |y|.
    hyper: `beta` is read (1 where there is none) and `alpha`.

  Returns:
    Rewards of the shape of `policy`.
  """
  beta = hyper.get('beta', jnp.ones((), policy.dtype))
  if name == 'log_ratio':
    return beta * (policy - reference)
  if name == 'log_prob':
    return beta * policy
  if name == 'mean_log_prob':
    return beta * policy / num_tokens
  return beta * alpha_reward(policy / num_tokens, hyper['alpha'])
