"""reference_free: losses of likelihoods against their formulas in float64."""

import numpy as np
import pytest
import random_batches

FIELDS = random_batches.make(seed=3)
# Ties of log-ratios put some log-probabilities above 0.
FIELDS['policy_rejected'] = np.minimum(FIELDS['policy_rejected'], -0.01)


def means(fields):
  """Mean log-probabilities of winner and loser, [N, P] each."""
  return (
    fields['policy_chosen'] / fields['chosen_tokens'],
    fields['policy_rejected'] / fields['rejected_tokens'],
  )


def test_simper():
  # arXiv:2502.00883: -exp(mean log pi_w) + exp(mean log pi_l).
  def formula(f):
    w, x = means(f)
    return random_batches.mean(-np.exp(w) + np.exp(x), f['weight'])

  random_batches.check(FIELDS, formula, {'simper': 1.0})


ASFT = [
  {},
  {'beta': 0.2, 'odds_weight': 0.3, 'nll_weight': 0.5},
  {'beta': 3.0, 'nll_weight': 0.0},
]


@pytest.mark.parametrize('values', ASFT)
def test_asft(values):
  # arXiv:2502.01237 and its code; the NLL is over the batch's tokens.
  hyper = {'beta': 1.0, 'odds_weight': 1.0, 'nll_weight': 1.0} | values

  def formula(f):
    w, x = (mean - np.log1p(-np.exp(mean)) for mean in means(f))
    odds = random_batches.softplus(-hyper['beta'] * w)
    odds = odds + random_batches.softplus(hyper['beta'] * x)
    contrast = random_batches.mean(odds, f['weight'])
    return hyper['odds_weight'] * contrast + hyper['nll_weight'] * nll(f)

  random_batches.check(FIELDS, formula, {'asft': 1.0}, **values)


def nll(fields):
  """Mean over the chosen tokens of a batch, [N]; 0 over nothing."""
  w, _ = means(fields)
  return random_batches.mean(-w, fields['weight'] * fields['chosen_tokens'])


def test_asft_of_beta_1_is_binary_cross_entropy():
  # s(log odds) = P, so the bracket is -log P_w - log(1 - P_l).
  def formula(f):
    w, x = means(f)
    return random_batches.mean(-w - np.log(-np.expm1(x)), f['weight'])

  random_batches.check(FIELDS, formula, {'asft': 1.0}, nll_weight=0.0)


def test_asft_is_its_contrast_and_an_nll_term():
  both, slope, _ = random_batches.ours(FIELDS, {'asft': 1.0}, nll_weight=0.4)
  apart, expected, _ = random_batches.ours(
    FIELDS, {'asft': 1.0, 'nll': 0.4}, nll_weight=0.0
  )
  np.testing.assert_allclose(both, apart, rtol=1e-12)
  for side in slope:
    np.testing.assert_allclose(slope[side], expected[side], rtol=1e-11)
