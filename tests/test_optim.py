"""optim: updates and schedules against numpy and closed forms."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import optim
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
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


def test_rmsprop_has_torchs_decay_by_default():
  # A constant gradient g from v = 0: v_t = (1 - .99^t) g^2, so that update t
  # is sign(g) / sqrt(1 - .99^t).
  for steps, size in ((1, 10.0), (2, 7.088812), (3, 5.802491)):
    got = updates('rmsprop', steps)['w']
    np.testing.assert_allclose(got, [size, -size], rtol=1e-5)


def test_lion_moves_by_signs():
  np.testing.assert_array_equal(updates('lion')['w'], [1.0, -1.0])


def test_lion_keeps_its_papers_moment_by_default():
  # arXiv:2302.06675, algorithm 2: m <- b2 m + (1 - b2) g, with b2 = .99.
  optimizer = optim.make_optimizer('lion')
  _, (lion,) = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
  np.testing.assert_allclose(lion.mu['w'], [0.005, -0.001], rtol=1e-5)


@pytest.mark.parametrize('steps', [1, 60])
def test_a_first_moment_in_bfloat16_is_rounded_once_per_update(steps):
  optimizer = optim.make_optimizer('adamw', b1=0.99, moments_dtype='bfloat16')
  state = optimizer.init(PARAMS)
  g, m = GRADS['w'], jnp.zeros(2)
  for t in range(1, steps + 1):
    out, state = optimizer.update(GRADS, state, PARAMS)
    m = 0.99 * m + 0.01 * g
    # eps is negligible, and the second moment of a constant gradient is g^2.
    np.testing.assert_allclose(
      out['w'], m / (1 - 0.99**t) / jnp.abs(g), rtol=1e-5
    )
    m = m.astype(jnp.bfloat16).astype(jnp.float32)
  (adam,) = state
  assert adam.mu['w'].dtype == jnp.bfloat16
  assert adam.nu['w'].dtype == jnp.float32
  # A decay of .98828, which is .99 in bfloat16, would end 11 % lower.
  np.testing.assert_allclose(out['w'], [1, -1], rtol=0.03)


def test_lions_moment_in_bfloat16_is_that_of_its_paper():
  optimizer = optim.make_optimizer('lion', moments_dtype='bfloat16')
  _, (lion,) = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
  expected = (jnp.float32(0.01) * GRADS['w']).astype(jnp.bfloat16)
  np.testing.assert_array_equal(lion.mu['w'], expected)


def test_moments_of_float32_are_optaxs_own():
  plain = optim.make_optimizer('adamw', moments_dtype='float32')
  assert plain.init(PARAMS)[0].mu['w'].dtype == jnp.float32
  np.testing.assert_array_equal(
    updates('adamw', 3, moments_dtype='float32')['w'], updates('adamw', 3)['w']
  )


@pytest.mark.parametrize('name,key', [('adamw', 'b1'), ('lion', 'b2')])
def test_a_moment_that_bfloat16_does_not_resolve_is_refused(name, key):
  with pytest.raises(InputError, match=f'with {key}=0.995; fix: .*float32'):
    optim.make_optimizer(name, moments_dtype='bfloat16', **{key: 0.995})


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
  'name,options,expected',
  [
    # warm-up 1/3, 2/3, then full; the decay spans the last 8 steps
    ('constant', {}, [1 / 3, 2 / 3, 1, 1, 1]),
    ('linear', {'final_fraction': 0.1}, [1 / 3, 2 / 3, 1, 0.55, 0.1]),
    ('cosine', {'final_fraction': 0.1}, [1 / 3, 2 / 3, 1, 0.55, 0.1]),
  ],
)
def test_schedules(name, options, expected):
  schedule = optim.make_schedule(name, num_steps=10, warmup_steps=2, **options)
  got = [schedule(jnp.int32(t)) for t in (0, 1, 2, 6, 10)]
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_unknown_names_are_refused():
  with pytest.raises(InputError, match='optim.name'):
    optim.make_optimizer('sgdd')
  with pytest.raises(InputError, match="did you mean 'adamw'"):
    optim.make_optimizer('adam')
  with pytest.raises(InputError, match='optim.schedule'):
    optim.make_schedule('step', num_steps=1)


def test_a_keyword_that_an_optimizer_lacks_is_an_error():
  # The config refuses such a key earlier; a Python caller gets a TypeError.
  with pytest.raises(TypeError, match='eps'):
    optim.make_optimizer('lion', eps=1e-8)


# Appended to optim.py, the only edit.
ADDED = """

@optimizer
def momentum(*, b1: float = 0.9, is_nesterov: float = 0.0):
  return optax.trace(b1, nesterov=is_nesterov > 0)


@schedule
def root(decay_steps, *, power: float = 0.5):
  return lambda step: (1 + step) ** -power
"""
# First a config that chooses them, without jax; then their arithmetic.
USE = """
import sys
from dpo_jax import config, types
path = 'experiments/quickstart.py:runlocal'
keys = 'optim.name=momentum optim.schedule=root optim.b1=0.5 optim.power=1.0'
chosen = config.load(path, [key.split('=') for key in keys.split()])
config.validate(chosen)
bad = ('optim.eps=1e-8', 'optim.final_fraction=0.1', 'optim.name=momentun')
for key in bad:
  words = [*keys.split(), key]
  try:
    config.validate(config.load(path, [word.split('=') for word in words]))
  except types.InputError as error:
    print(error)
print(config.help_text('optim.is_nesterov'))
assert 'jax' not in sys.modules
from dpo_jax import optim
optimizer = optim.make_optimizer('momentum', **config.optimizer_options(chosen))
grads = {'w': optim.jnp.ones(2)}
state = optimizer.init(grads)
for _ in range(2):
  updates, state = optimizer.update(grads, state, grads)
schedule = optim.make_schedule(
  'root', num_steps=9, **config.schedule_options(chosen)
)
print('second update', updates['w'][0], 'rate', schedule(1))
"""


def test_an_optimizer_is_added_by_one_edit(tmp_path):
  ignored = shutil.ignore_patterns('__pycache__')
  for folder in ('dpo_jax', 'experiments'):
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
  file = tmp_path / 'dpo_jax' / 'optim.py'
  file.write_text(file.read_text() + ADDED)
  done = subprocess.run(
    [sys.executable, '-c', USE],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  eps, final_fraction, name, *rest = done.stdout.splitlines()
  assert eps.startswith('config.optim.eps: 1e-08 is not used by momentum; fix:')
  assert final_fraction.startswith('config.optim.final_fraction: 0.1 is not')
  assert name.startswith("config.optim.name: 'momentun' is not allowed; fix:")
  assert "did you mean 'momentum'" in name
  assert rest[0] == 'config.optim.is_nesterov=None'
  assert 'used by momentum (default 0.0)' in '\n'.join(rest)
  # Gradient 1 twice: 1 + 0.5 * 1; rate (1 + 1) ** -1.
  assert rest[-1] == 'second update 1.5 rate 0.5'
