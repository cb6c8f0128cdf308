"""Losses of parts: their authors' formulas in float64, value and gradient.

Formulas are written anew in numpy, from the sources that they name.
"""

import numpy as np
import pytest
import random_batches

from dpo_jax import losses

FIELDS = random_batches.make()
softplus, gap, mean = (
  random_batches.softplus,
  random_batches.gap,
  random_batches.mean,
)


def nll(f):
  """Mean over all chosen tokens of the batch."""
  tokens = (f['weight'] * f['chosen_tokens']).sum(1)
  total = -(f['weight'] * f['policy_chosen']).sum(1)
  return total / np.where(tokens > 0, tokens, 1)


def cpo(f, alpha, beta=0.1):
  """arXiv:2401.08417 and its code: cross-entropy over the batch's tokens."""
  contrast = softplus(-beta * (f['policy_chosen'] - f['policy_rejected']))
  return mean(contrast, f['weight']) + alpha * nll(f)


def orpo(f, beta=1.0, odds_weight=0.1):
  """arXiv:2403.07691, eqs. 6 and 7, and its code; beta of arXiv:2502.01237."""

  def log_odds(side):
    log_p = f[f'policy_{side}'] / f[f'{side}_tokens']
    return log_p - np.log1p(-np.exp(log_p))

  ratio = softplus(-beta * (log_odds('chosen') - log_odds('rejected')))
  return nll(f) + odds_weight * mean(ratio, f['weight'])


def rewards(f):
  chosen = 0.1 * (f['policy_chosen'] - f['reference_chosen'])
  return chosen, 0.1 * (f['policy_rejected'] - f['reference_rejected'])


def mpo(fields):
  """arXiv:2411.10442: .8 DPO + .2 BCO with its reward shift + SFT."""
  # The shift of the first batch, which has no gradient.
  shift = sum(mean(r, fields['weight']) for r in rewards(fields))[:, None] / 2

  def formula(f):
    chosen, rejected = rewards(f)
    quality = softplus(-(chosen - shift)) + softplus(rejected - shift)
    contrast = softplus(-0.1 * gap(f))
    return mean(0.8 * contrast + 0.2 * quality, f['weight']) + nll(f)

  return formula


@pytest.mark.parametrize('alpha', [0.0, 1.0, 0.3])
def test_cpo(alpha):
  random_batches.check(
    FIELDS, lambda f: cpo(f, alpha), {'cpo': 1.0}, alpha=alpha
  )


def test_cpo_is_its_contrast_and_the_nll_term():
  whole, slope, _ = random_batches.ours(FIELDS, {'cpo': 1.0}, alpha=0.7)
  parts, slopes, _ = random_batches.ours(
    FIELDS, {'cpo': 1.0, 'nll': 0.7}, alpha=0.0
  )
  np.testing.assert_allclose(whole, parts, rtol=1e-12)
  for name in slope:
    np.testing.assert_allclose(slope[name], slopes[name], rtol=1e-12)


@pytest.mark.parametrize('beta,odds_weight', [(1.0, 0.1), (0.3, 1.0)])
def test_orpo(beta, odds_weight):
  random_batches.check(
    FIELDS,
    lambda f: orpo(f, beta, odds_weight),
    {'orpo': 1.0},
    beta=beta,
    odds_weight=odds_weight,
  )


def test_mpo_has_the_reward_shift_of_its_source():
  terms, _ = losses.MIXES['mpo']
  random_batches.check(FIELDS, mpo(FIELDS), terms, beta=0.1)


def test_mpo_without_a_shift_is_that_of_trl():
  # The golden numbers are of this mix; both rewards are 0 at step 0.
  start = FIELDS | {
    f'policy_{side}': FIELDS[f'reference_{side}']
    for side in ('chosen', 'rejected')
  }
  terms, _ = losses.MIXES['mpo']
  unshifted = {{'bco': 'bco_pair'}.get(k, k): v for k, v in terms.items()}
  ours, slope, _ = random_batches.ours(start, terms)
  trl, slopes, _ = random_batches.ours(start, unshifted)
  np.testing.assert_allclose(ours, trl, rtol=1e-12)
  for name in slope:
    np.testing.assert_allclose(slope[name], slopes[name], rtol=1e-12)
