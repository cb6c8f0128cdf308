"""Where a mesh holds the states between layers, and the lookup of tokens.

Comes in: states [R, L, ...], ids and a table. Goes out: the same states, of
which the compiler knows the placement, and the states of ids. Without a mesh
nothing is placed. Left to itself, the compiler gathers the cotangent of a whole
global batch on every device.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpo_jax.types import ROW_AXES, Array


def stream(x_RLD: Array, mesh: Mesh | None) -> Array:
  """Returns the residual stream: rows split, slots split over `tensor`.

  Between the linear maps each device of a `tensor` group would otherwise hold
  and normalise the same states.
  """
  slots = 'tensor'
  if mesh is None or x_RLD.shape[1] % mesh.shape['tensor']:
    slots = None
  return _place(x_RLD, mesh, slots)


def read(x_RLD: Array, mesh: Mesh | None) -> Array:
  """Returns the input of linear maps, with all slots of its rows."""
  return _place(x_RLD, mesh)


def heads(x_RLHK: Array, mesh: Mesh | None) -> Array:
  """Returns states per head, heads split over `tensor` as their weights are."""
  split = mesh is not None and x_RLHK.shape[2] % mesh.shape['tensor'] == 0
  return _place(x_RLHK, mesh, None, 'tensor' if split else None)


def fetch(tree: Any) -> Any:
  """Returns arrays on the devices; those in the hosts' memory are moved.

  Where the arrays are is known when a program is traced: for weights that are
  on the devices this is nothing.
  """

  def move(x):
    is_away = jax.typeof(x).memory_space == jax.memory.Space.Host
    return jax.device_put(x, jax.memory.Space.Device) if is_away else x

  return jax.tree.map(move, tree)


def look_up(table: Array, ids_RL: Array, dtype, mesh: Mesh | None) -> Array:
  """Returns `table[ids]` [R, L, D] in `dtype`; gradients add up in float32.

  A device has some columns of the table: it looks up the ids of its `fsdp`
  group there and exchanges the columns for those of its own rows.

  Args:
    table: [ids, D], columns split over `fsdp` if D is a multiple.
    ids_RL: int32, rows split over ROW_AXES.
    dtype: of the states.
    mesh: None = one device.
  """

  # Cast after the lookup: the transposed sum is then that of the table's dtype.
  def take(table, ids):
    return jnp.take(table, ids, axis=0).astype(dtype)

  # With all rows on one group of `tensor` there is nothing to exchange, and
  # XLA refuses the transpose of a shard_map over axes of one device.
  if not _splits(mesh, ids_RL) or _num_parts(mesh) == 1:
    return take(table, ids_RL)
  is_split = mesh.shape['fsdp'] > 1 and table.shape[1] % mesh.shape['fsdp'] == 0
  rows = PartitionSpec(ROW_AXES)

  def local(table, ids):
    if not is_split:
      return take(table, ids)
    ids = jax.lax.all_gather(ids, 'fsdp', axis=0, tiled=True)
    return jax.lax.all_to_all(
      take(table, ids), 'fsdp', split_axis=0, concat_axis=2, tiled=True
    )

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(PartitionSpec(None, 'fsdp' if is_split else None), rows),
    out_specs=rows,
    # `tensor`, which splits the ids of the table, stays with the compiler.
    axis_names=set(ROW_AXES),
    check_vma=False,
  )(table, ids_RL)


def _splits(mesh, x) -> bool:
  """Whether the rows of x can be split: those of a lone text may be fewer."""
  return mesh is not None and x.shape[0] % _num_parts(mesh) == 0


def _num_parts(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def _place(x, mesh, *axes):
  if not _splits(mesh, x):
    return x
  spec = PartitionSpec(ROW_AXES, *axes)
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
