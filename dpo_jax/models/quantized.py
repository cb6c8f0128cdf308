"""Frozen weights in fewer bits: int8 or nf4 in memory, floats in the matmul.

Comes in: weights that are not trained. Goes out: the same tree with the kernels
of linear maps as qwix QArrays (integers, and float32 scales of the same rank),
and a matmul for either form. Embeddings, norms and biases stay float32. qwix is
imported only when weights are quantised.
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
_FLOAT32, _INT8, _NF4 = adapter_spec.BASES
_LINEAR = re.compile(
  r'layers/((attention|mlp)/\w+|experts/(gate|up|down))/kernel'
)
# Inputs that share one nf4 scale; fewer if 64 does not divide their number.
_BLOCK = 64


def quantize(params: Params, kind: str) -> Params:
  """Quantises every linear kernel of the layers.

  Args:
    params: parameters of a decoder.
    kind: one of adapter_spec.BASES. 'int8': one scale (the absolute maximum)
      per layer and output channel. 'nf4': one scale per block of 64 inputs
      (Dettmers et al. 2023, arXiv:2305.14314). 'float32': no change.

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
  """Returns the kernel in `dtype`, dequantised if it is a QArray."""
  if not is_quantized(kernel):
    return kernel.astype(dtype)
  import qwix

  return qwix.dequantize(kernel).astype(dtype)


def dense_layers(kernel: Any, dtype: Any) -> Array:
  """Returns a kernel stacked over layers in `dtype`, layer by layer.

  The layers of a QArray are dequantised one after another, so that the
  intermediate arrays are those of one layer.
  """
  if not is_quantized(kernel):
    return kernel.astype(dtype)
  return jax.lax.map(lambda layer: dense(layer, dtype), kernel)


def dot(x: Array, kernel: Any, num_into: int, *, dtype: Any) -> Array:
  """Contracts the last `num_into` dimensions of x with the first of kernel.

  Args:
    x: [..., into..].
    kernel: [into.., out..], an array or a QArray.
    num_into: number of contracted dimensions.
    dtype: of the matmul and of the result.

  Returns:
    [..., out..].
  """
  if is_quantized(kernel):
    # The backward pass dequantises again: the float kernels of all layers, kept
    # for it, would take the memory that quantising saved.
    floating = functools.partial(_dot, num_into=num_into, dtype=dtype)
    return jax.checkpoint(floating)(x, kernel)
  return _dot(x, kernel, num_into, dtype)


def is_quantized(leaf: Any) -> bool:
  """Returns whether a leaf of the weights is a QArray."""
  # By attribute: isinstance would import qwix for float32 weights too.
  return hasattr(leaf, 'qvalue')


def leaves(params: Params, prefix: str = '') -> dict[str, Any]:
  """Returns {name: leaf} of nested dicts; a QArray is one leaf.

  tree.flatten_with_names would split a QArray into its integers and scales.
  """
  out = {}
  for key, value in params.items():
    if isinstance(value, dict):
      out |= leaves(value, f'{prefix}{key}/')
    else:
      out[f'{prefix}{key}'] = value
  return out


def _dot(x, kernel, num_into, dtype):
  kernel = dense(kernel, dtype)
  into, out = kernel.shape[:num_into], kernel.shape[num_into:]
  lead = x.shape[: x.ndim - num_into]
  # Matrices: the gradient of a product of rank 3 makes XLA:CPU transpose whole
  # activations, at twice the time. Elsewhere the reshapes cost nothing.
  x_NI = x.astype(dtype).reshape(-1, math.prod(into))
  y_NO = x_NI @ kernel.reshape(math.prod(into), math.prod(out))
  return y_NO.reshape(*lead, *out)


def _quantize(kernel: Array, kind: str, name: str) -> Any:
  """A QArray of [layers, into.., out..], or [layers, experts, in, out]."""
  import qwix

  # Axes below are those of one layer. The attention's output projection reads
  # two dimensions, heads and channels; every other map reads one.
  num_into = 2 if name.endswith('out/kernel') else 1
  first = 1 if '/experts/' in name else 0
  last = first + num_into - 1  # the innermost input dimension
  outer = tuple(range(first, last))
  channels = (*range(first), *range(last + 1, kernel.ndim - 1))
  options = {
    _INT8: {'qtype': jnp.int8, 'channelwise_axes': channels},
    _NF4: {
      'qtype': _NF4,
      'channelwise_axes': (*channels, *outer),
      'tiled_axes': {last: math.gcd(kernel.shape[1 + last], _BLOCK)},
    },
  }[kind]
  # One layer at a time: nf4 compares every element with all 16 values at once.
  return jax.lax.map(lambda layer: qwix.quantize(layer, **options), kernel)
