"""decoder: the loop over layers may be unrolled; numbers and weights stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.models import decoder
from dpo_jax.models.decoder_config import DecoderConfig

CONFIG = DecoderConfig(
  vocab_size=11,
  width=8,
  mlp_width=12,
  num_layers=4,
  num_heads=2,
  num_kv_heads=1,
  head_size=4,
  layer_windows=(3, 0, 3, 0),
)
SHAPE = 2, 16


def make_rows():
  rng = np.random.default_rng(0)
  one, place = np.ones(SHAPE, np.int32), np.arange(SHAPE[1], dtype=np.int32)
  return types.Rows(
    tokens=rng.integers(1, 11, SHAPE).astype(np.int32),
    positions=np.broadcast_to(place, SHAPE),
    prompt_id=one,
    branch=0 * one,
    targets=0 * one,
    completion_id=0 * one - 1,
  )


def gradient_of(**options):
  """A function of parameters, and parameters that are the same for all."""
  model = decoder.make_model(CONFIG, attention_block=16, **options)
  rows = make_rows()
  grad = jax.grad(lambda p: jnp.sum(jnp.sin(model.hidden(p, rows)[0])))
  return jax.jit(grad), model.init(jax.random.key(0))


@pytest.mark.parametrize('unroll', [2, 0])
def test_unrolled_layers_give_the_same_gradient(unroll):
  loop, params = gradient_of(remat='full')
  want = loop(params)
  run, again = gradient_of(remat='full', unroll=unroll)
  # Parameters stay stacked: a checkpoint does not know of the loop.
  jax.tree.map(np.testing.assert_array_equal, params, again)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  for got, expected in zip(jax.tree.leaves(run(params)), jax.tree.leaves(want)):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * largest)


def test_the_program_has_a_loop_or_none():
  def num_loops(unroll):
    grad, params = gradient_of(unroll=unroll)
    return grad.lower(params).as_text().count('stablehlo.while')

  assert num_loops(1) == num_loops(2) == 2  # forward and backward
  assert num_loops(0) == 0


def test_unrolled_layers_are_computed_again_under_remat():
  def lowered(**options):
    grad, params = gradient_of(**options)
    return grad.lower(params)

  def barriers(**options):
    return lowered(**options).as_text().count('optimization_barrier')

  def flops(remat):
    program = lowered(unroll=0, remat=remat).compile()
    return program.cost_analysis()['flops']

  # Attention has one of its own, and again where it is repeated. Without one
  # per layer the compiler would find that a layer and its repetition are equal,
  # and keep what remat drops. A loop stands between them already.
  for unroll, more in ((1, 0), (0, 1)):
    own = barriers(unroll=unroll, remat='none')
    assert barriers(unroll=unroll, remat='full') == (2 + more) * own > 0
  assert flops('full') > 1.1 * flops('none')
