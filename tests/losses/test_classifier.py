"""classifier: losses of the margin D against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_batches

from dpo_jax import losses

FIELDS = random_batches.make(seed=1)
# arXiv:2402.05749 (GPO), arXiv:2505.24709 (SymPO): functions of D.
FORMULAS = [
  ('exponential', {}, lambda D: np.exp(-D)),
  ('truncated_quadratic', {}, lambda D: np.maximum(0, 1 - D) ** 2),
  ('savage', {}, lambda D: 1 / (1 + np.exp(D)) ** 2),
  ('sympo', {}, lambda D: 1 / (1 + np.exp(D))),
  (
    'sympo',
    {'shape': 'ramp'},
    lambda D: np.clip(0.5 - 0.5 * D, 0, 1),
  ),
]


@pytest.mark.parametrize('name,static,formula', FORMULAS)
@pytest.mark.parametrize('beta', [0.1, 0.7])
def test_value_and_gradient(name, static, formula, beta):
  def loss_of(f):
    each = formula(beta * random_batches.gap(f))
    return random_batches.mean(each, f['weight'])

  random_batches.check(FIELDS, loss_of, {name: 1.0}, beta=beta, **static)


def each(name, margins, **static):
  """(losses, their slopes) at margins D = beta h [n], in float32."""

  def loss_of(policy):
    zeros = jnp.zeros_like(policy)
    pairs = losses.PairScores(policy, *[zeros] * 9)
    return losses.get(name).fn(pairs, beta=1.0, **static)

  margins = jnp.asarray(margins, jnp.float32)
  return loss_of(margins), jax.vmap(jax.grad(loss_of))(margins)


# (loss, keywords, value at D = 0, slope at D = 0).
@pytest.mark.parametrize(
  'name,static,value,slope',
  [
    ('exponential', {}, 1.0, -1.0),
    ('truncated_quadratic', {}, 1.0, -2.0),
    ('savage', {}, 0.25, -0.25),
    ('sympo', {}, 0.5, -0.25),
    ('sympo', {'shape': 'ramp'}, 0.5, -0.5),
  ],
)
def test_where_policy_and_reference_agree(name, static, value, slope):
  got = each(name, [0.0], **static)
  np.testing.assert_allclose(np.ravel(got), [value, slope], rtol=1e-6)


@pytest.mark.parametrize('shape', ['sigmoid', 'ramp'])
def test_sympo_is_symmetric(shape):
  margins = np.array([0.0, 0.3, 0.9, 1.0, 7.0, 1e3])
  there, _ = each('sympo', margins, shape=shape)
  back, _ = each('sympo', -margins, shape=shape)
  np.testing.assert_allclose(there + back, 1.0, rtol=1e-6)


def test_savage_is_sympo_squared_and_the_quadratic_a_squared_hinge():
  margins = np.array([-9.0, -0.5, 0.0, 0.3, 1.0, 4.0])
  value = {
    name: each(name, margins)[0]
    for name in ('savage', 'sympo', 'truncated_quadratic', 'hinge')
  }
  np.testing.assert_allclose(value['savage'], value['sympo'] ** 2, rtol=1e-6)
  np.testing.assert_allclose(
    value['truncated_quadratic'], value['hinge'] ** 2, rtol=1e-6
  )


@pytest.mark.parametrize('name', ['exponential', 'savage', 'sympo'])
def test_gradients_do_not_round_to_zero(name):
  # In float32 s(40) is 1: s (1 - s) would be 0 where the formula is 4e-18.
  margins = np.array([-40.0, -20.0, 20.0, 40.0])
  _, slopes = each(name, margins)
  chance = 1 / (1 + np.exp(margins))
  expected = {
    'exponential': -np.exp(-margins),
    'savage': -2 * chance**2 * np.exp(margins) * chance,
    'sympo': -np.exp(margins) * chance**2,
  }[name]
  np.testing.assert_allclose(slopes, expected, rtol=2e-5)


def test_the_exponential_goes_on_as_its_tangent():
  values, slopes = each('exponential', [-40.0, -41.0, -1e4])
  top = np.exp(40.0)
  np.testing.assert_allclose(values, top * np.array([1, 2, 9961]), rtol=1e-5)
  np.testing.assert_allclose(slopes, [-top] * 3, rtol=1e-5)
