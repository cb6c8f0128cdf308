"""options: their authors' formulas in float64, value and gradient.

Formulas are written anew in numpy, from the sources that they name.
"""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_batches

from dpo_jax import losses
from dpo_jax.losses import batch_options, views

FIELDS = random_batches.make()
softplus, gap = random_batches.softplus, random_batches.gap


def dr_dpo(b, values, weight):
  """arXiv:2407.07880: -b' log mean exp(-L / b'), by a shifted sum."""
  real = weight > 0
  scaled = np.where(real, -values / b, -np.inf)
  top = np.where(real.any(1), scaled.max(1), 0.0)
  total = np.where(real.any(1), weight.sum(1), 1.0)
  mean = (weight * np.exp(scaled - top[:, None])).sum(1) / total
  return -b * (top + np.log(np.where(real.any(1), mean, 1.0)))


@pytest.mark.parametrize('dr_beta', [0.05, 1.0, 30.0])
def test_dr_dpo_is_its_formula(dr_beta):
  def formula(f):
    return dr_dpo(dr_beta, softplus(-0.1 * gap(f)), f['weight'])

  random_batches.check(
    FIELDS, formula, {'sigmoid': 1.0}, ('dr_dpo',), dr_beta=dr_beta
  )


@pytest.mark.parametrize('name', ['sigmoid', 'sppo_hard', 'simpo', 'cpo'])
def test_dr_dpo_of_a_large_beta_is_the_mean(name):
  plain, slope, _ = random_batches.ours(FIELDS, {name: 1.0})
  far, far_slope, _ = random_batches.ours(
    FIELDS, {name: 1.0}, ('dr_dpo',), dr_beta=1e9
  )
  np.testing.assert_allclose(far, plain, rtol=1e-5)
  for key in slope:
    np.testing.assert_allclose(far_slope[key], slope[key], rtol=1e-5)


def test_dr_dpo_leaves_the_mean_over_tokens():
  terms = {'sigmoid': 0.7, 'nll': 0.3}

  def formula(f):
    tokens = (f['weight'] * f['chosen_tokens']).sum(1)
    nll = -(f['weight'] * f['policy_chosen']).sum(1)
    contrast = dr_dpo(1.0, softplus(-0.1 * gap(f)), f['weight'])
    return 0.7 * contrast + 0.3 * nll / np.where(tokens > 0, tokens, 1)

  random_batches.check(FIELDS, formula, terms, ('dr_dpo',))


def test_dr_dpo_needs_the_whole_batch():
  assert losses.make_objective(('sigmoid',), options=('dr_dpo',)).whole_batch


def beta_dpo(fields, kept, per, a=0.6, beta=0.1):
  """preference_loss of the authors' code; the moving mean starts at 0."""
  h, real = gap(fields), fields['weight'] > 0
  average = (h * real).sum(1) / np.maximum(real.sum(1), 1)
  moving = 0.1 * average[:, None]
  used = (h * kept).sum(1) / np.maximum(kept.sum(1), 1)
  lead = h - moving if per == 'comparison' else used[:, None] - moving
  used_beta = np.maximum(beta * (1 + a * lead), 1e-3)  # without gradient

  def formula(f):
    return random_batches.mean(
      softplus(-used_beta * gap(f)), kept * f['weight']
    )

  return formula


@pytest.mark.parametrize('per', ['batch', 'comparison'])
@pytest.mark.parametrize('rho', [0.0, 0.4])
def test_beta_dpo_is_its_formula(per, rho):
  values = {'beta_dpo_per': per, 'beta_dpo_rho': rho}
  _, _, state = random_batches.ours(
    FIELDS, {'sigmoid': 1.0}, ('beta_dpo',), **values
  )
  formula = beta_dpo(FIELDS, kept_of(state['beta_dpo'], rho), per)
  random_batches.check(
    FIELDS, formula, {'sigmoid': 1.0}, ('beta_dpo',), **values
  )


def kept_of(state, rho):
  """Bool [N, P]: the comparisons that a step with this new state keeps."""
  with jax.enable_x64(True):
    nothing = jnp.zeros(FIELDS['weight'].shape)

    def select(h, weight, state):
      zeros = jnp.zeros_like(h)
      pairs = views.PairScores(h, *[zeros] * 5, weight, *[zeros] * 3)
      return batch_options.select_beta_dpo(state, pairs, beta_dpo_rho=rho)

    kept = jax.vmap(select)(gap(FIELDS) + nothing, FIELDS['weight'], state)
  return np.asarray(kept)


@pytest.mark.parametrize('clamp', [True, False])
@pytest.mark.parametrize('name', ['sigmoid', 'cpo'])
def test_wpo_is_its_formula(name, clamp):
  """arXiv:2406.11827, eq. 2; its code has the minimum, TRL has not."""
  chosen = FIELDS['chosen_aligned'] / FIELDS['chosen_tokens']
  factor = np.exp(
    chosen + FIELDS['rejected_aligned'] / FIELDS['rejected_tokens']
  )
  assert 0.2 < (factor > 1).mean() < 0.8
  factor = np.minimum(factor, 1) if clamp else factor

  def formula(f):
    if name == 'sigmoid':
      return random_batches.mean(factor * softplus(-0.1 * gap(f)), f['weight'])
    ratio = f['policy_chosen'] - f['policy_rejected']
    contrast = random_batches.mean(factor * softplus(-0.1 * ratio), f['weight'])
    tokens = (f['weight'] * f['chosen_tokens']).sum(1)
    nll = -(f['weight'] * factor * f['policy_chosen']).sum(1)
    return contrast + nll / np.where(tokens > 0, tokens, 1)

  random_batches.check(FIELDS, formula, {name: 1.0}, ('wpo',), wpo_clamp=clamp)


# f'(e^a) of arXiv:2309.16240, and of arXiv:2602.06788.
DIVERGENCES = {
  'reverse_kl': lambda a: a,
  'forward_kl': lambda a: 1 - np.exp(-a),
  'js_divergence': lambda a: np.log(2) - softplus(-a),
  'alpha_divergence': lambda a: (np.exp(0.3 * a) - 1) / 0.3,
  'squared': lambda a: a * np.exp(-a),
}


@pytest.mark.parametrize('name', DIVERGENCES)
def test_f_divergences_are_their_formulas(name):
  def formula(f):
    ratio = {
      side: DIVERGENCES[name](f[f'policy_{side}'] - f[f'reference_{side}'])
      for side in ('chosen', 'rejected')
    }
    h = ratio['chosen'] - ratio['rejected']
    return random_batches.mean(softplus(-0.1 * h), f['weight'])

  alpha = {'f_alpha': 1.3} if name == 'alpha_divergence' else {}
  random_batches.check(
    FIELDS,
    formula,
    {'sigmoid': 1.0},
    ('f_divergence',),
    f_divergence=name,
    **alpha,
  )


def slope(a, **values):
  """d loss / d log pi_w [N] of one comparison with log-ratios a [N] and 0."""
  ones = np.ones((len(a), 1))
  fields = {
    name: ones
    for name in ('chosen_tokens', 'rejected_tokens', 'weight')
    + ('score_chosen', 'score_rejected', 'chosen_aligned', 'rejected_aligned')
  }
  fields |= dict.fromkeys(('reference_chosen', 'reference_rejected'), -ones)
  fields |= {
    'policy_chosen': np.asarray(a)[:, None] - 1,
    'policy_rejected': -ones,
  }
  _, slopes, _ = random_batches.ours(
    fields, {'sigmoid': 1.0}, ('f_divergence',), **values
  )
  return slopes['policy_chosen'][:, 0]


def test_f_divergences_keep_their_pull_on_the_worst_answers():
  # -beta e^-a s(-D), D the margin of a far worse answer: s(-D) = 1.
  forward = slope([-39.0, -41, -49, -60, -1e4], f_divergence='forward_kl')
  line = -0.1 * np.exp(40)  # of unit slope to -50, then 1 / (1 + distance)
  expected = [-0.1 * np.exp(39), line, line, line / 11, line / 9951]
  np.testing.assert_allclose(forward, expected, rtol=1e-9)
  half = slope([-79.0, -81], f_divergence='alpha_divergence', f_alpha=0.5)
  np.testing.assert_allclose(half, [-0.1 * np.exp(39.5), line], rtol=1e-9)
  squared = slope([-35.0, -41], f_divergence='squared')
  expected = [-3.6 * np.exp(35), -3.7 * np.exp(36)]
  np.testing.assert_allclose(squared, expected, rtol=1e-9)


def test_squared_lets_go_of_a_winner_at_one():
  # (1 - a) e^-a is 0 at 1, and pushes back beyond it.
  at = slope([0.9, 1.0, 1.1], f_divergence='squared')
  assert at[0] < 0 and at[1] == 0 and at[2] > 0


DIFFERENCES = [n for n in losses.names() if losses.get(n).kind == 'difference']


@pytest.mark.parametrize('name', DIFFERENCES)
def test_f_divergences_are_finite_in_float32(name):
  a_w, a_l = np.array([(1e4, -1e4), (-1e4, 1e4), (-1e4, 0), (-1e4, -9e3)]).T
  for values in (
    {'f_divergence': 'forward_kl'},
    {'f_divergence': 'squared'},
    {'f_divergence': 'alpha_divergence', 'f_alpha': 0.5},
    {'f_divergence': 'alpha_divergence', 'f_alpha': 1.004},
  ):
    scores = harness.scores_of(a_w, a_l)
    value, policy, _ = harness.evaluate(
      name, scores, None, ('f_divergence',), **values
    )
    for leaf in jax.tree.leaves((value, policy)):
      assert np.isfinite(leaf).all(), values
