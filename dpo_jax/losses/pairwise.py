"""Losses of the difference between the chosen and the rejected answer.

Comes in: PairScores [P]. Goes out: one value a comparison, [P], not reduced.
Notation as in the papers: D = beta * h, h the gap of the log-ratios.
"""

from typing import Literal

import jax

from dpo_jax.losses.pairs import PairScores
from dpo_jax.losses.registry import register
from dpo_jax.types import Array


@register(
  label='DPO',
  paper='Rafailov et al. 2023, arXiv:2305.18290, eq. 7; '
  'label smoothing: Mitchell 2023, ericmitchell.ai/cdpo.pdf',
  formula='-(1-e) log s(D) - e log s(-D)',
  needs=('reference',),
  grid={'beta': (0.01, 0.05, 0.1, 0.3, 0.5)},
)
def sigmoid(
  pairs: PairScores, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Array:
  """DPO; with label smoothing e, conservative DPO (cDPO).

  `-(1 - e) log s(D) - e log s(-D)`, `D = beta ((log pi_w - log ref_w) -
  (log pi_l - log ref_l))`, s the logistic function.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    label_smoothing: e in [0, 0.5), the chance that a label is flipped. The
      optimum lies at s(D) = 1 - e, so e > 0 bounds the margin.

  Returns:
    Losses [P] in nats; ln 2 at D = 0 for every e.
  """
  logits = beta * pairs.log_ratio_gap
  return -(1 - label_smoothing) * jax.nn.log_sigmoid(
    logits
  ) - label_smoothing * jax.nn.log_sigmoid(-logits)


@register(
  label='IPO',
  paper='Azar et al. 2023, arXiv:2310.12036, eq. 17',
  formula='(x - 1/(2 beta))^2, x = a_w/|w| - a_l/|l| (mean) or h (sum)',
  needs=('reference',),
  grid={'beta': (0.01, 0.05, 0.1, 0.3, 0.5)},
)
def ipo(
  pairs: PairScores,
  *,
  beta: float = 0.1,
  reduction: Literal['mean', 'sum'] = 'mean',
) -> Array:
  """IPO: regression of the log-ratio gap to 1 / (2 beta).

  Args:
    pairs: scores of the comparisons.
    beta: the paper's tau; the target gap is 1 / (2 beta).
    reduction: 'mean' divides each log-ratio by its number of tokens, as the
      authors report using (TRL does too); 'sum' is the formula as printed.

  Returns:
    Losses [P]; 1 / (4 beta^2) where policy and reference agree.
  """
  if reduction == 'mean':
    gap = (
      pairs.chosen_log_ratio / pairs.chosen_tokens
      - pairs.rejected_log_ratio / pairs.rejected_tokens
    )
  else:
    gap = pairs.log_ratio_gap
  return (gap - 1 / (2 * beta)) ** 2
