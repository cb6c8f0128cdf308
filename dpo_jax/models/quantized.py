"""Frozen weights in fewer bits: int8 or nf4 in memory, floats in the matmul.

Comes in: weights that nothing trains. Goes out: the same tree, where a linear
map's kernel is a qwix QArray (integers, and float32 scales of the same rank),
and the matmul that takes either. Embeddings, norms and biases stay float32.
qwix is imported only where weights are quantised.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import tree
from dpo_jax.models import adapter_spec
from dpo_jax.types import Array, Params

# A kind that is added to BASES must be implemented here.
_FLOAT32, _, _NF4 = adapter_spec.BASES
_LINEAR = re.compile(
  r'layers/((attention|mlp)/\w+|experts/(gate|up|down))/kernel'
)
_BLOCK = 64  # inputs that share one nf4 scale, where 64 divides them


def quantize(params: Params, kind: str) -> Params:
  """The weights with every linear kernel of the layers quantised.

  Args:
    params: a decoder's.
    kind: 'int8' (absolute maximum an output channel and layer), 'nf4' (a
      maximum a block of 64 inputs; arXiv:2305.14314), 'float32' (as it is).

  Returns:
    The same nested dicts. Embedding, head, norms, biases and router are the
    arrays that came in.
  """
  if kind == _FLOAT32:
    return params
  return tree.unflatten_names(
    {
      name: _quantize(leaf, kind, name) if _LINEAR.fullmatch(name) else leaf
      for name, leaf in leaves(params).items()
    }
  )


def dense(kernel: Any, dtype: Any) -> Array:
  """The kernel as floats, of an array or of a QArray."""
  if not is_quantized(kernel):
    return kernel.astype(dtype)
  import qwix

  return qwix.dequantize(kernel).astype(dtype)


def dense_layers(kernel: Any, dtype: Any) -> Array:
  """As `dense`, of a stack over layers, one after the other."""
  if not is_quantized(kernel):
    return kernel.astype(dtype)
  return jax.lax.map(lambda layer: dense(layer, dtype), kernel)


def dot(x: Array, kernel: Any, num_into: int, *, dtype: Any) -> Array:
  """x times kernel over the last `num_into` dimensions of x, in `dtype`.

  The backward pass dequantises again: float kernels of all layers together
  would be what quantising was to save.
  """
  if is_quantized(kernel):
    floating = functools.partial(_dot, num_into=num_into, dtype=dtype)
    return jax.checkpoint(floating)(x, kernel)
  return _dot(x, kernel, num_into, dtype)


def is_quantized(leaf: Any) -> bool:
  """Whether a leaf of a weights tree is a QArray."""
  return hasattr(leaf, 'qvalue')


def leaves(params: Params, prefix: str = '') -> dict[str, Any]:
  """{name: leaf} of nested dicts; a QArray is one leaf."""
  out = {}
  for key, value in params.items():
    if isinstance(value, dict):
      out |= leaves(value, f'{prefix}{key}/')
    else:
      out[f'{prefix}{key}'] = value
  return out


def _dot(x, kernel, num_into, dtype):
  axes = tuple(range(x.ndim - num_into, x.ndim)), tuple(range(num_into))
  return jax.lax.dot_general(
    x.astype(dtype), dense(kernel, dtype), (axes, ((), ()))
  )


def _quantize(kernel: Array, kind: str, name: str) -> Any:
  """A QArray of [layers, into.., out..], or [layers, experts, in, out].

  A layer at a time: nf4 looks at every bucket for every element.
  """
  import qwix

  num_into = 2 if name.endswith('out/kernel') else 1
  first = 1 if '/experts/' in name else 0  # of a layer's input dimensions
  last = first + num_into - 1  # the innermost one is cut into blocks
  outer = tuple(range(first, last))
  channels = (*range(first), *range(last + 1, kernel.ndim - 1))
  how = {'qtype': jnp.int8, 'channelwise_axes': channels}
  if kind == _NF4:
    size = math.gcd(kernel.shape[1 + last], _BLOCK)
    how = {
      'qtype': _NF4,
      'channelwise_axes': (*channels, *outer),
      'tiled_axes': {last: size},
    }
  return jax.lax.map(lambda layer: qwix.quantize(layer, **how), kernel)
