"""Losses of the policy's likelihoods alone, without a reference.

Comes in: PairScores [P]. Goes out: one value per comparison [P], not reduced
(cpo, orpo: one per divisor). Notation: log pi_w, log pi_l sums over |w|, |l|
tokens; NLL_w = -log pi_w/|w|.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array

_LARGEST_EXPONENT = 40.0  # e^40: its square is finite in float32


@register(
  label='SLiC-HF',
  paper='Zhao et al. 2023, arXiv:2305.10425',
  formula='max(0, delta - log pi_w + log pi_l) + nll_weight NLL_w',
  kind='reference_free',
  reward='log_prob',
  grid={'delta': (0.5, 1.0, 2.0)},
  bounds={'delta': '[0, inf)', 'nll_weight': '[0, inf)'},
)
def slic_hf(
  pairs: PairScores, *, delta: float = 1.0, nll_weight: float = 0.1
) -> Array:
  """SLiC-HF: rank calibration with a hinge, and a cross-entropy anchor.

  `max(0, delta - log pi_w + log pi_l) + nll_weight NLL_w`.

  Source: arXiv:2305.10425.

  Args:
    pairs: scores of the comparisons.
    delta: margin of the log-likelihoods, nats.
    nll_weight: the paper's lambda, of the cross-entropy of the chosen
      completion in nats per token.

  Returns:
    Losses [P] in nats.
  """
  ranks = jax.nn.relu(delta - pairs.policy_chosen + pairs.policy_rejected)
  return ranks - nll_weight * _mean_chosen(pairs)


@register(
  label='SimPO',
  paper='Meng et al. 2024, arXiv:2405.14734, eq. 6',
  formula='-log s(beta (log pi_w/|w| - log pi_l/|l|) - gamma)',
  kind='reference_free',
  reward='mean_log_prob',
  grid={'beta': (2.0, 2.5, 10.0), 'gamma': (0.5, 1.0, 1.6)},
  bounds={'beta': '(0, inf)'},
)
def simpo(pairs: PairScores, *, beta: float = 2.0, gamma: float = 1.0) -> Array:
  """SimPO: the mean log-likelihood is the reward, with a target margin.

  `-log s(beta (log pi_w/|w| - log pi_l/|l|) - gamma)`.

  Source: arXiv:2405.14734, eq. 6.

  Args:
    pairs: scores of the comparisons.
    beta: per nat per token.
    gamma: target margin, in units of the reward (not a ratio to beta).

  Returns:
    Losses [P] in nats.
  """
  gap = _mean_chosen(pairs) - _mean_rejected(pairs)
  return -jax.nn.log_sigmoid(beta * gap - gamma)


@register(
  label='AlphaPO',
  paper='Gupta et al. 2025, arXiv:2501.03884',
  formula='-log s(beta (r_w - r_l) - gamma), r = (1 - p^-alpha)/alpha, '
  'p = exp(log pi/|y|)',
  kind='reference_free',
  reward='alpha_log_prob',
  grid={'alpha': (-0.25, 0.1, 0.25)},
  bounds={'beta': '(0, inf)'},
)
def alphapo(
  pairs: PairScores,
  *,
  beta: float = 2.5,
  gamma: float = 0.25,
  alpha: float = 0.25,
) -> Array:
  """AlphaPO: SimPO with a reward whose shape alpha bends.

  `-log s(beta (r_w - r_l) - gamma)`, r = `(1 - p^-alpha)/alpha`,
  p = `exp(log pi/|y|)`.

  Source: arXiv:2501.03884.

  Args:
    pairs: scores of the comparisons.
    beta: per unit of the reward.
    gamma: target margin, in units of the reward.
    alpha: shape of the reward; SimPO at 0.

  Returns:
    Losses [P] in nats.
  """
  gap = alpha_reward(_mean_chosen(pairs), alpha) - alpha_reward(
    _mean_rejected(pairs), alpha
  )
  return -jax.nn.log_sigmoid(beta * gap - gamma)


@register(
  label='SimPER',
  paper='Xiao et al. 2025, arXiv:2502.00883',
  formula='-exp(log pi_w/|w|) + exp(log pi_l/|l|)',
  kind='reference_free',
  reward='mean_log_prob',
)
def simper(pairs: PairScores) -> Array:
  """SimPER: inverse perplexities of both completions, nothing to tune.

  `-exp(log pi_w/|w|) + exp(log pi_l/|l|)`. An unlikely completion has a small
  gradient, whichever side it is on.

  Source: arXiv:2502.00883.

  Args:
    pairs: scores of the comparisons.

  Returns:
    Losses [P] in (-1, 1): differences of geometric mean token probabilities.
  """
  return jnp.exp(_mean_rejected(pairs)) - jnp.exp(_mean_chosen(pairs))


@register(
  label='CPO',
  paper='Xu et al. 2024, arXiv:2401.08417',
  formula='-log s(beta (log pi_w - log pi_l)) + alpha NLL',
  kind='reference_free',
  reward='log_prob',
  grid={'beta': (0.01, 0.05, 0.1)},
  bounds={'beta': '(0, inf)', 'alpha': '[0, inf)'},
)
def cpo(
  pairs: PairScores, *, beta: float = 0.1, alpha: float = 1.0
) -> dict[str, Array]:
  """CPO: DPO with a uniform reference, and a cross-entropy anchor.

  `-log s(beta (log pi_w - log pi_l)) + alpha NLL`, NLL the mean over all
  tokens of the batch's chosen completions: the term `nll` with weight alpha.

  Source: arXiv:2401.08417.

  Args:
    pairs: scores of the comparisons.
    beta: per nat.
    alpha: weight of the negative log-likelihood, in nats per token.

  Returns:
    Losses [P] in nats: the contrast, and the likelihood over tokens.
  """
  gap = pairs.policy_chosen - pairs.policy_rejected
  return {
    'comparisons': -jax.nn.log_sigmoid(beta * gap),
    'chosen_tokens': -alpha * pairs.policy_chosen,
  }


@register(
  label='ORPO',
  paper='Hong et al. 2024, arXiv:2403.07691, eqs. 6 and 7; beta: '
  'arXiv:2502.01237',
  formula='NLL - odds_weight log s(beta (log odds_w - log odds_l)), '
  'odds = P/(1-P), P = exp(log pi/|y|)',
  kind='reference_free',
  reward='mean_log_prob',
  grid={'odds_weight': (0.1, 0.5, 1.0)},
  bounds={'beta': '(0, inf)', 'odds_weight': '(0, inf)'},
)
def orpo(
  pairs: PairScores, *, beta: float = 1.0, odds_weight: float = 0.1
) -> dict[str, Array]:
  """ORPO: cross-entropy of the chosen completion, and a log odds ratio.

  `NLL - odds_weight log s(beta (log odds_w - log odds_l))`, odds = `P/(1-P)`,
  P = `exp(log pi/|y|)`, NLL the mean over all tokens of the batch's chosen
  completions.

  Source: arXiv:2403.07691, eqs. 6 and 7; beta: arXiv:2502.01237.

  Args:
    pairs: scores of the comparisons.
    beta: scale of the log odds ratio; 1 is the paper's.
    odds_weight: the paper's lambda.

  Returns:
    Losses [P] in nats, the likelihood over tokens and the odds ratio; finite
    also where a completion is certain.
  """
  chosen, rejected = _mean_chosen(pairs), _mean_rejected(pairs)
  ratio = _log_odds(chosen) - _log_odds(rejected)
  return {
    'chosen_tokens': -pairs.policy_chosen,
    'comparisons': -odds_weight * jax.nn.log_sigmoid(beta * ratio),
  }


@register(
  label='ASFT',
  paper='Wang et al. 2024, arXiv:2409.10571; beta: Gorbatovski et al. 2025, '
  'arXiv:2502.01237',
  formula='nll_weight NLL + odds_weight [-log s(beta o_w) - log s(-beta o_l)], '
  'o = log(P/(1-P)), P = exp(log pi/|y|)',
  kind='reference_free',
  reward='mean_log_prob',
  grid={'odds_weight': (0.1, 0.5, 1.0)},
  bounds={
    'beta': '(0, inf)',
    'odds_weight': '(0, inf)',
    'nll_weight': '[0, inf)',
  },
)
def asft(
  pairs: PairScores,
  *,
  beta: float = 1.0,
  odds_weight: float = 1.0,
  nll_weight: float = 1.0,
) -> dict[str, Array]:
  """ASFT: cross-entropy, and the log odds of each completion by itself.

  `nll_weight NLL + odds_weight [-log s(beta o_w) - log s(-beta o_l)]`, o =
  `log(P/(1-P))`, P = `exp(log pi/|y|)`. At beta 1 the bracket is
  `-log P_w - log(1 - P_l)`: binary cross-entropy of both completions. NLL is
  over all chosen tokens of the batch, as in orpo.

  Source: arXiv:2409.10571; beta: arXiv:2502.01237, which has nll_weight 0
  after a separate SFT.

  Args:
    pairs: scores of the comparisons.
    beta: scale of the log odds; 1 in the first paper.
    odds_weight: the papers' lambda.
    nll_weight: weight of the negative log-likelihood of the chosen completions,
      per token.

  Returns:
    {divisor: losses [P]}: the odds over comparisons and the NLL over chosen
    tokens, in nats; finite also where a completion is certain.
  """
  chosen = -jax.nn.log_sigmoid(beta * _log_odds(_mean_chosen(pairs)))
  rejected = -jax.nn.log_sigmoid(-beta * _log_odds(_mean_rejected(pairs)))
  return {
    'comparisons': odds_weight * (chosen + rejected),
    'chosen_tokens': -nll_weight * pairs.policy_chosen,
  }


def alpha_reward(mean_logps: Array, alpha: Array) -> Array:
  """(1 - p^-alpha) / alpha with log p = mean_logps; log p at alpha 0."""
  small = jnp.abs(alpha) < 1e-6
  safe = jnp.where(small, 1.0, alpha)
  powered = jnp.expm1(jnp.minimum(-safe * mean_logps, _LARGEST_EXPONENT))
  return jnp.where(small, mean_logps, -powered / safe)


def _mean_chosen(pairs: PairScores) -> Array:
  """log pi_w / |w|, nats per token: -NLL_w."""
  return pairs.policy_chosen / pairs.chosen_tokens


def _mean_rejected(pairs: PairScores) -> Array:
  """log pi_l / |l|, nats per token."""
  return pairs.policy_rejected / pairs.rejected_tokens


def _log_odds(mean_logps: Array) -> Array:
  """log(P / (1 - P)) with log P = mean_logps, finite as P goes to 1."""
  # 1 - P stays at least one step of the float.
  log_p = jnp.minimum(mean_logps, -jnp.finfo(mean_logps.dtype).eps)
  # log(1 - P) has two forms, each used where it loses no digits. The unused
  # one gets a harmless number, so that no gradient is infinity times zero.
  near_one = log_p > -jnp.log(2.0)
  small, large = (
    jnp.where(near_one, log_p, -1.0),
    jnp.where(near_one, -1.0, log_p),
  )
  log_rest = jnp.where(
    near_one, jnp.log(-jnp.expm1(small)), jnp.log1p(-jnp.exp(large))
  )
  return log_p - log_rest
