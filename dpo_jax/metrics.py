"""update -> metrics: what a step or an evaluation reports, as scalars.

Comes in: PairScores [P]. Goes out: sums over comparisons that add up over
batches, and the means made of them, under TRL's names. Logs nothing.
"""

import jax.numpy as jnp

from dpo_jax.losses.pairs import PairScores
from dpo_jax.types import Array


def preference_sums(pairs: PairScores, beta: Array) -> dict[str, Array]:
  """Weighted sums over comparisons; `means` divides them.

  Rewards are DPO's implicit ones, `beta * log(pi / ref)`, in units of beta
  nats, whatever the loss. `kl` is `-mean(log pi - log ref)` over chosen and
  rejected answers: an unbiased estimate of KL(ref || pi) a completion, in
  nats, where the answers were sampled from the reference; a signed drift
  otherwise. `displacement` is the share of comparisons whose *chosen* answer
  became less likely than under the reference: common, and no bug (arXiv:
  2402.13228, 2410.08847).

  Args:
    pairs: scores of the comparisons, weight 0 = padding.
    beta: scalar, as in the loss.

  Returns:
    {name: float32 scalar}, with `comparisons` the sum of the weights.
  """
  chosen, rejected = pairs.chosen_log_ratio, pairs.rejected_log_ratio
  values = {
    'rewards/chosen': beta * chosen,
    'rewards/rejected': beta * rejected,
    'rewards/accuracies': (chosen > rejected).astype(jnp.float32),
    'rewards/margins': beta * (chosen - rejected),
    'kl': -0.5 * (chosen + rejected),
    'displacement': (chosen < 0).astype(jnp.float32),
    'logps/rejected': pairs.policy_rejected,
    'lengths/rejected': pairs.rejected_tokens,
  }
  return _weighted(pairs, values) | likelihood_sums(pairs)


def likelihood_sums(pairs: PairScores) -> dict[str, Array]:
  """Sums that need no reference and no rejected answer, as in SFT."""
  values = {
    'logps/chosen': pairs.policy_chosen,
    'lengths/chosen': pairs.chosen_tokens,
  }
  return _weighted(pairs, values) | {'comparisons': jnp.sum(pairs.weight)}


def means(sums: dict[str, Array]) -> dict[str, Array]:
  """Divides sums by `comparisons`, which is left out."""
  count = jnp.maximum(sums['comparisons'], jnp.finfo(jnp.float32).tiny)
  return {k: v / count for k, v in sums.items() if k != 'comparisons'}


def _weighted(pairs, values):
  return {
    k: jnp.sum(jnp.where(pairs.weight > 0, pairs.weight * v, 0.0))
    for k, v in values.items()
  }
