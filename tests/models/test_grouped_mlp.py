"""grouped_mlp: any block size against every expert on every position."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models import grouped_mlp, quantized

R, L, D, F, E, B = 3, 7, 4, 6, 5, 2


def everything(x_RLD, weights_RLE, kernels):
  """Every expert on every position; weights of unchosen experts are 0."""
  gate, up, down = kernels
  h = nn.silu(jnp.einsum('RLD,EDF->RLEF', x_RLD, gate))
  h *= jnp.einsum('RLD,EDF->RLEF', x_RLD, up)
  return jnp.einsum('RLEF,EFD,RLE->RLD', h, down, weights_RLE)


@pytest.mark.parametrize('block', [1, 4, 128])
def test_values_and_gradients_are_those_of_all_experts(monkeypatch, block):
  monkeypatch.setattr(grouped_mlp, '_BLOCK', block)
  rng = np.random.default_rng(0)
  # Expert 0 has all positions, expert 3 has none; one position has no expert.
  best = rng.choice([1, 2, 4], (R, L, 1)).astype(np.int32)
  best = np.concatenate([np.zeros_like(best), best], axis=-1)
  best[1, 2] = E
  chosen = np.eye(E + 1)[best].sum(axis=2)[..., :E]
  draw = lambda *shape: jnp.float32(rng.normal(size=shape))  # noqa: E731
  x_RLD, seen = draw(R, L, D), draw(R, L, D)
  weights_RLE = jnp.float32(chosen * rng.uniform(0.1, 1, (R, L, E)))
  kernels = draw(E, D, F), draw(E, D, F), draw(E, F, D)

  def total(fn, x_RLD, weights_RLE, kernels):
    out_RLD = fn(x_RLD, weights_RLE * chosen, kernels)
    return jnp.vdot(jnp.sin(out_RLD), seen), out_RLD

  def run(fn):
    grad = jax.value_and_grad(functools.partial(total, fn), (0, 1, 2), True)
    return jax.jit(grad)(x_RLD, weights_RLE, kernels)

  grouped = lambda x, w, k: grouped_mlp.grouped_mlp(nn.silu, x, w, best, k)  # noqa: E731
  want, got = run(everything), run(grouped)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  assert not np.any(got[0][1][1, 2])  # the position without an expert
  assert not np.any(got[1][2][0][3])  # the expert without a position


@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_quantised_experts_are_the_dequantised_ones(kind):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.float32(rng.normal(size=shape))  # noqa: E731
  shapes = {'gate': (1, E, D, F), 'up': (1, E, D, F), 'down': (1, E, F, D)}
  full = {k: {'kernel': draw(*shape)} for k, shape in shapes.items()}
  params = {'layers': {'experts': full}}
  layer = jax.tree.map(lambda x: x[0], quantized.quantize(params, kind))
  layer = [layer['layers']['experts'][k]['kernel'] for k in shapes]
  dense = [quantized.dense(kernel, jnp.float32) for kernel in layer]
  # Largest error over the channel's maximum. int8: half a step. nf4: half of
  # its widest step, 0.30 (arXiv:2305.14314, appendix E).
  off = {'int8': 0.5 / 127, 'nf4': 0.155}[kind]
  for name, got in zip(shapes, dense):
    want = full[name]['kernel'][0]
    top = np.abs(want).max(axis=1, keepdims=True)
    assert np.all(np.abs(got - want) <= 1.01 * off * top)
  best = rng.integers(0, E, (R, L, 1)).astype(np.int32)
  x_RLD, weights_RLE = draw(R, L, D), np.eye(E, dtype=np.float32)[best[..., 0]]

  def run(kernels):
    def total(x_RLD, weights_RLE):
      out_RLD = grouped_mlp.grouped_mlp(
        nn.silu, x_RLD, weights_RLE, best, tuple(kernels)
      )
      return jnp.sum(jnp.sin(out_RLD))

    return jax.jit(jax.value_and_grad(total, (0, 1)))(x_RLD, weights_RLE)

  for a, b in zip(jax.tree.leaves(run(layer)), jax.tree.leaves(run(dense))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_arithmetic_is_that_of_the_chosen_experts(monkeypatch):
  # XLA's cost analysis counts a loop of unknown length once, so the steps of
  # each loop are counted as they run.
  steps = []

  def count(block, order, span, j):
    jax.debug.callback(lambda e: steps.append(int(e)), span[0])
    return original(block, order, span, j)

  original = grouped_mlp._block
  monkeypatch.setattr(grouped_mlp, '_block', count)
  best = jnp.zeros((1, 260, 1), jnp.int32).at[0, 0].set(3)
  weights = jax.nn.one_hot(best[..., 0], 4)
  kernels = jnp.ones((4, 2, 3)), jnp.ones((4, 2, 3)), jnp.ones((4, 3, 2))
  x_RLD = jnp.ones((1, 260, 2))
  out = grouped_mlp.grouped_mlp(nn.silu, x_RLD, weights, best, kernels)
  jax.block_until_ready(out)
  jax.effects_barrier()
  # Expert 0 has 259 positions, 3 blocks of 128; expert 3 has one position.
  assert sorted(steps) == [0, 0, 0, 3]
