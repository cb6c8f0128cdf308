"""Losses of the likelihood of the chosen completion: SFT and its mixes.

Comes in: PairScores [P]. Goes out: one value per comparison [P], not reduced.
"""

from typing import Literal

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
def nll(
  pairs: PairScores, *, nll_of: Literal['chosen', 'best'] = 'chosen'
) -> Array | dict[str, Array]:
  """Negative log-likelihood of the chosen completion, `-log pi_w`.

  The objective divides the sum over the batch by the number of these tokens
  in the global batch. So every token has the same weight, also under
  accumulation.

  Of K ranked answers, `chosen` imitates the best in K - 1 comparisons, the
  next one in K - 2, and so on. `best` imitates the best answer of the prompt in
  each of its comparisons, as RPO and MPO, whose data are pairs.

  Source: maximum likelihood; as a term beside DPO, arXiv:2404.19733.

  Args:
    pairs: scores of the comparisons; for SFT winner and loser are the same.
    nll_of: whose likelihood: the winner's, or the prompt's best answer's.

  Returns:
    Losses [P] in nats, each a sum over tokens.
  """
  if nll_of == 'best':
    return {'best_tokens': -pairs.policy_best}
  return -pairs.policy_chosen


@register(
  label='SFT',
  paper="maximum likelihood, under TRL's name",
  formula='nll by another name',
  kind='likelihood',
  reward='none',
  normaliser='chosen_tokens',
)
def sft(
  pairs: PairScores, *, nll_of: Literal['chosen', 'best'] = 'chosen'
) -> Array | dict[str, Array]:
  """TRL's name for `nll`, `-log pi_w`.

  Source: maximum likelihood.

  Args:
    pairs: scores of the comparisons.
    nll_of: as in `nll`.

  Returns:
    Losses [P] in nats.
  """
  return nll(pairs, nll_of=nll_of)
