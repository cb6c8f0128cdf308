"""Losses of the rewards of both completions, not only of their difference.

Comes in: PairScores [P]. Goes out: one value per comparison [P], not reduced.
Notation: a_w, a_l the log-ratios, r = beta a, h = a_w - a_l, D = beta h, s
the logistic function.
"""

import jax

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array


@register(
  label='NCA',
  paper='Chen et al. 2024, arXiv:2402.05369, K = 2',
  formula='-log s(r_w) - 1/2 log s(-r_w) - 1/2 log s(-r_l)',
  needs=('reference',),
  kind='absolute',
  grid={'beta': (0.01, 0.1)},
  bounds={'beta': '(0, inf)'},
)
def nca_pair(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """Noise contrastive alignment (NCA) of a pair.

  `-log s(r_w) - 1/2 log s(-r_w) - 1/2 log s(-r_l)`: the loss holds up the
  likelihood of the chosen completion, not only its lead.

  Source: arXiv:2402.05369, K = 2.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [P] in nats; 2 ln 2 where policy and reference agree.
  """
  reward_w = beta * pairs.chosen_log_ratio
  reward_l = beta * pairs.rejected_log_ratio
  both = jax.nn.log_sigmoid(-reward_w) + jax.nn.log_sigmoid(-reward_l)
  return -jax.nn.log_sigmoid(reward_w) - 0.5 * both


@register(
  label='BCO (pair, no shift)',
  paper='Jung et al. 2024, arXiv:2404.04656, delta = 0',
  formula='-log s(r_w) - log s(-r_l)',
  needs=('reference',),
  kind='absolute',
  grid={'beta': (0.01, 0.1)},
  bounds={'beta': '(0, inf)'},
)
def bco_pair(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """Binary classifier optimisation (BCO) without the reward shift.

  `-log s(r_w) - log s(-r_l)`.

  Source: arXiv:2404.04656, delta = 0.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [P] in nats; 2 ln 2 where policy and reference agree.
  """
  chosen = jax.nn.log_sigmoid(beta * pairs.chosen_log_ratio)
  return -chosen - jax.nn.log_sigmoid(-beta * pairs.rejected_log_ratio)


@register(
  label='SPPO (hard)',
  paper='Wu et al. 2024, arXiv:2405.00675',
  formula='(a_w - 1/(2 beta))^2 + (a_l + 1/(2 beta))^2',
  needs=('reference',),
  kind='absolute',
  grid={'beta': (1e-3, 1e-2, 0.1)},
  bounds={'beta': '(0, inf)'},
)
def sppo_hard(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """SPPO with hard labels: each log-ratio is regressed to its own target.

  `(a_w - 1/(2 beta))^2 + (a_l + 1/(2 beta))^2`.

  Source: arXiv:2405.00675.

  Args:
    pairs: scores of the comparisons.
    beta: the paper's 1 / eta; the targets are +-1 / (2 beta).

  Returns:
    Losses [P]; 1 / (2 beta^2) where policy and reference agree.
  """
  return _squared_to_targets(pairs, beta)


@register(
  label='APO-zero',
  paper="D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7",
  formula='1 - s(r_w) + s(r_l)',
  needs=('reference',),
  kind='absolute',
  grid={'beta': (0.05, 0.1, 0.5)},
  bounds={'beta': '(0, inf)'},
)
def apo_zero(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """APO-zero: the chosen completion goes up, the rejected one down.

  `1 - s(r_w) + s(r_l)`.

  Source: arXiv:2408.06266, eq. 7.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [P] in (0, 2); 1 where policy and reference agree.
  """
  chosen = jax.nn.sigmoid(beta * pairs.chosen_log_ratio)
  return 1 - chosen + jax.nn.sigmoid(beta * pairs.rejected_log_ratio)


@register(
  label='APO-down',
  paper="D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8",
  formula='s(r_w) + 1 - s(D)',
  needs=('reference',),
  kind='absolute',
  grid={'beta': (0.05, 0.1, 0.5)},
  bounds={'beta': '(0, inf)'},
)
def apo_down(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """APO-down: both completions go down, the rejected one faster.

  `s(r_w) + 1 - s(D)`. For data whose chosen completions are worse than the
  policy's own: the gradient of the chosen completion may point down.

  Source: arXiv:2408.06266, eq. 8.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [P] in (0, 2); 1 where policy and reference agree.
  """
  chosen = jax.nn.sigmoid(beta * pairs.chosen_log_ratio)
  return chosen + 1 - jax.nn.sigmoid(beta * pairs.log_ratio_gap)


@register(
  label='Cal-DPO',
  paper='Xiao et al. 2024, arXiv:2412.14516',
  formula='-log s(h) + 1/2 [(a_w - 1/(2 beta))^2 + (a_l + 1/(2 beta))^2]',
  needs=('reference',),
  kind='absolute',
  grid={'beta': (1e-3, 1e-2, 0.1)},
  bounds={'beta': '(0, inf)'},
)
def cal_dpo(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """Calibrated DPO: log-ratios are regressed to the scale of a true reward.

  `-log s(h) + 1/2 [(a_w - 1/(2 beta))^2 + (a_l + 1/(2 beta))^2]`. The first
  part has no beta.

  Source: arXiv:2412.14516.

  Args:
    pairs: scores of the comparisons.
    beta: the targets are +-1 / (2 beta).

  Returns:
    Losses [P]; ln 2 + 1 / (4 beta^2) where policy and reference agree.
  """
  contrast = -jax.nn.log_sigmoid(pairs.log_ratio_gap)
  return contrast + 0.5 * _squared_to_targets(pairs, beta)


@register(
  label='DPO-Shift',
  paper='Yang et al. 2025, arXiv:2502.07599',
  formula='-log s(beta (a_w - rejected_weight a_l))',
  needs=('reference',),
  kind='absolute',
  grid={'rejected_weight': (0.55, 0.75, 0.95)},
  bounds={'beta': '(0, inf)', 'rejected_weight': '[0, 1]'},
)
def dpo_shift(
  pairs: PairScores, *, beta: float = 0.1, rejected_weight: float = 0.95
) -> Array:
  """DPO-Shift: the rejected completion counts less than the chosen one.

  `-log s(beta (a_w - rejected_weight a_l))`. The gradient of the rejected
  completion is smaller by that factor, so the chosen one loses less of its
  likelihood, at the price of a smaller margin.

  Source: arXiv:2502.07599.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    rejected_weight: the paper's f(lambda), fixed over the run; the sigmoid
      loss at 1.

  Returns:
    Losses [P] in nats; ln 2 where policy and reference agree.
  """
  lost = rejected_weight * pairs.rejected_log_ratio
  return -jax.nn.log_sigmoid(beta * (pairs.chosen_log_ratio - lost))


@register(
  label='DPO-Positive',
  paper='Pal et al. 2024 (Smaug), arXiv:2402.13228',
  formula='-log s(beta (h - penalty max(0, -a_w)))',
  needs=('reference',),
  kind='absolute',
  grid={'penalty': (5.0, 50.0, 500.0)},
  bounds={'beta': '(0, inf)', 'penalty': '[0, inf)'},
)
def dpop(
  pairs: PairScores, *, beta: float = 0.3, penalty: float = 50.0
) -> Array:
  """DPO-Positive: a penalty if the chosen completion becomes less likely.

  `-log s(beta (h - penalty max(0, -a_w)))`.

  Source: arXiv:2402.13228.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    penalty: the paper's lambda, per nat that the chosen completion lost.

  Returns:
    Losses [P] in nats; the sigmoid loss where penalty is 0 or a_w >= 0.
  """
  lost = jax.nn.relu(-pairs.chosen_log_ratio)
  return -jax.nn.log_sigmoid(beta * (pairs.log_ratio_gap - penalty * lost))


def _squared_to_targets(pairs: PairScores, beta: Array) -> Array:
  """(a_w - 1/(2 beta))^2 + (a_l + 1/(2 beta))^2, of every comparison [P]."""
  target = 1 / (2 * beta)
  chosen = (pairs.chosen_log_ratio - target) ** 2
  return chosen + (pairs.rejected_log_ratio + target) ** 2
