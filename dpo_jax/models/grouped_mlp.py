"""Expert MLPs on the positions that chose them, and on no others.

Comes in: positions, the experts chosen for each, their weights, the kernels of
all experts. Goes out: the weighted sums. Does not route: experts.py chooses.

Positions are sorted by expert. Each expert then processes its own in blocks, as
many as it needs, a number known only at run time: nothing is dropped, and no
shape depends on the data. Wasted arithmetic is less than one block per expert;
intermediate memory is that of one block. The backward pass runs the same loops.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dpo_jax import types
from dpo_jax.models import quantized
from dpo_jax.types import Array

_BLOCK = 128  # positions of one expert that are processed together

# Gate and up [E, D, F], down [E, F, D]. Arrays, or QArrays, which are frozen
# and get no gradient.
Kernels = tuple[Any, Any, Any]


def grouped_mlp(
  act: Any,
  x_RLD: Array,
  weights_RLE: Array,
  best_RLB: Array,
  kernels: Kernels,
  mesh: Mesh | None = None,
) -> Array:
  """`sum_e weight_e down_e(act(gate_e x) * up_e x)` over the chosen experts.

  Args:
    act: activation.
    x_RLD: residual stream.
    weights_RLE: float32; 0 for experts that were not chosen.
    best_RLB: int32, the chosen experts of a position; E stands for no expert.
    kernels: in the dtype of `x_RLD`, or quantised.
    mesh: mesh on which rows are split over types.ROW_AXES. Each device groups
      its own rows and gathers the kernels of the layer. None = not split.

  Returns:
    [R, L, D] in the dtype of `x_RLD`.
  """
  run = functools.partial(_rows, act)
  # Rows that do not divide evenly are left to the compiler.
  if mesh is not None and x_RLD.shape[0] % _num_parts(mesh) == 0:
    rows, replicated = PartitionSpec(types.ROW_AXES), PartitionSpec()
    run = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(rows, rows, rows, replicated),
      out_specs=rows,
      axis_names=set(types.ROW_AXES),
      check_vma=False,
    )
  return run(x_RLD, weights_RLE, best_RLB, kernels)


def _num_parts(mesh):
  size = 1
  for axis in types.ROW_AXES:
    size *= mesh.shape[axis]
  return size


def _rows(act, x_RLD, weights_RLE, best_RLB, kernels):
  num_experts = weights_RLE.shape[-1]
  x_TD = x_RLD.reshape(-1, x_RLD.shape[-1])
  weights_TE = weights_RLE.reshape(-1, num_experts)
  best = best_RLB.reshape(-1)
  block = min(_BLOCK, len(x_TD))
  # Choices sorted by expert; a choice's index over k is its position.
  order = jnp.argsort(best, stable=True) // best_RLB.shape[-1]
  # An expert's last block may reach beyond the end.
  order = jnp.pad(order, (0, block))
  # The choices of padding have index E: they come last and are not counted.
  counts = jnp.bincount(best, length=num_experts)
  spans = jnp.arange(num_experts), jnp.cumsum(counts) - counts, counts
  out_TD = _grouped(act, block, x_TD, weights_TE, kernels, order, spans)
  return out_TD.reshape(x_RLD.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _grouped(act, block, x_TD, weights_TE, kernels, order, spans):
  """Weighted sums [T, D], added in float32, returned in the dtype of `x_TD`.

  Args:
    act: activation.
    block: positions per block.
    x_TD: positions of all rows.
    weights_TE: float32.
    kernels: of all experts.
    order: positions sorted by expert, then `block` entries of padding.
    spans: of each expert its index, first entry in `order` and their number.
  """
  return _forward(act, block, x_TD, weights_TE, kernels, order, spans)


def _forward(act, block, x_TD, weights_TE, kernels, order, spans):
  def expert(out_TD, inputs):
    span, own = inputs

    def body(j, out_TD):
      index, valid = _block(block, order, span, j)
      part = _mlp(act, x_TD[index], weights_TE[index, span[0]], own)
      return out_TD.at[index].add(jnp.where(valid, part, 0.0))

    return _loop(block, span, body, out_TD), None

  zeros = jnp.zeros(x_TD.shape, jnp.float32)
  out_TD, _ = jax.lax.scan(expert, zeros, (spans, kernels))
  return out_TD.astype(x_TD.dtype)


def _grouped_fwd(act, block, *args):
  return _forward(act, block, *args), args


def _grouped_bwd(act, block, residuals, out_bar_TD):
  x_TD, weights_TE, kernels, order, spans = residuals
  is_frozen = quantized.is_quantized(kernels[0])

  def expert(bars, inputs):
    span, own = inputs
    trained = () if is_frozen else own

    def mlp(x_BD, weight_B, trained):
      return _mlp(act, x_BD, weight_B, own if is_frozen else trained)

    def body(j, carry):
      x_bar, weights_bar, own_bar = carry
      index, valid = _block(block, order, span, j)
      place = index, span[0]
      _, pullback = jax.vjp(mlp, x_TD[index], weights_TE[place], trained)
      # A cotangent of 0 makes every gradient of a masked position 0.
      cotangent = jnp.where(valid, out_bar_TD[index], 0).astype(jnp.float32)
      x_step, weights_step, own_step = pullback(cotangent)
      return (
        x_bar.at[index].add(x_step.astype(jnp.float32)),
        weights_bar.at[place].add(weights_step),
        jax.tree.map(lambda bar, step: bar + step, own_bar, own_step),
      )

    # Gradients of kernels add up in float32 and are cast once.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trained)
    *bars, own_bar = _loop(block, span, body, (*bars, zeros))
    cast = jax.tree.map(lambda bar, x: bar.astype(x.dtype), own_bar, trained)
    return tuple(bars), cast

  bars = jnp.zeros(x_TD.shape, jnp.float32), jnp.zeros_like(weights_TE)
  (x_bar, weights_bar), kernels_bar = jax.lax.scan(
    expert, bars, (spans, kernels)
  )
  kernels_bar = None if is_frozen else kernels_bar
  return x_bar.astype(x_TD.dtype), weights_bar, kernels_bar, None, None


_grouped.defvjp(_grouped_fwd, _grouped_bwd)


def _mlp(act, x_BD, weight_B, kernels):
  """Weighted output of one expert, float32 [block, D]."""
  gate_DF, up_DF, down_FD = (quantized.dense(k, x_BD.dtype) for k in kernels)
  h_BF = act(x_BD @ gate_DF) * (x_BD @ up_DF)
  return (h_BF @ down_FD).astype(jnp.float32) * weight_B[:, None]


def _block(block, order, span, j):
  """Positions of an expert's j-th block, and a mask of its own ones."""
  _, start, count = span
  index = jax.lax.dynamic_slice_in_dim(order, start + j * block, block)
  return index, (jnp.arange(block) < count - j * block)[:, None]


def _loop(block, span, body, carry):
  """Runs `body(j, carry)` over as many blocks as the expert has."""
  num_blocks = (span[2] + block - 1) // block
  return jax.lax.fori_loop(0, num_blocks, body, carry)
