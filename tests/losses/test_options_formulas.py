"""options: their authors' formulas in float64, value and gradient.

Formulas are written anew in numpy, from the sources that they name.
"""

import numpy as np
import pytest
import random_batches

from dpo_jax import losses

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
