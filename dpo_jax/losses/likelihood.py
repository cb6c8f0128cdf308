"""Losses of the likelihood of the chosen answer: SFT and its mixes.

Comes in: PairScores [P]. Goes out: one value a comparison, [P], not reduced.
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
  """Negative log-likelihood of the chosen answer, summed over its tokens.

  The objective divides the sum over the batch by the number of chosen tokens
  in the global batch, so that every token counts the same, also under
  accumulation.

  `-log pi_w`. Source: maximum likelihood; beside DPO, arXiv:2404.19733.

  Args:
    pairs: scores of the comparisons; for SFT winner and loser are the same.

  Returns:
    Losses [P] in nats.
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
  """`nll` under the name that TRL gives it, see there.

  `-log pi_w`. Source: maximum likelihood.

  Args:
    pairs: scores of the comparisons.

  Returns:
    Losses [P] in nats.
  """
  return nll(pairs)
