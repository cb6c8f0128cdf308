"""unlearning: losses of undesirable completions, formulas in float64."""

import numpy as np
import pytest
import random_batches
import random_completions
from random_completions import nls

# Labelled completions, and comparisons whose losers are undesirable.
LABELLED = random_completions.arrays(4, labels=True)
PAIRED = random_completions.arrays(5)
PAIRS = random_batches.make(seed=6)


def mean_of_undesirable(data, each):
  """The mean of values [NUM, 12] over labels 0, or over weighted losers."""
  losers = np.zeros(each.shape)
  losers[:, 1::2] = data['weight']
  weight = np.where(data['labels'] >= 0, data['labels'] == 0, losers)
  return random_completions.mean(each, weight)


@pytest.mark.parametrize('data', [LABELLED, PAIRED], ids=['labels', 'pairs'])
@pytest.mark.parametrize('beta', [0.1, 1.0])
def test_npo(data, beta):
  # arXiv:2404.05868: -(2/beta) log s(-beta a).
  def loss_of(data):
    ratio = data['policy'] - data['reference']
    return mean_of_undesirable(data, 2 / beta * nls(-beta * ratio))

  random_completions.check('npo', data, loss_of, beta=beta)


@pytest.mark.parametrize('data', [LABELLED, PAIRED], ids=['labels', 'pairs'])
@pytest.mark.parametrize('beta,gamma', [(2.5, 0.0), (0.7, 0.4)])
def test_simnpo(data, beta, gamma):
  # arXiv:2410.07163: -(2/beta) log s(-(beta/|y|) log pi - gamma).
  def loss_of(data):
    rewards = beta * data['policy'] / data['tokens']
    return mean_of_undesirable(data, 2 / beta * nls(-rewards - gamma))

  random_completions.check('simnpo', data, loss_of, beta=beta, gamma=gamma)


@pytest.mark.parametrize(
  'name,other,beta,winner',
  [
    # A winner as the reference has it, and one of probability 1.
    ('npo', 'sigmoid', 0.3, 'reference_chosen'),
    ('simnpo', 'simpo', 2.0, None),
  ],
)
def test_it_is_a_comparison_with_a_winner_that_stays(name, other, beta, winner):
  zeros = np.zeros_like(PAIRS['policy_chosen'])
  fields = PAIRS | {'policy_chosen': PAIRS[winner] if winner else zeros}
  value, slopes, _ = random_batches.ours(fields, {name: 1.0}, beta=beta)
  expected, of_pairs, _ = random_batches.ours(
    fields, {other: 1.0}, beta=beta, **({} if winner else {'gamma': 0.0})
  )
  np.testing.assert_allclose(value, 2 / beta * expected, rtol=1e-11)
  np.testing.assert_allclose(
    slopes['policy_rejected'],
    2 / beta * of_pairs['policy_rejected'],
    rtol=1e-9,
    atol=1e-16,
  )
  assert not slopes['policy_chosen'].any()


def test_npo_of_a_small_beta_is_gradient_ascent():
  _, slopes = random_completions.evaluate('npo', LABELLED, beta=1e-7)
  undesirable = LABELLED['labels'] == 0
  share = undesirable / undesirable.sum(1, keepdims=True)
  np.testing.assert_allclose(slopes, share, rtol=1e-5)


def test_without_an_undesirable_completion_it_is_0():
  data = LABELLED | {'labels': np.maximum(LABELLED['labels'], 1)}
  for name in ('npo', 'simnpo'):
    value, slopes = random_completions.evaluate(name, data)
    assert not value.any() and not slopes.any()
