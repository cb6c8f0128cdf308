"""adapters: the adapted model is the merged model; axes; several at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import scoring, tree, types
from dpo_jax.models import adapter_spec, adapters, decoder
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.models.decoder_config import DecoderConfig

CONFIG = DecoderConfig(
  vocab_size=50,
  width=16,
  mlp_width=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=6,
  out_bias=True,
)
SPEC = AdapterSpec(rank=3, alpha=6.0, targets=tuple(adapter_spec.LINEARS))
MODEL = decoder.make_model(CONFIG)
TOKENS = np.random.default_rng(0).integers(1, 50, (2, 12)).astype(np.int32)
ROWS = types.Rows(
  tokens=TOKENS,
  positions=np.tile(np.arange(12, dtype=np.int32), (2, 1)),
  prompt_id=np.ones_like(TOKENS),
  branch=np.zeros_like(TOKENS),
  targets=np.roll(TOKENS, -1, axis=1),
  completion_id=np.tile(np.array([[0], [1]], np.int32), (1, 12)),
)
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
hidden = jax.jit(
  lambda params: MODEL.hidden(params, ROWS)[0], compiler_options=QUICK
)


@functools.cache
def base():
  return jax.jit(MODEL.init)(jax.random.key(0))


def noisy(spec=SPEC, seed=1):
  """An adapter whose factors are both random."""
  rng = np.random.default_rng(seed)
  return tree.unflatten_names(
    {
      name: 0.1 * rng.normal(size=shape).astype(np.float32)
      for name, shape in adapters.shapes(CONFIG, spec).items()
    }
  )


def test_merged_weights_are_the_papers_formula():
  # W + scale A B in float64, layer by layer (arXiv:2106.09685, eq. 3).
  adapter = noisy()
  merged = adapters.merge(types.Adapted(base(), adapter, SPEC.scale))
  before = dict(tree.flatten_with_names(base()))
  for name, leaf in tree.flatten_with_names(merged):
    expected = np.asarray(before[name], np.float64)
    node = adapter
    for part in name.split('/')[:-1]:
      node = node.get(part, {})
    if 'a' in node and name.endswith('kernel'):
      for i in range(CONFIG.num_layers):
        a = node['a'][i].astype(np.float64).reshape(-1, 3)
        b = node['b'][i].astype(np.float64).reshape(3, -1)
        expected[i] += 2.0 * (a @ b).reshape(expected[i].shape)
    np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-7)
  assert len(jax.tree.leaves(adapter)) == 2 * 7


def test_the_model_with_an_adapter_on_is_the_merged_model():
  on = types.Adapted(base(), noisy(), SPEC.scale)
  states, merged = hidden(on), hidden(adapters.merge(on))
  np.testing.assert_allclose(states, merged, atol=1e-5)
  off = hidden(types.Adapted(base(), None, SPEC.scale))
  np.testing.assert_array_equal(off, hidden(base()))
  assert np.abs(states - off).max() > 0.1
  head = MODEL.head(on)
  assert head.weight_VD is base()['head']['kernel']  # the array itself


@pytest.mark.parametrize('zero', ['a', 'b'])
def test_a_fresh_adapter_changes_no_bit(zero):
  spec = dataclasses.replace(SPEC, zero=zero, targets=('attention/out',))
  adapter = adapters.init(CONFIG, spec, jax.random.key(3))
  factors = adapter['layers']['attention']['out']
  other = {'a': 'b', 'b': 'a'}[zero]
  assert not np.any(factors[zero])
  # Uniform within 1 / sqrt(inputs): heads times head size for A, rank for B.
  bound = {'a': 24, 'b': 3}[other] ** -0.5
  largest = np.abs(factors[other]).max()
  assert 0.9 * bound < largest <= bound
  on = types.Adapted(base(), adapter, spec.scale)
  np.testing.assert_array_equal(hidden(on), hidden(base()))


def test_axes_mirror_the_adapter():
  axes = adapters.logical_axes(SPEC)
  ranks = jax.tree.map(
    lambda axes, leaf: len(axes) == leaf.ndim,
    axes,
    noisy(),
    is_leaf=lambda x: isinstance(x, tuple),
  )
  assert all(jax.tree.leaves(ranks))
  out = axes['layers']['attention']['out']
  assert out['a'] == ('layers', 'heads', 'head_dim', None)
  assert out['b'] == ('layers', None, 'embed')


def test_several_adapters_over_one_base_in_one_compile():
  spec = dataclasses.replace(SPEC, targets=('attention/query', 'mlp/down'))
  score = scoring.make_score(MODEL, chunk=8)
  each = [noisy(spec, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

  def loss(adapter):
    adapted = types.Adapted(base(), adapter, SPEC.scale)
    return score(adapted, ROWS, 2).logps.sum()

  value_and_grad = jax.value_and_grad(loss)
  jit = functools.partial(jax.jit, compiler_options=QUICK)
  logps, grads = jit(jax.vmap(value_and_grad))(stacked)
  alone = jit(value_and_grad)
  assert len({float(x) for x in logps}) == 3
  for i, adapter in enumerate(each):
    expected, grad = alone(adapter)
    np.testing.assert_allclose(logps[i], expected, rtol=1e-5)
    for batched, single in zip(jax.tree.leaves(grads), jax.tree.leaves(grad)):
      np.testing.assert_allclose(batched[i], single, rtol=1e-3, atol=1e-4)
