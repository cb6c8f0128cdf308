"""Losses of the likelihood of the chosen completion: SFT and its mixes.

Comes in: PairScores [P]. Goes out: one value per comparison [P], not reduced.
"""

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array


@register(
  label='NLL (SFT)',
  paper='maximum likelihood; RPO: Pang et al. 2024, arXiv:2404.19733',
  formula='-log pi_w, over the number of chosen tokens of the batch',
  kind='likelihood',
  reward='none',
  normaliser='chosen_tokens',
)
def nll(pairs: PairScores) -> Array:
  """Negative log-likelihood of the chosen completion, `-log pi_w`.

  The objective divides the sum over the batch by the number of chosen tokens
  in the global batch. So every token has the same weight, also under
  accumulation.

  Source: maximum likelihood; as a term beside DPO, arXiv:2404.19733.

  Args:
    pairs: scores of the comparisons; for SFT winner and loser are the same.

  Returns:
    Losses [P] in nats, each a sum over tokens.
  """
  return -pairs.policy_chosen


@register(
  label='SFT',
  paper="maximum likelihood, under TRL's name",
  formula='nll by another name',
  kind='likelihood',
  reward='none',
  normaliser='chosen_tokens',
)
def sft(pairs: PairScores) -> Array:
  """TRL's name for `nll`, `-log pi_w`.

  Source: maximum likelihood.

  Args:
    pairs: scores of the comparisons.

  Returns:
    Losses [P] in nats.
  """
  return nll(pairs)
