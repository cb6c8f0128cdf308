"""Matmuls whose backward products are in the compute dtype too.

Comes in: two operands and the compute dtype. Goes out: their product in
float32, as logits and softmax need it. Linear maps, whose results have the
compute dtype, need none of this: their cotangents already have it.

The cotangent of a float32 result is float32, and jax then multiplies float32 by
float32 in both backward products: at half the rate of bfloat16 or less. Here it
is rounded to the compute dtype first, as the operands were, and each backward
product is accumulated in float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.types import Array


def product(spec: str, x: Array, y: Array, dtype: Any) -> Array:
  """Returns `einsum(spec, x, y)`, float32, of operands rounded to `dtype`.

  Gradients have the dtypes of `x` and `y` and are rounded to them only once:
  that of a float32 operand keeps all bits of its sum.

  Args:
    spec: of jnp.einsum, for example 'nd,vd->nv'. Each index is in two of the
      three terms or in all of them.
    x: first operand.
    y: second operand.
    dtype: of the three matmuls' operands. With float32 this is jnp.einsum.
  """
  dtype = jnp.dtype(dtype)
  if dtype == jnp.float32:
    return _einsum(spec, x.astype(dtype), y.astype(dtype))
  return _product(spec, dtype, (x.dtype, y.dtype), x, y)


def backward(spec: str, x: Array, y: Array, out_bar: Array):
  """Returns the float32 cotangents of `x` and `y` from that of their product.

  Args:
    spec: as in `product`.
    x: first operand, in the compute dtype.
    y: second operand, in the compute dtype.
    out_bar: cotangent of the product; rounded to the compute dtype.
  """
  of_x, of_y, of_out = spec.replace('->', ',').split(',')
  out_bar = out_bar.astype(x.dtype)
  # The cotangent comes first, so that no result is transposed.
  x_bar = _einsum(f'{of_out},{of_y}->{of_x}', out_bar, y)
  y_bar = _einsum(f'{of_out},{of_x}->{of_y}', out_bar, x)
  return x_bar, y_bar


def _einsum(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(spec, dtype, given, x, y):
  """As `product`; `given` are the dtypes of the operands as they came."""
  del given
  return _einsum(spec, x.astype(dtype), y.astype(dtype))


def _product_fwd(spec, dtype, given, x, y):
  del given
  x, y = x.astype(dtype), y.astype(dtype)
  return _einsum(spec, x, y), (x, y)


def _product_bwd(spec, dtype, given, operands, out_bar):
  del dtype
  bars = backward(spec, *operands, out_bar)
  return tuple(bar.astype(own) for bar, own in zip(bars, given, strict=True))


_product.defvjp(_product_fwd, _product_bwd)
