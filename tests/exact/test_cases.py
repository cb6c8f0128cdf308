"""Cases: optima and weights by hand, counts of samples, refusals."""

import numpy as np
import pytest

from dpo_jax.exact import cases
from dpo_jax.types import InputError


def test_the_regularised_optimum_by_hand():
  # ref (1/2, 1/4, 1/4), exp(r / beta) = (1, 2, 4): products 2 : 2 : 4.
  reference = np.array([[0.5, 0.25, 0.25]])
  reward = 0.5 * np.log([[1.0, 2.0, 4.0]])
  case = cases.Case(reference, reward, np.full((1, 3, 3), 0.5))
  optimum = cases.regularised_optimum(case, beta=0.5)
  np.testing.assert_allclose(optimum, [[0.25, 0.25, 0.5]], atol=1e-15)


def test_no_other_policy_has_a_larger_regularised_reward():
  case, beta = cases.bradley_terry(0), 0.7
  star, rng = cases.regularised_optimum(case, beta), np.random.default_rng(1)

  def value(policy):
    kl = (policy * np.log(policy / case.reference_XY)).sum(-1)
    return (policy * case.reward_XY).sum(-1) - beta * kl

  for _ in range(100):
    logits = np.log(star) + 0.1 * rng.normal(size=star.shape)
    assert (value(cases.softmax(logits)) < value(star)).all()


def test_weights_by_hand():
  # Pairs of three actions from (1/2, 1/4, 1/4): products 1/8, 1/8, 1/16, of
  # which shares .4, .4, .2; the first always wins, and one label in ten flips.
  case = cases.three_actions(0)._replace(
    reference_XY=np.array([[0.5, 0.25, 0.25]])
  )
  weights = cases.pair_weights(case, 'reference', 0.1, 1.0)
  expected = [[0, 0.36, 0.36], [0.04, 0, 0.18], [0.04, 0.02, 0]]
  np.testing.assert_allclose(weights, [expected], atol=1e-15)


@pytest.mark.parametrize('sampling', cases.SAMPLINGS)
@pytest.mark.parametrize('name', cases.CASES)
def test_every_prompt_has_the_same_weight(name, sampling):
  case = cases.make(name, 3)
  weights = cases.pair_weights(case, sampling, 0.2, 0.3)
  share = weights.sum((-1, -2))
  np.testing.assert_allclose(share, 1 / len(share))
  assert (weights >= 0).all() and not np.diagonal(weights, 0, 1, 2).any()
  both = case.prefers_XYY + case.prefers_XYY.swapaxes(-1, -2)
  np.testing.assert_allclose(both, 1)


def test_noise_of_one_half_would_hide_every_preference():
  weights = cases.pair_weights(cases.bradley_terry(0), 'uniform', 0.5, 1.0)
  np.testing.assert_allclose(weights, weights.swapaxes(-1, -2))


def test_a_sample_has_its_size_and_the_right_mean():
  weights = cases.pair_weights(cases.bradley_terry(0), 'uniform', 0.0, 1.0)
  samples = [cases.sample(weights, 100, seed) for seed in range(400)]
  for shares in samples:
    counts = shares * 100
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    assert abs(shares.sum() - 1) < 1e-12
  # Standard error of each mean: sqrt(p (1 - p) / 40,000) < .0012.
  assert np.abs(np.mean(samples, axis=0) - weights).max() < 0.005
  assert cases.sample(weights, np.inf, 0) is weights
  again = cases.sample(weights, 100, 7)
  assert (again == samples[7]).all() and (again != samples[8]).any()


def test_seeds_differ_and_the_judges_share_their_rewards():
  first, second = cases.bradley_terry(0), cases.bradley_terry(1)
  assert (first.reward_XY != second.reward_XY).all()
  sure = cases.deterministic(0)
  assert (sure.reward_XY == first.reward_XY).all()
  assert (sure.prefers_XYY.round() == sure.prefers_XYY).any()
  np.testing.assert_array_equal(first.prefers_XYY > 0.5, sure.prefers_XYY > 0.5)


def test_an_unknown_case_is_refused():
  with pytest.raises(InputError, match="did you mean 'deterministic'"):
    cases.make('determinstic', 0)
