"""LoRA: small trainable matrices beside frozen ones, as a pytree of their own.

Comes in: a DecoderConfig, an AdapterSpec. Goes out: an adapter, its logical
axes, and weights with the adapter merged in. An adapter is nested dicts that
mirror the decoder's: for each target 'a' [layers, into.., rank] and 'b'
[layers, rank, out..], float32. Does not read or write files:
storage/peft_checkpoint.py does.

qwix's LoraProvider keeps its factors among the weights, with flattened axes:
the same module cannot run without them, and heads cannot be sharded. Therefore
the two matmuls are in decoder.py, and qwix is used for quantised bases only.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import tree, types
from dpo_jax.models import quantized
from dpo_jax.models.adapter_spec import LINEARS, AdapterSpec
from dpo_jax.models.decoder_config import AXES, DecoderConfig
from dpo_jax.types import Array, Params


def init(config: DecoderConfig, spec: AdapterSpec, key: Array) -> Params:
  """Returns the adapter before the first update: A B = 0.

  The model with it is the base, bit by bit. The factor that is not zero is
  uniform in +- 1 / sqrt(its inputs). `spec.zero == 'b'` is PEFT's default, 'a'
  is Init[B] of Hayou et al. 2024, arXiv:2406.08447.

  Args:
    config: shape of the decoder.
    spec: rank and targets.
    key: PRNG key; each factor draws from a key of its own.
  """
  leaves = {}
  for name, dims in factor_dims(spec).items():
    shape = _shape(config, spec, dims)
    if name.endswith(spec.zero):
      leaves[name] = jnp.zeros(shape, jnp.float32)
      continue
    # A reads the map's inputs, B reads the rank.
    inputs = dims[1:-1] if name.endswith('a') else 'r'
    bound = _size(config, spec, inputs) ** -0.5
    # By name: adding a target leaves the numbers of the others as they are.
    own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    # As a matrix, for compile time: see decoder._init.
    matrix = shape[0], _size(config, spec, dims[1:])
    values = jax.random.uniform(own_key, matrix, minval=-bound, maxval=bound)
    leaves[name] = values.reshape(shape)
  return tree.unflatten_names(leaves)


def logical_axes(spec: AdapterSpec) -> Params:
  """Returns a pytree like the adapter of tuples of logical axis names."""
  axes = AXES | {'r': None}
  return tree.unflatten_names(
    {
      name: tuple(axes[d] for d in dims)
      for name, dims in factor_dims(spec).items()
    }
  )


def factor_dims(spec: AdapterSpec) -> dict[str, str]:
  """Returns the dimension letters of every factor by name; r is the rank."""
  out = {}
  for target in spec.targets:
    into, outof = LINEARS[target]
    out[f'layers/{target}/a'] = f'N{into}r'
    out[f'layers/{target}/b'] = f'Nr{outof}'
  return out


def shapes(
  config: DecoderConfig, spec: AdapterSpec
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every factor by name."""
  return {
    name: _shape(config, spec, dims) for name, dims in factor_dims(spec).items()
  }


def variables(params: Params | types.Adapted) -> dict[str, Any]:
  """Returns the decoder's collections: weights, and the adapter if it is on.

  The factor `scale` is multiplied into B, which has few elements.
  """
  if not isinstance(params, types.Adapted):
    return {'params': params}
  if params.adapter is None:
    return {'params': params.base}
  return {
    'params': params.base,
    'adapter': _scaled(params.adapter, params.scale),
  }


def merge(params: types.Adapted) -> Params:
  """Returns merged weights W + scale A B, float32; W is dequantised first.

  Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
  """
  collections = variables(params)
  factors = dict(tree.flatten_with_names(collections.get('adapter', {})))
  merged = {}
  for name, leaf in quantized.leaves(collections['params']).items():
    leaf = quantized.dense_layers(leaf, jnp.float32)
    path = name.removesuffix('kernel')
    if f'{path}a' in factors:
      leaf = leaf + _product(factors[f'{path}a'], factors[f'{path}b'])
    merged[name] = leaf
  return tree.unflatten_names(merged)


def _product(a: Array, b: Array) -> Array:
  """A B of every layer, [layers, into.., out..]."""
  # Full float32 on accelerators too: an exported model must equal the trained.
  return jax.vmap(
    lambda a, b: jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
  )(a, b)


def _scaled(adapter: Params, scale: Array | float) -> Params:
  """The adapter with B multiplied by `scale`, at any depth of nesting."""
  if 'b' in adapter:
    return {'a': adapter['a'], 'b': adapter['b'] * scale}
  return {name: _scaled(part, scale) for name, part in adapter.items()}


def _shape(config, spec, dims) -> tuple[int, ...]:
  sizes = {**config.sizes, 'r': spec.rank}
  return tuple(sizes[d] for d in dims)


def _size(config, spec, dims) -> int:
  size = 1
  for length in _shape(config, spec, dims):
    size *= length
  return size
