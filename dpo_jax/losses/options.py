"""Options: transforms of the scores, beta, values or reference of losses.

Comes in: what the loss would read or return. Goes out: the same, changed.
batch_options.py has those that read the whole batch. The form of an option
follows from what it changes; options of one kind of change apply in the order
of registration:
  scores      fn(pairs, ...) -> pairs, for the losses and the metrics
  log_ratios  fn(pairs, ...) -> pairs, for the losses alone
  beta        fn(beta, pairs, state, ...) -> beta [P]
  values      fn(values, pairs, ...) -> values [P]
  mean        fn(values, weight, ...) -> scalar, in place of the weighted mean
              over comparisons; parts over tokens keep theirs
  reference   fn(reference, policy, step, ...) -> reference, between updates
"""

from typing import Literal

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register_option
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array, Params

_LARGEST_EXPONENT = 40.0  # e^40: its square is finite in float32
_LARGEST_SQUARED = 36.0  # of f_divergence=squared: 37 e^36 is about e^40
_LINEAR = 10.0  # length of the linear continuation, in units of the exponent


@register_option(
  label='LD-DPO',
  paper='Liu et al. 2024, arXiv:2409.06411',
  formula='log pi -> head + ld_alpha tail, head = first min(|w|, |l|) tokens',
  changes='scores',
  accepts=('difference', 'absolute', 'transport'),
  needs=('reference', 'heads'),
  bounds={'ld_alpha': '[0, 1]'},
)
def ld_alpha(pairs: PairScores, *, ld_alpha: float = 1.0) -> PairScores:
  """LD-DPO: tokens beyond the length of the shorter completion count less.

  `head + ld_alpha tail`, head the sum over the first `min(|w|, |l|)` tokens,
  for `log pi` and `log ref`. The numbers of tokens, by which ipo and
  sigmoid_norm divide, stay.

  Source: arXiv:2409.06411.

  Args:
    pairs: scores of the comparisons, with heads.
    ld_alpha: weight of the tail in [0, 1]; 1 changes nothing.

  Returns:
    The pairs with these sums in place of those over all tokens.
  """

  def discounted(name):
    total, head = getattr(pairs, name), getattr(pairs, f'{name}_head')
    return head + ld_alpha * (total - head)

  names = ('policy_chosen', 'policy_rejected')
  names += ('reference_chosen', 'reference_rejected')
  return pairs._replace(**{name: discounted(name) for name in names})


@register_option(
  label='f-DPO',
  paper='Wang et al. 2023, arXiv:2309.16240; squared: Pipano et al. 2026, '
  'arXiv:2602.06788',
  formula="a -> f'(ratio): 1 - exp(-a) (forward_kl), log 2 + log s(a) "
  '(js_divergence), (exp((f_alpha-1) a) - 1)/(f_alpha-1) (alpha_divergence), '
  'a exp(-a) (squared)',
  changes='log_ratios',
  accepts=('difference',),
  needs=('reference',),
  only_with={'f_alpha': ('f_divergence', 'alpha_divergence')},
)
def f_divergence(
  pairs: PairScores,
  *,
  f_divergence: Literal[
    'reverse_kl', 'forward_kl', 'js_divergence', 'alpha_divergence', 'squared'
  ] = 'reverse_kl',
  f_alpha: float = 0.5,
) -> PairScores:
  """f-DPO: another divergence from the reference than the reverse KL.

  In place of `a`: `1 - exp(-a)` (forward_kl), `log 2 + log s(a)`
  (js_divergence), `(exp((f_alpha-1) a) - 1)/(f_alpha-1)` (alpha_divergence),
  `a exp(-a)` (squared: f = 1/2 log^2, not convex, so that nothing pulls a
  chosen completion beyond a = 1).

  An exponential goes on past the exponent 40 (squared: 36) as a line, and 10
  further as a logarithm: no gradient is 0 where the formula's is not, and
  squares of the values are finite in float32 up to log-ratios of +-1e4.

  Source: arXiv:2309.16240; squared: arXiv:2602.06788.

  Args:
    pairs: scores of the comparisons.
    f_divergence: the divergence; 'reverse_kl' changes nothing.
    f_alpha: order of the alpha-divergence; 1 is the reverse KL.

  Returns:
    The pairs whose log-ratios are f'(exp(a)); 0 at a = 0.
  """
  transforms = {
    'reverse_kl': lambda a: a,
    'forward_kl': lambda a: -_exp_minus_1(-a, _LARGEST_EXPONENT),
    'js_divergence': lambda a: jnp.log(2.0) + jax.nn.log_sigmoid(a),
    'alpha_divergence': lambda a: _alpha_divergence(a, f_alpha),
    'squared': _log_over_ratio,
  }
  transform = transforms[f_divergence]
  # The reference becomes 0, so that the policy's field is the log-ratio.
  return pairs._replace(
    policy_chosen=transform(pairs.chosen_log_ratio),
    policy_rejected=transform(pairs.rejected_log_ratio),
    reference_chosen=jnp.zeros_like(pairs.reference_chosen),
    reference_rejected=jnp.zeros_like(pairs.reference_rejected),
  )


@register_option(
  label='WPO',
  paper='Zhou et al. 2024, arXiv:2406.11827, eq. 2, sampled alignment, and '
  'its code',
  formula='x sg[min(1, exp(mean aligned lp_w) exp(mean aligned lp_l))], '
  'aligned = log p - log sum p^2',
  changes='values',
  accepts=('difference', 'absolute', 'reference_free'),
  needs=('sum_sq_probs',),
)
def wpo(values: Array, pairs: PairScores, *, wpo_clamp: bool = True) -> Array:
  """WPO: comparisons that the policy is likely to write itself count more.

  Factor `sg[min(1, exp(mean aligned lp_w) exp(mean aligned lp_l))]`, means over
  tokens, aligned = `log p - log sum p^2`. Greedy answers exceed 1 before the
  minimum.

  Source: arXiv:2406.11827, eq. 2, and its code for the minimum.

  Args:
    values: losses [P].
    pairs: scores of the comparisons, with aligned log-probabilities.
    wpo_clamp: whether the factor is at most 1, as in the authors' code; TRL
      leaves that out.

  Returns:
    Losses [P] times that factor.
  """
  chosen = pairs.chosen_aligned / pairs.chosen_tokens
  rejected = pairs.rejected_aligned / pairs.rejected_tokens
  log_weight = chosen + rejected
  if wpo_clamp:
    log_weight = jnp.minimum(log_weight, 0.0)
  return values * jax.lax.stop_gradient(jnp.exp(log_weight))


@register_option(
  label='TR-DPO',
  paper='Gorbatovski et al. 2024, arXiv:2404.09656, soft update',
  formula='every tr_tau steps ref <- tr_alpha pi + (1 - tr_alpha) ref',
  changes='reference',
  accepts=('difference', 'absolute', 'transport', 'other'),
  needs=('reference',),
  bounds={'tr_alpha': '[0, 1]', 'tr_tau': '[1, inf)'},
)
def tr_dpo(
  reference: Params,
  policy: Params,
  step: Array,
  *,
  tr_alpha: float = 0.6,
  tr_tau: float = 512.0,
) -> Params:
  """TR-DPO: every tr_tau steps the reference moves towards the policy.

  `ref <- tr_alpha pi + (1 - tr_alpha) ref`.

  Source: arXiv:2404.09656, soft update.

  Args:
    reference: weights of the reference.
    policy: weights of the policy, of the same structure. With an adapter its
      merged weights: a mean of adapters is not the adapter of the mean.
    step: updates done, the last one included.
    tr_alpha: share of the policy; 1 is the paper's hard update.
    tr_tau: updates between two moves of the reference.

  Returns:
    The reference for the next update.
  """
  due = (step > 0) & (step % tr_tau == 0)
  share = jnp.where(due, tr_alpha, 0.0)
  return jax.tree.map(
    lambda ref, pi: ((1 - share) * ref + share * pi).astype(ref.dtype),
    reference,
    policy,
  )


def _exp_minus_1(x: Array, largest: Array) -> Array:
  """exp(x) - 1, continued beyond `largest`."""
  slope = jnp.exp(largest)
  return jnp.expm1(jnp.minimum(x, largest)) + slope * _beyond(x, largest)


def _log_over_ratio(a: Array) -> Array:
  """a exp(-a), continued below -36."""
  inside = jnp.maximum(a, -_LARGEST_SQUARED)
  slope = (1 + _LARGEST_SQUARED) * jnp.exp(_LARGEST_SQUARED)
  return inside * jnp.exp(-inside) - slope * _beyond(-a, _LARGEST_SQUARED)


def _beyond(x: Array, largest: Array) -> Array:
  """What a continuation of unit slope adds: a line, then a logarithm.

  A line alone would reach 1e21 at a log-ratio of -1e4, whose square is
  infinite in float32.
  """
  over = jax.nn.relu(x - largest)
  return jnp.minimum(over, _LINEAR) + jnp.log1p(jax.nn.relu(over - _LINEAR))


def _alpha_divergence(a: Array, order: Array) -> Array:
  """(exp((order - 1) a) - 1) / (order - 1); a itself at order 1."""
  near_1 = jnp.abs(order - 1) < 1e-6
  scale = jnp.where(near_1, 1.0, order - 1)
  # A small scale, which divides, leaves less room below the largest float.
  largest = _LARGEST_EXPONENT + jnp.minimum(jnp.log(2 * jnp.abs(scale)), 0.0)
  return jnp.where(near_1, a, _exp_minus_1(scale * a, largest) / scale)
