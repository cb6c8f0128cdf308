"""Losses of undesirable completions alone: negative preferences, unlearning.

Comes in: LabelledScores [E]. Goes out: one value per completion [E], not
reduced; the mean is over the undesirable ones, and desirable ones count for
nothing. The loser of a comparison is undesirable. What is to be kept needs a
term of its own, such as `nll`.
"""

import jax

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import LabelledScores
from dpo_jax.types import Array


@register(
  label='NPO',
  paper='Zhang et al. 2024, arXiv:2404.05868',
  formula='-(2/beta) log s(-beta a_l), over undesirable completions',
  needs=('reference', 'labels'),
  view='completions',
  normaliser='undesirable',
  grid={'beta': (0.01, 0.05, 0.1, 0.5, 1.0)},
  bounds={'beta': '(0, inf)'},
)
def npo(completions: LabelledScores, *, beta: float = 0.1) -> Array:
  """Negative preference optimisation (NPO): DPO without a winner.

  `-(2/beta) log s(-beta a_l)`: 2/beta times the sigmoid loss of a comparison
  whose winner stays as the reference has it. Its gradient is that of the
  log-likelihood times `2 s(beta a_l)`: gradient ascent on the NLL as beta goes
  to 0, and less of it for a completion that is forgotten.

  Source: arXiv:2404.05868.

  Args:
    completions: scores of desirable and undesirable completions.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [E] in nats; (2 ln 2) / beta where policy and reference agree.
  """
  rewards = beta * completions.log_ratio
  return -(2 / beta) * jax.nn.log_sigmoid(-rewards)


@register(
  label='SimNPO',
  paper='Fan et al. 2024, arXiv:2410.07163',
  formula='-(2/beta) log s(-beta log pi_l/|l| - gamma), over undesirable '
  'completions',
  needs=('labels',),
  view='completions',
  reward='mean_log_prob',
  normaliser='undesirable',
  grid={'beta': (2.5, 4.5), 'gamma': (0.0,)},
  bounds={'beta': '(0, inf)'},
)
def simnpo(
  completions: LabelledScores, *, beta: float = 2.5, gamma: float = 0.0
) -> Array:
  """SimNPO: NPO of mean log-likelihoods, without a reference.

  `-(2/beta) log s(-beta log pi_l/|l| - gamma)`: 2/beta times SimPO's loss of
  a comparison whose winner has probability 1. A long completion has no more
  say than a short one.

  Source: arXiv:2410.07163; the authors' code multiplies gamma by beta, their
  settings for TOFU have gamma 0.

  Args:
    completions: scores of desirable and undesirable completions.
    beta: per nat per token.
    gamma: target margin, in units of the reward.

  Returns:
    Losses [E] in nats per token.
  """
  rewards = beta * completions.policy / completions.num_tokens
  return -(2 / beta) * jax.nn.log_sigmoid(-rewards - gamma)
