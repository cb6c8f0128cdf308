"""Options: transforms of the scores, beta, values or reference of losses.

Comes in: what the loss would read or return. Goes out: the same, changed. The
form of an option follows from what it changes; options of one kind of change
apply in the order of this file:
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
_SMALLEST_STD = 1e-6  # nats; if all gaps are equal, so are all chances
_MOST_DRAWS = 2**31 - 1  # fits a uint32; counting starts again after it


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
  paper='Wang et al. 2023, arXiv:2309.16240',
  formula="a -> f'(ratio): 1 - exp(-a) (forward_kl), log 2 + log s(a) "
  '(js_divergence), (exp((f_alpha-1) a) - 1)/(f_alpha-1) (alpha_divergence)',
  changes='log_ratios',
  accepts=('difference',),
  needs=('reference',),
  only_with={'f_alpha': ('f_divergence', 'alpha_divergence')},
)
def f_divergence(
  pairs: PairScores,
  *,
  f_divergence: Literal[
    'reverse_kl', 'forward_kl', 'js_divergence', 'alpha_divergence'
  ] = 'reverse_kl',
  f_alpha: float = 0.5,
) -> PairScores:
  """f-DPO: another divergence from the reference than the reverse KL.

  In place of `a`: `1 - exp(-a)` (forward_kl), `log 2 + log s(a)`
  (js_divergence), `(exp((f_alpha-1) a) - 1)/(f_alpha-1)` (alpha_divergence).

  Source: arXiv:2309.16240.

  Args:
    pairs: scores of the comparisons.
    f_divergence: the divergence; 'reverse_kl' changes nothing.
    f_alpha: order of the alpha-divergence; 1 is the reverse KL.

  Returns:
    The pairs whose log-ratios are f'(exp(a)); 0 at a = 0. Exponents are at
    most 40, beyond which the gradient is 0.
  """
  transforms = {
    'reverse_kl': lambda a: a,
    'forward_kl': lambda a: -_exp_minus_1(-a),
    'js_divergence': lambda a: jnp.log(2.0) + jax.nn.log_sigmoid(a),
    'alpha_divergence': lambda a: _alpha_divergence(a, f_alpha),
  }
  transform = transforms[f_divergence]
  # The reference becomes 0, so that the policy's field is the log-ratio.
  return pairs._replace(
    policy_chosen=transform(pairs.chosen_log_ratio),
    policy_rejected=transform(pairs.rejected_log_ratio),
    reference_chosen=jnp.zeros_like(pairs.reference_chosen),
    reference_rejected=jnp.zeros_like(pairs.reference_rejected),
  )


def update_beta_dpo(
  state: dict[str, Array],
  pairs: PairScores,
  *,
  beta_dpo_momentum: Array,
  **_: Array,
) -> dict[str, Array]:
  """Updates the moving mean and deviation of the gap h with a batch.

  Args:
    state: `mean` and `std` in nats, which start at 0 as in the authors' code
      (every gap is 0 if the policy starts at its reference); `num_draws`.
    pairs: scores of the comparisons.
    beta_dpo_momentum: weight of the old value in [0, 1).

  Returns:
    The new state, this batch included.
  """
  is_real = (pairs.weight > 0).astype(pairs.weight.dtype)
  count = jnp.sum(is_real)
  gap = jnp.where(is_real > 0, pairs.log_ratio_gap, 0.0)
  mean = jnp.sum(gap) / jnp.maximum(count, 1)
  squares = jnp.sum(is_real * (gap - mean) ** 2)
  # The unbiased deviation, as in the authors' code.
  std = jnp.sqrt(squares / jnp.maximum(count - 1, 1))

  def mixed(old, new):
    return beta_dpo_momentum * old + (1 - beta_dpo_momentum) * new

  return {
    'mean': mixed(state['mean'], mean),
    'std': mixed(state['std'], std),
    'num_draws': state['num_draws'] + 1,
  }


def select_beta_dpo(
  state: dict[str, Array], pairs: PairScores, *, beta_dpo_rho: Array, **_: Array
) -> Array:
  """Draws the comparisons that a training step keeps.

  It keeps floor((1 - rho) count) of them, at least one, drawn without
  replacement with chances proportional to exp(-((h - mean) / std)^2 / 2):
  those with the largest log-chance plus Gumbel noise. The noise depends on
  the number of draws so far alone, so that a resumed run draws the same.

  Args:
    state: of `update_beta_dpo`, this batch included.
    pairs: scores of the comparisons.
    beta_dpo_rho: share of the comparisons to leave out.

  Returns:
    Bool [P], True for the comparisons that are kept.
  """
  is_real = pairs.weight > 0
  scaled = (pairs.log_ratio_gap - state['mean']) / jnp.maximum(
    state['std'], _SMALLEST_STD
  )
  draw = jnp.mod(state['num_draws'], _MOST_DRAWS).astype(jnp.uint32)
  key = jax.random.fold_in(jax.random.key(0), draw)
  noise = jax.random.gumbel(key, is_real.shape, pairs.weight.dtype)
  score = jnp.where(is_real, noise - scaled**2 / 2, -jnp.inf)
  rank = jnp.argsort(jnp.argsort(-score))
  # A float32 product such as 0.8 * 5 may lie just below the integer.
  num_kept = jnp.floor((1 - beta_dpo_rho) * jnp.sum(is_real) + 1e-3)
  return is_real & (rank < jnp.maximum(num_kept, 1))


@register_option(
  label='beta-DPO',
  paper='Wu et al. 2024, arXiv:2407.08639; beta of each comparison',
  formula='beta -> max(beta (1 + a (h - EMA h)), 1e-3), on the (1-rho) '
  'fraction drawn by a Gaussian weight',
  changes='beta',
  accepts=('difference',),
  needs=('reference', 'whole_batch', 'state'),
  bounds={'beta_dpo_rho': '[0, 1)', 'beta_dpo_momentum': '[0, 1)'},
  state={'mean': 0.0, 'std': 0.0, 'num_draws': 0.0},
  update=update_beta_dpo,
  select=select_beta_dpo,
)
def beta_dpo(
  beta: Array,
  pairs: PairScores,
  state: dict[str, Array],
  *,
  beta_dpo_a: float = 0.6,
  beta_dpo_rho: float = 0.2,
  beta_dpo_momentum: float = 0.9,
) -> Array:
  """beta-DPO: beta grows with the gap h over its moving mean.

  `beta_i = max(beta (1 + a (h_i - EMA h)), 1e-3)`, without gradient; h is in
  nats, as in the authors' code. A training step keeps only the comparisons
  that `select_beta_dpo` draws; an evaluation keeps all.

  Source: arXiv:2407.08639.

  Args:
    beta: the loss's beta, per nat.
    pairs: scores of the comparisons.
    state: of `update_beta_dpo`, this batch included.
    beta_dpo_a: the paper's alpha, per nat; 0 changes no beta.
    beta_dpo_rho: share of comparisons that a training step leaves out.
    beta_dpo_momentum: weight of the old mean and deviation.

  Returns:
    Betas [P].
  """
  del beta_dpo_rho, beta_dpo_momentum  # read by select and update
  lead = pairs.log_ratio_gap - state['mean']
  scaled = jnp.maximum(beta * (1 + beta_dpo_a * lead), 1e-3)
  return jax.lax.stop_gradient(scaled)


@register_option(
  label='WPO',
  paper='Zhou et al. 2024, arXiv:2406.11827, eq. 2, sampled alignment',
  formula='x sg[exp(mean aligned lp_w) exp(mean aligned lp_l)], '
  'aligned = log p - log sum p^2',
  changes='values',
  accepts=('difference', 'absolute', 'reference_free'),
  needs=('sum_sq_probs',),
)
def wpo(values: Array, pairs: PairScores) -> Array:
  """WPO: comparisons that the policy is likely to write itself count more.

  Factor `sg[exp(mean aligned lp_w) exp(mean aligned lp_l)]`, means over
  tokens, aligned = `log p - log sum p^2`.

  Source: arXiv:2406.11827, eq. 2.

  Args:
    values: losses [P].
    pairs: scores of the comparisons, with aligned log-probabilities.

  Returns:
    Losses [P] times that factor.
  """
  chosen = pairs.chosen_aligned / pairs.chosen_tokens
  rejected = pairs.rejected_aligned / pairs.rejected_tokens
  return values * jax.lax.stop_gradient(jnp.exp(chosen + rejected))


@register_option(
  label='Dr. DPO',
  paper='Wu et al. 2024, arXiv:2407.07880, and its code',
  formula="mean L -> -b' log mean exp(-L/b'), means over the batch",
  changes='mean',
  accepts=('difference', 'absolute', 'reference_free'),
  needs=('whole_batch',),
  bounds={'dr_beta': '(0, inf)'},
)
def dr_dpo(values: Array, weight: Array, *, dr_beta: float = 1.0) -> Array:
  """Dr. DPO: comparisons with a large loss, perhaps mislabelled, count less.

  `-b' log mean exp(-L/b')` in place of `mean L`, weighted means over the
  global batch. A comparison's gradient has the factor `exp(-L/b')` over its
  mean. In a mix each loss has its own; the NLL of cpo, orpo and nll keeps its
  mean over tokens.

  Source: arXiv:2407.07880, and its code, where the mean is over one device's
  part of the batch.

  Args:
    values: losses [P].
    weight: weights [P]; 0 = padding.
    dr_beta: the paper's beta', in the unit of the losses; the mean at infinity.

  Returns:
    Scalar between the least loss and the mean loss; 0 if all weights are 0.
  """
  total = jnp.sum(weight)
  share = weight / jnp.where(total > 0, total, 1.0)
  least = jnp.min(jnp.where(weight > 0, values, jnp.inf))
  least = jax.lax.stop_gradient(jnp.where(total > 0, least, 0.0))
  above = jnp.where(weight > 0, (values - least) / dr_beta, 0.0)
  # Near 1 (a large b') the mean's distance to 1 has digits that it has not.
  fall = jnp.sum(share * jnp.expm1(-above))
  near_1 = fall > -0.5
  mean = jnp.sum(share * jnp.exp(-above))
  log_mean = jnp.where(
    near_1,
    jnp.log1p(jnp.where(near_1, fall, 0.0)),
    jnp.log(jnp.where(near_1, 1.0, mean)),
  )
  return least - dr_beta * log_mean


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


def _exp_minus_1(x: Array) -> Array:
  """exp(x) - 1, with x cut to at most 40."""
  return jnp.expm1(jnp.minimum(x, _LARGEST_EXPONENT))


def _alpha_divergence(a: Array, order: Array) -> Array:
  """(exp((order - 1) a) - 1) / (order - 1); a itself at order 1."""
  near_1 = jnp.abs(order - 1) < 1e-6
  scale = jnp.where(near_1, 1.0, order - 1)
  return jnp.where(near_1, a, _exp_minus_1(scale * a) / scale)
