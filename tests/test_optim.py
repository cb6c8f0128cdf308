"""optim: against numpy's arithmetic and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import optim
from dpo_jax.types import InputError

PARAMS = {'w': jnp.array([1.0, -2.0]), 'norm': jnp.array([3.0])}
GRADS = {'w': jnp.array([0.5, -0.1]), 'norm': jnp.array([0.2])}


def updates(name, steps=1, **options):
  optimizer = optim.make_optimizer(name, **options)
  state = optimizer.init(PARAMS)
  for _ in range(steps):
    out, state = optimizer.update(GRADS, state, PARAMS)
  return out


def test_adamw_two_steps_equal_numpy():
  got = updates('adamw', 2, b1=0.9, b2=0.99, eps=1e-8)['w']
  g = np.array([0.5, -0.1])
  m = (0.9 * 0.1 + 0.1) * g / (1 - 0.9**2)
  v = (0.99 * 0.01 + 0.01) * g**2 / (1 - 0.99**2)
  np.testing.assert_allclose(got, m / (np.sqrt(v) + 1e-8), rtol=1e-5)


def test_rmsprop_is_torchs():
  # torch.optim.RMSprop: v = .99 v + .01 g^2; step = g / (sqrt(v) + eps)
  got = updates('rmsprop', 2, b2=0.99, eps=1e-3)['w']
  g = np.array([0.5, -0.1])
  v = (0.99 * 0.01 + 0.01) * g**2
  np.testing.assert_allclose(got, g / (np.sqrt(v) + 1e-3), rtol=1e-5)


def test_lion_moves_by_signs():
  np.testing.assert_array_equal(updates('lion')['w'], [1.0, -1.0])


def test_adafactor_is_bounded_by_its_block_rms():
  got = np.asarray(updates('adafactor')['w'])
  assert np.sqrt(np.mean(got**2)) <= 1 + 1e-6 and got[0] > 0 > got[1]


def test_weight_decay_spares_norms_and_clipping_is_global():
  decayed = updates('lion', weight_decay=0.1)
  np.testing.assert_allclose(decayed['w'], [1.1, -1.2], rtol=1e-6)
  np.testing.assert_array_equal(decayed['norm'], [1.0])


def test_clipping_is_by_the_global_norm():
  optimizer = optim.make_optimizer('adamw', clip_norm=0.1)
  _, (_, adam) = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
  norm = np.sqrt(0.5**2 + 0.1**2 + 0.2**2)
  # Adam's first moment after one step is (1 - b1) times the gradient.
  np.testing.assert_allclose(
    adam.mu['w'], 0.1 * np.array([0.5, -0.1]) * 0.1 / norm, rtol=1e-5
  )


@pytest.mark.parametrize(
  'name,expected',
  [
    # warm-up 1/3, 2/3, then full; the decay spans the last 8 steps
    ('constant', [1 / 3, 2 / 3, 1, 1, 1]),
    ('linear', [1 / 3, 2 / 3, 1, 0.55, 0.1]),
    ('cosine', [1 / 3, 2 / 3, 1, 0.55, 0.1]),
  ],
)
def test_schedules(name, expected):
  schedule = optim.make_schedule(
    name, num_steps=10, warmup_steps=2, final_fraction=0.1
  )
  got = [schedule(jnp.int32(t)) for t in (0, 1, 2, 6, 10)]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_unknown_names_are_refused():
  with pytest.raises(InputError, match='optim.name'):
    optim.make_optimizer('sgdd')
  with pytest.raises(InputError, match='optim.schedule'):
    optim.make_schedule('step', num_steps=1)
