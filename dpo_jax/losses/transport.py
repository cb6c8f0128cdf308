"""Losses of sorted scores: alignment of distributions by optimal transport.

Comes in: PairScores [P]. Goes out: one value per comparison [P], not reduced.
Every value depends on the whole batch: scores are matched by their ranks
among all comparisons.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.pairwise import smoothed_log_loss
from dpo_jax.losses.registry import register
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array


@register(
  label='AOT',
  paper='Melnyk et al. 2024, arXiv:2406.05882, paired',
  formula='-(1-e) log s(beta x) - e log s(-beta x), x = sort(log pi_w - '
  'log pi_l) - sort(log ref_w - log ref_l)',
  needs=('reference', 'whole_batch'),
  kind='transport',
  grid={'beta': (0.01, 0.1)},
  bounds={'beta': '(0, inf)', 'label_smoothing': '[0, 0.5)'},
)
def aot(
  pairs: PairScores, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Array:
  """AOT on pairs: the policy's margins dominate the reference's, sorted.

  `-(1-e) log s(beta x) - e log s(-beta x)`, x = `sort(log pi_w - log pi_l) -
  sort(log ref_w - log ref_l)`.

  Source: arXiv:2406.05882, paired.

  Args:
    pairs: scores of the comparisons.
    beta: per nat.
    label_smoothing: e, as in the sigmoid loss.

  Returns:
    Losses [P] in nats, each at the place of the policy's margin; the sigmoid
    loss for one comparison.
  """
  return _sorted_loss(
    pairs.policy_chosen - pairs.policy_rejected,
    pairs.reference_chosen - pairs.reference_rejected,
    pairs.weight,
    beta,
    label_smoothing,
  )


@register(
  label='AOT (unpaired)',
  paper='Melnyk et al. 2024, arXiv:2406.05882, unpaired',
  formula='-(1-e) log s(beta x) - e log s(-beta x), x = sort(a_w) - sort(a_l)',
  needs=('reference', 'whole_batch'),
  kind='transport',
  grid={'beta': (0.01, 0.1)},
  bounds={'beta': '(0, inf)', 'label_smoothing': '[0, 0.5)'},
)
def aot_unpaired(
  pairs: PairScores, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Array:
  """AOT without pairing: chosen log-ratios dominate rejected ones, sorted.

  `-(1-e) log s(beta x) - e log s(-beta x)`, x = `sort(a_w) - sort(a_l)`.
  Older trainers call this loss `aot_pair`.

  Source: arXiv:2406.05882, unpaired.

  Args:
    pairs: scores of the comparisons.
    beta: per nat.
    label_smoothing: e, as in the sigmoid loss.

  Returns:
    Losses [P] in nats, each at the place of the chosen log-ratio; the sigmoid
    loss for one comparison.
  """
  return _sorted_loss(
    pairs.chosen_log_ratio,
    pairs.rejected_log_ratio,
    pairs.weight,
    beta,
    label_smoothing,
  )


def _sorted_loss(upper, lower, weight, beta, label_smoothing) -> Array:
  """Loss of the quantile coupling of two weighted samples [P].

  With equal weights the k-th smallest of `upper` meets the k-th smallest of
  `lower`. With unequal weights the samples are laid along the axis of
  cumulative weight, and a value meets all that it overlaps: a weight of 2
  equals a comparison that occurs twice. Values of weight 0 come last and meet
  nothing.
  """
  size = weight.shape[0]
  order_u, end_u = _by_rank(upper, weight)
  order_l, end_l = _by_rank(lower, weight)
  # 2 P segments of the axis, on each of which one value meets one other.
  ends = jnp.sort(jnp.concatenate([end_u, end_l]))
  lengths = jnp.diff(ends, prepend=jnp.zeros_like(ends, shape=(1,)))
  middles = ends - lengths / 2
  u = order_u[jnp.searchsorted(end_u, middles).clip(0, size - 1)]
  v = order_l[jnp.searchsorted(end_l, middles).clip(0, size - 1)]
  gap = jnp.where(lengths > 0, upper[u] - lower[v], 0.0)
  losses = lengths * smoothed_log_loss(beta * gap, label_smoothing)
  # The objective multiplies by the weight again.
  divisor = jnp.where(weight > 0, weight, 1.0)
  return jax.ops.segment_sum(losses, u, size) / divisor


def _by_rank(values, weight) -> tuple[Array, Array]:
  """(indices in rising order of value, cumulative weight at each), both [P]."""
  order = jnp.argsort(jnp.where(weight > 0, values, jnp.inf))
  return order, jnp.cumsum(weight[order])
