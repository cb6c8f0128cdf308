"""Meshes, and the shardings of parameters, training state and batches.

Comes in: mesh sizes and logical axis names. Goes out: NamedShardings for
`jax.jit`. The same code serves one device, eight and a pod. Moves no array.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import optax
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from dpo_jax import errors, types
from dpo_jax.types import MESH_AXES, ROW_AXES, Params, TrainState

# Logical axis of a parameter -> mesh axis that splits it. The experts axis is
# not split: each expert is split by width and MLP width, and a device gathers
# all experts of a layer for its own rows, so no token changes device.
RULES = {
  'vocab': 'tensor',
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
}

_HOST = 'pinned_host'  # memory of the host that devices read by themselves

# Auto: shardings are given at the borders of a jit; the compiler does the rest.
_AXIS_TYPES = (AxisType.Auto,) * len(MESH_AXES)


class Placed(NamedTuple):
  """The placement of a pytree on the mesh."""

  shardings: Any  # NamedSharding per leaf
  abstract: Any  # ShapeDtypeStruct per leaf, with its sharding


def make_mesh(devices=None, **sizes: int) -> Mesh:
  """Returns a mesh of the given sizes.

  Several TPU slices share `data`: the network between them is slow, and only
  gradients cross it.

  Args:
    devices: the devices of the mesh; None = jax.devices().
    **sizes: as in `mesh_sizes`.

  Raises:
    InputError: the sizes do not multiply to the number of devices, or `data`
      is not a multiple of the slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = mesh_sizes(len(devices), **sizes)
  num_slices = _count_slices(devices)
  if num_slices > 1:
    return _over_slices(devices, shape, num_slices)
  try:
    return jax.make_mesh(
      shape, MESH_AXES, axis_types=_AXIS_TYPES, devices=devices
    )
  except NotImplementedError:
    # An axis that is no product of the torus's own, such as 8 of 4x4x4: some
    # of its neighbours are then two links away.
    array = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
    return Mesh(array, MESH_AXES, axis_types=_AXIS_TYPES)


def _count_slices(devices) -> int:
  """The TPU slices of devices; 1 for all others."""
  if devices[0].platform != 'tpu':
    return 1
  return len({getattr(device, 'slice_index', 0) for device in devices})


def _over_slices(devices, shape, num_slices: int) -> Mesh:
  """A mesh in which each slice has its own part of `data`."""
  data, *others = shape
  if data % num_slices:
    raise errors.refuse(
      'config.mesh.data',
      f'{data} is not a multiple of the {num_slices} slices, over which only '
      'data is split',
      _show_fitting(len(devices), shape, data_multiple=num_slices),
    )
  array = mesh_utils.create_hybrid_device_mesh(
    (data // num_slices, *others),
    (num_slices, *(1 for _ in others)),
    devices,
    allow_split_physical_axes=True,
  )
  return Mesh(array, MESH_AXES, axis_types=_AXIS_TYPES)


def abstract_mesh(num_devices: int, **sizes: int) -> AbstractMesh:
  """Returns a mesh of devices that need not exist: --mode=plan needs shapes."""
  shape = mesh_sizes(num_devices, **sizes)
  return AbstractMesh(shape, MESH_AXES, axis_types=_AXIS_TYPES)


def mesh_sizes(num_devices: int, **sizes: int) -> tuple[int, ...]:
  """Returns the size of every mesh axis, in the order of MESH_AXES.

  Args:
    num_devices: the product that the sizes must have.
    **sizes: by axis; one may be -1, which takes the remaining devices. The
      default is -1 for `data` and 1 for the others.

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
      f'use sizes whose product is {num_devices}, one of them -1 for the '
      f'rest: {_show_fitting(num_devices, [given[a] for a in MESH_AXES])}',
    )
  return tuple(shape)


def _show_fitting(num_devices: int, asked, data_multiple: int = 1) -> str:
  """The three sizes that fit and are nearest to those asked for."""
  divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
  fitting = [
    (num_devices // rest, *sizes)
    for sizes in itertools.product(divisors, repeat=len(MESH_AXES) - 1)
    if num_devices % (rest := math.prod(sizes)) == 0
    and num_devices // rest % data_multiple == 0
  ]

  def distance(sizes):
    return sum(
      abs(math.log(size / wanted))
      for size, wanted in zip(sizes, asked)
      if wanted > 0
    )

  return ' or '.join(
    ' '.join(f'{axis}={n}' for axis, n in zip(MESH_AXES, sizes))
    for sizes in sorted(fitting, key=distance)[:3]
  )


def row_multiple(mesh: Mesh) -> int:
  """Returns the number that the rows of a batch must be a multiple of."""
  return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def param_shardings(mesh: Mesh, logical_axes, params: Params) -> Params:
  """Returns shardings of parameters, from their logical axes.

  An axis whose size the mesh axis does not divide is not split.

  Args:
    mesh: the mesh.
    logical_axes: pytree like params; leaves are tuples of axis names.
    params: arrays or ShapeDtypeStructs, or QArrays of them, whose scales are
      split like the integers.

  Returns:
    Pytree of NamedShardings.
  """

  def sharding(axes, leaf):
    spec = []
    for name, size in zip(axes, leaf.shape, strict=True):
      axis = _rule(name)
      fits = axis is not None and size % mesh.shape[axis] == 0
      # A mesh axis can split one axis of an array only: the first that asks.
      spec.append(axis if fits and axis not in spec else None)
    return NamedSharding(mesh, PartitionSpec(*spec))

  # The leaves of `logical_axes` are tuples. Inside, a QArray is itself a tree.
  return jax.tree.map(
    lambda axes, leaf: jax.tree.map(functools.partial(sharding, axes), leaf),
    logical_axes,
    params,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def in_host_memory(mesh: Mesh, shardings: Any) -> Any:
  """Returns the shardings with their arrays in the memory of the hosts.

  Args:
    mesh: an AbstractMesh is taken to have devices that can read it.
    shardings: pytree of NamedShardings.

  Raises:
    InputError: a device cannot read its host's memory.
  """
  if isinstance(mesh, Mesh):
    device = (
      mesh.local_devices[0] if mesh.local_devices else mesh.devices.flat[0]
    )
    kinds = [memory.kind for memory in device.addressable_memories()]
    if _HOST not in kinds:
      raise errors.refuse(
        'config.reference.offload',
        f'{device.device_kind} reads no {_HOST} memory, only '
        f'{", ".join(kinds)}',
        "leave it out; precision.reference='bfloat16' halves the reference",
      )
  return jax.tree.map(lambda s: s.with_memory_kind(_HOST), shardings)


def placed(shardings: Any, leaves: Any) -> Placed:
  """Returns the shardings, and abstract arrays like `leaves` with them."""
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
  """Returns the shardings of a TrainState.

  Moments are split like their parameters, everything else is replicated.

  Args:
    mesh: the mesh.
    optimizer: the optimizer whose moments `state` holds.
    shardings: of the parameters.
    state: abstract or concrete.
  """
  everywhere = replicated(mesh)

  def like_param(leaf, sharding):
    # Adafactor's factored moments have another shape than their parameter.
    same_rank = leaf.ndim == len(sharding.spec)
    return sharding if same_rank and leaf.size > 1 else everywhere

  # optax knows which leaves of a chain of transformations mirror a parameter.
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
    skipped=everywhere,
  )


def batch_shardings(mesh: Mesh, batch: types.Batch) -> types.Batch:
  """Rows are split over ROW_AXES; [P] and [C] arrays are replicated.

  A loss may compare any two completions, and its arrays are small.
  """
  # Rows in a batch are [M, R, L]; the axis of microbatches is never split.
  rows = NamedSharding(mesh, PartitionSpec(None, ROW_AXES))
  shardings = jax.tree.map(lambda _: replicated(mesh), batch)
  return shardings._replace(rows=types.Rows(*[rows] * len(types.Rows._fields)))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that gives every device the entire array."""
  return NamedSharding(mesh, PartitionSpec())


def _rule(name):
  """The mesh axis that splits a logical axis; None = none."""
  if name is None or name in ('layers', 'head_dim', 'experts'):
    return None
  if name not in RULES:
    near = errors.nearest(name, RULES)
    raise ValueError(f'no sharding rule for axis {name!r}; nearest: {near}')
  return RULES[name]
