"""Losses of the difference between the chosen and the rejected completion.

Comes in: PairScores [P]. Goes out: one value per comparison [P], not reduced.
Notation as in the papers: a_w and a_l the log-ratios to the reference,
h = a_w - a_l, D = beta * h, s the logistic function.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array

_SMALLEST_GAP = 1e-6  # of two scores, in the data's own unit


@register(
  label='DPO',
  paper='Rafailov et al. 2023, arXiv:2305.18290, eq. 7; '
  'label smoothing: Mitchell 2023, ericmitchell.ai/cdpo.pdf',
  formula='-(1-e) log s(D) - e log s(-D)',
  needs=('reference',),
  kind='difference',
  grid={'beta': (0.01, 0.05, 0.1, 0.3, 0.5)},
  bounds={'beta': '(0, inf)', 'label_smoothing': '[0, 0.5)'},
)
def sigmoid(
  pairs: PairScores, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Array:
  """DPO; with label smoothing e, conservative DPO (cDPO).

  `-(1 - e) log s(D) - e log s(-D)`, `D = beta ((log pi_w - log ref_w) -
  (log pi_l - log ref_l))`, s the logistic function.

  Source: arXiv:2305.18290, eq. 7; smoothing: ericmitchell.ai/cdpo.pdf.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    label_smoothing: e in [0, 0.5), the chance that a label is flipped. The
      optimum lies at s(D) = 1 - e, so e > 0 bounds the margin.

  Returns:
    Losses [P] in nats; ln 2 at D = 0 for every e.
  """
  return smoothed_log_loss(beta * pairs.log_ratio_gap, label_smoothing)


@register(
  label='Robust DPO',
  paper='Chowdhury et al. 2024, arXiv:2403.00409',
  formula='[-(1-e) log s(D) + e log s(-D)] / (1-2e)',
  needs=('reference',),
  kind='difference',
  grid={'label_smoothing': (0.1, 0.2, 0.3)},
  bounds={'beta': '(0, inf)', 'label_smoothing': '[0, 0.5)'},
)
def robust(
  pairs: PairScores, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Array:
  """Robust DPO: unbiased if labels are flipped with a known probability.

  `[-(1 - e) log s(D) + e log s(-D)] / (1 - 2 e)`. Its mean over flips with
  probability e is the sigmoid loss of the true labels. Unlike cDPO it has no
  lower bound: D may grow without end.

  Source: arXiv:2403.00409.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    label_smoothing: e in [0, 0.5), the chance that a label is flipped.

  Returns:
    Losses [P] in nats; ln 2 at D = 0 for every e.
  """
  logits = beta * pairs.log_ratio_gap
  kept = -(1 - label_smoothing) * jax.nn.log_sigmoid(logits)
  flipped = label_smoothing * jax.nn.log_sigmoid(-logits)
  return (kept + flipped) / (1 - 2 * label_smoothing)


@register(
  label='IPO',
  paper='Azar et al. 2023, arXiv:2310.12036, eq. 17',
  formula='(x - 1/(2 beta))^2, x = a_w/|w| - a_l/|l| (mean) or h (sum)',
  needs=('reference',),
  kind='difference',
  grid={'beta': (0.01, 0.05, 0.1, 0.3, 0.5)},
  bounds={'beta': '(0, inf)'},
)
def ipo(
  pairs: PairScores,
  *,
  beta: float = 0.1,
  reduction: Literal['mean', 'sum'] = 'mean',
) -> Array:
  """IPO: regression of the log-ratio gap to 1 / (2 beta).

  `(x - 1/(2 beta))^2`, x = `a_w/|w| - a_l/|l|` or `h`.

  Source: arXiv:2310.12036, eq. 17.

  Args:
    pairs: scores of the comparisons.
    beta: the paper's tau; the target gap is 1 / (2 beta).
    reduction: 'mean' divides each log-ratio by its number of tokens, as the
      authors report using (TRL does too); 'sum' is the formula as printed.

  Returns:
    Losses [P]; 1 / (4 beta^2) where policy and reference agree.
  """
  if reduction == 'mean':
    gap = pairs.mean_log_ratio_gap
  else:
    gap = pairs.log_ratio_gap
  return (gap - 1 / (2 * beta)) ** 2


@register(
  label='Hinge',
  paper='Liu et al. 2023 (RSO), arXiv:2309.06657',
  formula='max(0, 1 - D)',
  needs=('reference',),
  kind='difference',
  grid={'beta': (0.05, 0.1, 0.5)},
  bounds={'beta': '(0, inf)'},
)
def hinge(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """RSO's hinge on the implicit reward margin, `max(0, 1 - D)`.

  Source: arXiv:2309.06657.

  Args:
    pairs: scores of the comparisons.
    beta: the paper's gamma, margin per nat.

  Returns:
    Losses [P]; 1 at D = 0, and 0 with no gradient from D = 1 on.
  """
  return jax.nn.relu(1 - beta * pairs.log_ratio_gap)


@register(
  label='EXO',
  paper='Ji et al. 2024, arXiv:2402.00856, eq. 16',
  formula='q_w (log q_w - log(1-e)) + q_l (log q_l - log e), q = s(+-D)',
  needs=('reference',),
  kind='difference',
  grid={'label_smoothing': (1e-3, 1e-2)},
  bounds={'beta': '(0, inf)', 'label_smoothing': '(0, 0.5)'},
)
def exo_pair(
  pairs: PairScores, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> Array:
  """EXO on pairs: reverse KL from the policy's preference to the label's.

  `q_w (log q_w - log(1-e)) + q_l (log q_l - log e)`, q = `s(+-D)`.

  Source: arXiv:2402.00856, eq. 16.

  Args:
    pairs: scores of the comparisons.
    beta: the paper's beta_pi, per nat.
    label_smoothing: e in (0, 0.5); the label's distribution is (1 - e, e).

  Returns:
    Losses [P] in nats; 0 at s(D) = 1 - e.
  """
  logits = beta * pairs.log_ratio_gap
  log_q_w, log_q_l = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  # The label's logarithms are float32 like every hyper-parameter, whatever
  # the dtype of the scores: so are those of TRL's float64 golden numbers.
  smoothing = jnp.asarray(label_smoothing, jnp.float32).astype(logits.dtype)
  log_p_w = jnp.log1p(-smoothing).astype(jnp.float32)
  log_p_l = jnp.log(smoothing).astype(jnp.float32)
  chosen = jnp.exp(log_q_w) * (log_q_w - log_p_w)
  return chosen + jnp.exp(log_q_l) * (log_q_l - log_p_l)


@register(
  label='DiscoPOP',
  paper='Lu et al. 2024, arXiv:2406.08414, eq. 5',
  formula='-log s(D) (1-m) + exp(-D) m, m = s(D/tau)',
  needs=('reference',),
  kind='difference',
  grid={'discopop_tau': (0.05,)},
  bounds={'beta': '(0, inf)', 'discopop_tau': '(0, inf)'},
)
def discopop(
  pairs: PairScores, *, beta: float = 0.1, discopop_tau: float = 0.05
) -> Array:
  """DiscoPOP's log-ratio modulated loss, found by a language model.

  `-log s(D) (1-m) + exp(-D) m`, m = `s(D/tau)`.

  Source: arXiv:2406.08414, eq. 5.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    discopop_tau: temperature of the modulation between logistic and
      exponential loss.

  Returns:
    Losses [P] in nats; ln 2 / 2 + 1 / 2 at D = 0.
  """
  logits = beta * pairs.log_ratio_gap
  log_m = jax.nn.log_sigmoid(logits / discopop_tau)
  log_rest = jax.nn.log_sigmoid(-logits / discopop_tau)
  # exp(-D) m as one exponential: exp(-D) alone overflows where m is 0.
  exponential = jnp.exp(jnp.minimum(log_m - logits, 80.0))
  return -jax.nn.log_sigmoid(logits) * jnp.exp(log_rest) + exponential


@register(
  label='Length-normalised DPO',
  paper='Lambert et al. 2024 (Tulu 3), arXiv:2411.15124, eq. 6',
  formula='-log s(beta (a_w/|w| - a_l/|l|))',
  needs=('reference',),
  kind='difference',
  grid={'beta': (2.0, 5.0, 10.0, 15.0)},
  bounds={'beta': '(0, inf)'},
)
def sigmoid_norm(pairs: PairScores, *, beta: float = 5.0) -> Array:
  """DPO of log-ratios that are means over tokens.

  `-log s(beta x)`, x = `a_w/|w| - a_l/|l|`.

  Source: arXiv:2411.15124, eq. 6.

  Args:
    pairs: scores of the comparisons.
    beta: per nat per token; DPO's beta times about the number of tokens.

  Returns:
    Losses [P] in nats; ln 2 where policy and reference agree.
  """
  return -jax.nn.log_sigmoid(beta * pairs.mean_log_ratio_gap)


@register(
  label='R-DPO',
  paper='Park et al. 2024, arXiv:2403.19159',
  formula='-log s(D + alpha (|w| - |l|))',
  needs=('reference',),
  kind='difference',
  grid={'alpha': (0.005, 0.01, 0.05)},
  bounds={'beta': '(0, inf)'},
)
def rdpo(pairs: PairScores, *, beta: float = 0.1, alpha: float = 0.01) -> Array:
  """Length-regularised DPO: a longer winner gets a smaller gradient.

  `-log s(D + alpha (|w| - |l|))`.

  Source: arXiv:2403.19159.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    alpha: nats of margin per token of the difference in length.

  Returns:
    Losses [P] in nats; the sigmoid loss at equal lengths.
  """
  longer = pairs.chosen_tokens - pairs.rejected_tokens
  return -jax.nn.log_sigmoid(beta * pairs.log_ratio_gap + alpha * longer)


@register(
  label='ODPO',
  paper='Amini et al. 2024, arXiv:2402.10571',
  formula='-log s(D - alpha log(score_w - score_l))',
  needs=('reference', 'scores', 'score_order'),
  kind='difference',
  grid={'alpha': (0.1, 0.5, 1.0)},
  bounds={'beta': '(0, inf)'},
)
def odpo(pairs: PairScores, *, beta: float = 0.1, alpha: float = 1.0) -> Array:
  """DPO with an offset: the margin must exceed alpha log(score gap).

  `-log s(D - alpha log(score_w - score_l))`.

  Source: arXiv:2402.10571.

  Args:
    pairs: scores of the comparisons; a gap of the data's scores below 1e-6
      counts as 1e-6.
    beta: strength of the pull to the reference, per nat.
    alpha: nats of margin per log of the score gap.

  Returns:
    Losses [P] in nats; the sigmoid loss where the scores are 1 apart.
  """
  gap = jnp.maximum(pairs.score_chosen - pairs.score_rejected, _SMALLEST_GAP)
  return -jax.nn.log_sigmoid(beta * pairs.log_ratio_gap - alpha * jnp.log(gap))


@register(
  label='DPO with margin',
  paper='Touvron et al. 2023 (Llama 2), arXiv:2307.09288, eq. 2, on DPO',
  formula="-log s(D - margin), the data's margin column",
  needs=('reference', 'margin'),
  kind='difference',
  grid={'beta': (0.05, 0.1, 0.5)},
  bounds={'beta': '(0, inf)'},
)
def margin(pairs: PairScores, *, beta: float = 0.1) -> Array:
  """DPO whose margin must exceed the data's, `-log s(D - margin)`.

  Source: arXiv:2307.09288, eq. 2, on DPO.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [P] in nats; the sigmoid loss where the margin is 0.
  """
  return -jax.nn.log_sigmoid(beta * pairs.log_ratio_gap - pairs.margin)


@register(
  label='Reward-aware RPO',
  paper='NVIDIA 2024 (Nemotron-4 340B), arXiv:2406.11704, section 3.3.2',
  formula='distance of D and reward_scale (score_w - score_l): '
  'KL of s(.) either way, or squared',
  needs=('reference', 'scores'),
  kind='difference',
  grid={'reward_scale': (0.5, 1.0, 2.0)},
  bounds={'beta': '(0, inf)', 'reward_scale': '(0, inf)'},
)
def reward_aware_rpo(
  pairs: PairScores,
  *,
  beta: float = 0.1,
  reward_scale: float = 1.0,
  distance: Literal['backward_kl', 'forward_kl', 'squared'] = 'backward_kl',
) -> Array:
  """Reward-aware RPO: the implied reward margin approaches the data's.

  With p = s(reward_scale (score_w - score_l)) and q = s(D), `backward_kl`
  is KL(p, q) (the paper's D[a||b]), `forward_kl` is KL(q, p), each over the
  two outcomes, and `squared` is (D - reward_scale (score_w - score_l))^2.
  The names of the two divergences are NeMo's.

  Source: arXiv:2406.11704, section 3.3.2.

  Args:
    pairs: scores of the comparisons.
    beta: strength of the pull to the reference, per nat.
    reward_scale: the paper's eta, nats per unit of the data's score.
    distance: one of the three above.

  Returns:
    Losses [P]; 0 where the margins are equal.
  """
  implied = beta * pairs.log_ratio_gap
  given = reward_scale * (pairs.score_chosen - pairs.score_rejected)
  if distance == 'squared':
    return (implied - given) ** 2
  if distance == 'backward_kl':
    return _bernoulli_kl(given, implied)
  return _bernoulli_kl(implied, given)


def smoothed_log_loss(logits: Array, label_smoothing: Array) -> Array:
  """-(1-e) log s(logits) - e log s(-logits), of every element."""
  kept = (1 - label_smoothing) * jax.nn.log_sigmoid(logits)
  return -kept - label_smoothing * jax.nn.log_sigmoid(-logits)


def _bernoulli_kl(a: Array, b: Array) -> Array:
  """KL of s(a) from s(b): sum over both outcomes of p (log p - log q)."""
  total = 0.0
  for sign in (1, -1):
    log_p, log_q = jax.nn.log_sigmoid(sign * a), jax.nn.log_sigmoid(sign * b)
    total = total + jnp.exp(log_p) * (log_p - log_q)
  return total
