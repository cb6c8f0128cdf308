"""Where arrays live: meshes, and shardings of parameters, state and batches.

Comes in: mesh sizes and logical axis names. Goes out: NamedShardings for
`jax.jit`. One device, eight or a pod are the same code.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from dpo_jax import errors, types
from dpo_jax.types import MESH_AXES, ROW_AXES, Params, TrainState

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


_AXIS_TYPES = (AxisType.Auto,) * len(MESH_AXES)


class Placed(NamedTuple):
  """How arrays lie on the mesh."""

  shardings: Any  # NamedSharding a leaf
  abstract: Any  # ShapeDtypeStruct a leaf, with its sharding


def make_mesh(devices=None, **sizes: int) -> Mesh:
  """A mesh of the given sizes.

  Args:
    devices: to lay out; None = all of this process's.
    **sizes: as in `mesh_sizes`.

  Raises:
    InputError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = mesh_sizes(len(devices), **sizes)
  return jax.make_mesh(
    shape, MESH_AXES, axis_types=_AXIS_TYPES, devices=devices
  )


def abstract_mesh(num_devices: int, **sizes: int) -> AbstractMesh:
  """A mesh of devices that need not exist, for shapes alone."""
  shape = mesh_sizes(num_devices, **sizes)
  return AbstractMesh(shape, MESH_AXES, axis_types=_AXIS_TYPES)


def mesh_sizes(num_devices: int, **sizes: int) -> tuple[int, ...]:
  """The size of every mesh axis, in the order of MESH_AXES.

  Args:
    num_devices: what the sizes must multiply to.
    **sizes: by axis; one of them may be -1, the rest. An axis that is not
      given has size 1, but `data`, which has -1.

  Raises:
    InputError: the sizes do not fit the devices.
  """
  given = dict.fromkeys(MESH_AXES, 1) | {'data': -1} | sizes
  shape = [given[axis] for axis in MESH_AXES]
  known = math.prod(size for size in shape if size != -1)
  if shape.count(-1) == 1 and known > 0 and num_devices % known == 0:
    shape[shape.index(-1)] = num_devices // known
  if min(shape) < 1 or math.prod(shape) != num_devices:
    asked = ', '.join(f'{axis}={given[axis]}' for axis in MESH_AXES)
    raise errors.refuse(
      'config.mesh',
      f'{asked} does not fit {num_devices} device(s)',
      'use sizes whose product is the number of devices, one of them -1 for '
      'the rest',
    )
  return tuple(shape)


def row_multiple(mesh: Mesh) -> int:
  """Rows of a batch must be a multiple of this."""
  return math.prod(mesh.shape[axis] for axis in ROW_AXES)


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
  everywhere = replicated(mesh)

  def like_param(leaf, sharding):
    # Factored moments have another shape than their parameter.
    same_rank = leaf.ndim == len(sharding.spec)
    return sharding if same_rank and leaf.size > 1 else everywhere

  opt_state = optax.tree_map_params(
    optimizer,
    like_param,
    state.opt_state,
    shardings,
    transform_non_params=lambda _: everywhere,
  )
  return TrainState(
    step=everywhere,
    params=shardings,
    opt_state=opt_state,
    loss_state=jax.tree.map(lambda _: everywhere, state.loss_state),
    key=everywhere,
  )


def batch_shardings(mesh: Mesh, batch: types.Batch) -> types.Batch:
  """Rows split over ROW_AXES; comparisons and [C] arrays everywhere."""
  rows = NamedSharding(mesh, PartitionSpec(None, ROW_AXES))
  shardings = jax.tree.map(lambda _: replicated(mesh), batch)
  return shardings._replace(rows=types.Rows(*[rows] * len(types.Rows._fields)))


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
