"""control_variates: no bias, less variance, no weight set by its own answer."""

import numpy as np
import pytest

from dpo_jax.run import control_variates

N, T, F = 256, 20, 3


def drawn(seed, number=N):
  """A walk whose place sets the next token's KL: draws tell what follows."""
  rng = np.random.default_rng(seed)
  draws = rng.normal(size=(number, T, F))
  place = np.zeros(number)
  kl = np.zeros((number, T))
  for t in range(T):
    kl[:, t] = 1 + 0.3 * place + 0.05 * rng.normal(size=number)
    place = 0.5 * place + draws[:, t, 0]
  return kl, draws


def test_unbiased_with_less_variance():
  # By linearity the mean of the whole sum is T, exactly.
  errors, ratios = [], []
  for seed in range(60):
    kl, draws = drawn(seed)
    got = control_variates.adjusted(kl, draws, np.arange(N))
    errors.append(got.mean() - T)
    ratios.append(got.var() / kl.sum(1).var())
  # The draws explain nearly all; 40 answers of ridge keep some of it.
  assert np.mean(ratios) < 0.1
  assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(60)
  assert np.std(errors) < 0.5 * np.std(
    [drawn(s)[0].sum(1).mean() for s in range(60)]
  )


def test_draws_that_tell_nothing_cost_little():
  rng = np.random.default_rng(0)
  ratios = []
  for seed in range(20):
    kl, _ = drawn(seed, 64)
    noise = rng.normal(size=(64, T, 30))
    got = control_variates.adjusted(kl, noise, np.arange(64))
    ratios.append(got.var() / kl.sum(1).var())
  assert np.mean(ratios) < 1.15


def test_an_answer_does_not_set_its_own_weights():
  kl, draws = drawn(0)
  prompts = np.arange(N) // 2  # two answers each
  before = control_variates.adjusted(kl, draws, prompts)
  moved = kl.copy()
  moved[6] += 100 * np.arange(T)
  after = control_variates.adjusted(moved, draws, prompts)
  # Both answers of the prompt have the weights that they had.
  assert after[6] - before[6] == pytest.approx((moved - kl)[6].sum())
  assert after[7] == pytest.approx(before[7])
  # Those of other folds have not.
  assert (np.abs(after - before) > 1e-6).sum() > N / 2


@pytest.mark.parametrize('clusters', [[0, 0, 0], [b'a', b'a', b'a']])
def test_answers_of_one_prompt_stay_as_they_are(clusters):
  kl, draws = drawn(1, 3)
  got = control_variates.adjusted(kl, draws, np.array(clusters))
  np.testing.assert_allclose(got, kl.sum(1))


def test_draws_that_do_not_vary_are_left_out():
  kl, draws = drawn(2)
  zeros = np.zeros((N, T, 2))
  got = control_variates.adjusted(
    kl, np.concatenate([draws, zeros], -1), np.arange(N)
  )
  want = control_variates.adjusted(kl, draws, np.arange(N))
  np.testing.assert_allclose(got, want)
