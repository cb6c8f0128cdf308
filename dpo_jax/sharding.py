"""Where arrays live: meshes, and shardings of parameters, state and batches.

Comes in: mesh sizes and logical axis names. Goes out: NamedShardings for
`jax.jit`. One device, eight or a pod are the same code.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from dpo_jax import errors, types
from dpo_jax.scoring import ROW_AXES
from dpo_jax.types import Params, TrainState

MESH_AXES = ('data', 'fsdp', 'tensor')

# Logical axis of a parameter -> mesh axis that splits it. Experts are not
# split: width and MLP width split each of them, and a device gathers a layer's
# for its own rows, so that no position travels.
RULES = {
  'vocab': 'tensor',
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
}


class Placed(NamedTuple):
  """How arrays lie on the mesh."""

  shardings: Any  # NamedSharding a leaf
  abstract: Any  # ShapeDtypeStruct a leaf, with its sharding


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None
) -> Mesh:
  """A mesh of the given sizes; one of them may be -1, the rest of them.

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = mesh_sizes(data, fsdp, tensor, len(devices))
  return jax.make_mesh(
    sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
  )


def abstract_mesh(
  num_devices: int, data: int = -1, fsdp: int = 1, tensor: int = 1
) -> AbstractMesh:
  """A mesh of devices that need not be there, for shapes alone."""
  sizes = mesh_sizes(data, fsdp, tensor, num_devices)
  return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_sizes(
  data: int, fsdp: int, tensor: int, num_devices: int
) -> tuple[int, int, int]:
  """Sizes of the mesh axes with -1 replaced; InputError if they don't fit."""
  sizes = [data, fsdp, tensor]
  known = int(np.prod([s for s in sizes if s != -1]))
  if sizes.count(-1) == 1 and known > 0 and num_devices % known == 0:
    sizes[sizes.index(-1)] = num_devices // known
  if min(sizes) < 1 or int(np.prod(sizes)) != num_devices:
    asked = f'data={data}, fsdp={fsdp}, tensor={tensor}'
    raise errors.refuse(
      'config.mesh',
      f'{asked} does not fit {num_devices} device(s)',
      f'use sizes whose product is {num_devices}, one of them -1 for the rest',
    )
  return tuple(sizes)


def row_multiple(mesh: Mesh) -> int:
  """Rows of a batch must be a multiple of this."""
  return int(np.prod([mesh.shape[axis] for axis in ROW_AXES]))


def param_shardings(mesh: Mesh, logical_axes, params: Params) -> Params:
  """Shardings of parameters from their logical axes.

  Args:
    mesh: the mesh.
    logical_axes: pytree like params; leaves are tuples of axis names.
    params: arrays or ShapeDtypeStructs, or QArrays of them, whose scales are
      split as the integers are. An axis that its mesh axis does not divide
      is not split.

  Returns:
    Pytree of NamedShardings.
  """

  def sharding(axes, leaf):
    spec = []
    for name, size in zip(axes, leaf.shape, strict=True):
      axis = _rule(name)
      fits = axis is not None and size % mesh.shape[axis] == 0
      spec.append(axis if fits and axis not in spec else None)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(
    lambda axes, leaf: jax.tree.map(functools.partial(sharding, axes), leaf),
    logical_axes,
    params,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def placed(shardings: Any, leaves: Any) -> Placed:
  """Shardings, with the abstract arrays of `leaves` that carry them."""
  abstract = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    leaves,
    shardings,
  )
  return Placed(shardings, abstract)


def state_shardings(
  mesh: Mesh,
  optimizer: optax.GradientTransformation,
  shardings: Params,
  state: TrainState,
) -> TrainState:
  """Shardings of a TrainState: moments as their parameters, the rest whole.

  Args:
    mesh: the mesh.
    optimizer: whose state it is.
    shardings: of the parameters.
    state: abstract or concrete.
  """
  whole = replicated(mesh)

  def like_param(leaf, sharding):
    # Factored moments have another shape than their parameter.
    same_rank = leaf.ndim == len(sharding.spec)
    return sharding if same_rank and leaf.size > 1 else whole

  opt_state = optax.tree_map_params(
    optimizer,
    like_param,
    state.opt_state,
    shardings,
    transform_non_params=lambda _: whole,
  )
  return TrainState(
    step=whole,
    params=shardings,
    opt_state=opt_state,
    loss_state=jax.tree.map(lambda _: whole, state.loss_state),
    key=whole,
  )


def batch_shardings(mesh: Mesh, batch: types.Batch) -> types.Batch:
  """Rows split over ROW_AXES; comparisons and [C] arrays everywhere."""
  rows = NamedSharding(mesh, PartitionSpec(None, ROW_AXES))
  whole = jax.tree.map(lambda _: replicated(mesh), batch)
  return whole._replace(rows=types.Rows(*[rows] * len(types.Rows._fields)))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def _rule(name):
  if name is None or name in ('layers', 'head_dim', 'experts'):
    return None
  if name not in RULES:
    near = errors.nearest(name, RULES)
    raise ValueError(f'no sharding rule for axis {name!r}; nearest: {near}')
  return RULES[name]
