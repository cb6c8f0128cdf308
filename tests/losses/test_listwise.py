"""listwise: rankings of a prompt's completions against float64 formulas."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_completions

from dpo_jax import losses, types
from dpo_jax.losses import views

DATA = random_completions.arrays(1)
GROUPS = [
  np.flatnonzero(random_completions.LISTS == i)
  for i in range(random_completions.LISTS.max() + 1)
]


def log_losses(rewards, scores):
  """-log softmax of each reward over itself and lower scores, [..., K]."""
  terms = []
  for k in range(rewards.shape[-1]):
    lower = scores < scores[..., k : k + 1]
    total = np.where(lower, np.exp(rewards - rewards[..., k : k + 1]), 0)
    terms.append(np.log1p(total.sum(-1)))
  return np.stack(terms, -1)


def softmax(rewards, scores):
  """arXiv:2406.09215: -log s(-log sum_j exp(r_j - r_w)), ties averaged."""
  best = scores == scores.max(-1, keepdims=True)
  return random_completions.mean(log_losses(rewards, scores), best)


def plackett_luce(rewards, scores):
  """arXiv:2305.18290, A.3: -log prod_k exp(r_k) / sum_(j >= k) exp(r_j)."""
  return log_losses(rewards, scores).sum(-1)


FORMULAS = {'softmax': softmax, 'plackett_luce': plackett_luce}


def weights(data):
  """[NUM, prompts]: the weight that the view gives each prompt."""
  scores = types.CompletionScores(data['policy'], data['tokens'])
  gather = jax.vmap(
    lambda s, d: (
      views.gather_lists(s, None, random_completions.batch_of(d)).weight
    )
  )
  return np.asarray(gather(scores, data), float)[:, : len(GROUPS)]


@pytest.mark.parametrize('name', FORMULAS)
@pytest.mark.parametrize('beta', [0.1, 1.0])
def test_value_and_gradient(name, beta):
  weight = weights(DATA)
  assert (weight[:, 3] == 0).all()  # one completion alone

  def loss_of(data):
    rewards = beta * (data['policy'] - data['reference'])
    each = [FORMULAS[name](rewards[:, g], data['scores'][:, g]) for g in GROUPS]
    return random_completions.mean(np.stack(each, -1), weight)

  random_completions.check(name, DATA, loss_of, beta=beta)


@functools.cache
def program(name):
  """The loss of 8 completions at beta 1: (values [8], d sum / d rewards)."""

  def sum_of(rewards, *rest):
    lists = losses.ListScores(rewards, jnp.zeros(8), *rest, jnp.ones(8))
    values = losses.get(name).fn(lists, beta=1.0)
    return values.sum(), values

  return jax.jit(jax.grad(sum_of, has_aux=True))


def run(name, rewards, scores, prompt=None):
  """(values [8], slopes) of up to 8 completions, by default of one prompt."""
  missing = 8 - len(scores)
  prompt = np.zeros(len(scores), int) if prompt is None else prompt
  slopes, values = program(name)(
    np.pad(np.float32(rewards), (0, missing)),
    np.pad(np.float32(scores), (0, missing)),
    np.pad(np.int32(prompt), (0, missing), constant_values=-1),
  )
  return values, slopes[: len(scores)]


def value(name, rewards, scores):
  """The loss of one prompt."""
  return run(name, rewards, scores)[0][0]


@pytest.mark.parametrize('name', FORMULAS)
def test_two_completions_are_the_sigmoid_loss(name):
  for gap in (-3.0, 0.0, 0.4, 90.0):
    expected = -jax.nn.log_sigmoid(gap)
    for rewards, scores in (((gap, 0.0), (2, 1)), ((0.0, gap), (1, 2))):
      np.testing.assert_allclose(value(name, rewards, scores), expected, 1e-6)


def test_the_chances_of_all_rankings_add_up_to_one():
  rewards = np.array([0.3, -1.2, 2.0, 0.0])
  chances = [
    np.exp(-value('plackett_luce', rewards, ranking))
    for ranking in itertools.permutations(range(4))
  ]
  np.testing.assert_allclose(sum(chances), 1.0, rtol=1e-5)
  # Softmax: the chance that one is the best, whatever the others' ranking.
  chances = [
    np.exp(-value('softmax', rewards, np.arange(4) == best))
    for best in range(4)
  ]
  np.testing.assert_allclose(
    chances, np.exp(rewards) / np.exp(rewards).sum(), 1e-6
  )


def test_values_at_step_0():
  for K in (2, 3, 8):
    scores = np.arange(K)
    np.testing.assert_allclose(
      value('softmax', np.zeros(K), scores), np.log(K), rtol=1e-6
    )
    np.testing.assert_allclose(
      value('plackett_luce', np.zeros(K), scores),
      np.log(np.arange(1, K + 1)).sum(),
      rtol=1e-6,
    )


@pytest.mark.parametrize('name', FORMULAS)
def test_equal_scores_are_not_compared(name):
  assert value(name, [3.0, -1.0, 0.5], [1, 1, 1]) == 0
  # Two best: each against the third alone, one in softmax's mean.
  rewards, scores = [1.0, -2.0, 0.5], [4, 4, 1]
  losses_of_two = np.log1p(np.exp([-0.5, 2.5]))
  expected = losses_of_two.sum() / (2 if name == 'softmax' else 1)
  np.testing.assert_allclose(value(name, rewards, scores), expected, rtol=1e-6)


@pytest.mark.parametrize('name', FORMULAS)
def test_order_and_strangers_change_nothing(name):
  rewards, scores = np.array([1.0, -2.0, 0.5, 4.0]), np.array([3, 9, 1, 4])
  expected = value(name, rewards, scores)
  for order in ([2, 0, 3, 1], [3, 2, 1, 0]):
    got = value(name, rewards[order], scores[order])
    np.testing.assert_allclose(got, expected, rtol=1e-6)
  # Other prompts and padding (-1) between them, one with NaN.
  got, slopes = run(
    name,
    [np.nan, 1, 7, -2, -7, 0.5, 4, 3],
    [9, 3, 5, 9, 4, 1, 4, 0],
    [-1, 2, 0, 2, 0, 2, 2, -1],
  )
  np.testing.assert_allclose(got[2], expected, rtol=1e-6)
  assert np.isfinite(got).all() and np.isfinite(slopes).all()
  assert slopes[0] == slopes[-1] == 0


@pytest.mark.parametrize('name', FORMULAS)
@pytest.mark.parametrize('size', [1e3, 1e4])
def test_eight_extreme_rewards(name, size):
  rewards = size * np.array([1, -1, 0.5, 0, -0.3, 0.9, -0.8, 0.2])
  # Against the order: the least reward is the best.
  (got, *_), slopes = run(name, rewards, np.argsort(np.argsort(-rewards)))
  assert np.isfinite(got) and np.isfinite(slopes).all()
  pulled_up = {'softmax': [1], 'plackett_luce': [1, 6, 4, 3]}[name]
  assert (slopes[np.array(pulled_up)] < -0.5).all()
  np.testing.assert_allclose(slopes.sum(), 0.0, atol=1e-5)
