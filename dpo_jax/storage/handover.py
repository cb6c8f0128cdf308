"""Host arrays <-> arrays that all processes hold together.

Comes in: numpy arrays of one process, or arrays on the devices of all. Goes
out: global arrays, each process giving only what its devices hold, and weights
on the host of the first process. No process waits for another one to hand an
array over.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import sharding, types

_BLOCK = 1 << 28  # bytes that are gathered at once


def connect(mesh: jax.sharding.Mesh, meet: Callable[[], Any]) -> None:
  """Connects the devices of all processes, in every group of the mesh.

  gloo, on the CPU, connects a group at its first collective and gives up after
  30 seconds if a process is late, such as one that compiles longer. So each
  group has its first collective here, right after all have met. Other backends
  connect by themselves.

  Args:
    mesh: of the run.
    meet: returns once all processes called it, however long that takes.
  """
  if jax.process_count() == 1 or jax.default_backend() != 'cpu':
    return
  zero = np.zeros(1, np.float32)
  # Groups of jax's own: a device per process, and all devices.
  meet()
  multihost_utils.process_allgather(zero)
  multihost_utils.sync_global_devices('connect')
  whole = PartitionSpec()
  axes = [name for name in mesh.axis_names if mesh.shape[name] > 1]
  for size in range(1, len(axes) + 1):
    for group in itertools.combinations(axes, size):
      total = jax.shard_map(
        functools.partial(jax.lax.psum, axis_name=group),
        mesh=mesh,
        in_specs=whole,
        out_specs=whole,
      )
      x = put(zero, NamedSharding(mesh, whole))
      program = jax.jit(total).lower(x).compile()
      meet()
      jax.block_until_ready(program(x))


def put(tree: Any, shardings: Any) -> Any:
  """Returns a pytree of host arrays on the devices.

  Args:
    tree: arrays that are equal in every process; PRNG keys too.
    shardings: one sharding, or a pytree of them like `tree`.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)
  if isinstance(shardings, jax.sharding.Sharding):
    where = shardings
    shardings = jax.tree.map(lambda _: where, tree)
  return jax.tree.map(_put, tree, shardings)


def _put(leaf: Any, where: jax.sharding.Sharding) -> jax.Array:
  """One leaf of `put`."""
  if jnp.issubdtype(getattr(leaf, 'dtype', None), jax.dtypes.prng_key):
    wrap = functools.partial(
      jax.random.wrap_key_data, impl=jax.random.key_impl(leaf)
    )
    data = put(jax.device_get(jax.random.key_data(leaf)), where)
    return jax.jit(wrap, out_shardings=where)(data)
  array = np.asarray(jax.device_get(leaf))
  return _place(array, where, array.shape)


def _place(array: np.ndarray, where: jax.sharding.Sharding, shape) -> jax.Array:
  """A global array of this shape, of what each process gives of it."""
  # The loop forbids transfers; these are meant.
  with jax.transfer_guard('allow'):
    return jax.make_array_from_process_local_data(where, array, shape)


def own_rows(mesh: jax.sharding.Mesh, num_rows: int) -> np.ndarray | None:
  """Returns the rows of a batch that this process's devices hold, ascending.

  None in a process by itself, which holds all.
  """
  if jax.process_count() == 1:
    return None
  rows = NamedSharding(mesh, PartitionSpec(types.ROW_AXES))
  held = rows.addressable_devices_indices_map((num_rows,)).values()
  every = np.arange(num_rows)
  return np.unique(np.concatenate([every[index] for index in held]))


def put_batch(
  mesh: jax.sharding.Mesh, host: types.Batch, num_rows: int
) -> types.Batch:
  """Returns a batch on the devices.

  Args:
    mesh: the mesh.
    host: its rows are `own_rows`; all else is equal in every process.
    num_rows: R, of all processes.
  """
  where = sharding.batch_shardings(mesh, host)
  if jax.process_count() == 1:
    return jax.device_put(host, where)

  def place(leaf, where):
    return _place(leaf, where, (leaf.shape[0], num_rows, *leaf.shape[2:]))

  rows = jax.tree.map(place, host.rows, where.rows)
  rest = put(host._replace(rows=None), where._replace(rows=None))
  return rest._replace(rows=rows)


def to_first(tree: Any) -> Any:
  """Returns a pytree as numpy arrays in the first process, else None.

  Sharded arrays are gathered in blocks of bounded size along their first axis,
  so that no device ever holds a large one whole.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  leaves = jax.tree.map(_gather, tree)
  return leaves if jax.process_index() == 0 else None


def _gather(leaf: jax.Array) -> np.ndarray | bool:
  """One leaf of `to_first`; False in the other processes."""
  is_first = jax.process_index() == 0
  if leaf.is_fully_replicated:
    return np.asarray(leaf) if is_first else False
  size = leaf.shape[0]
  step = max(1, min(size, _BLOCK * size // max(leaf.nbytes, 1)))
  out = np.empty(leaf.shape, leaf.dtype) if is_first else False
  for start in range(0, size, step):
    # The last block begins earlier, so that all have one shape.
    start = min(start, size - step)
    block = _slice(leaf, np.int32(start), step)
    if is_first:
      out[start : start + step] = np.asarray(block)
  return out


def _slice(leaf: jax.Array, start: np.int32, step: int) -> jax.Array:
  """Part of an array along its first axis, whole on every device."""
  return _make_slice(sharding.replicated(leaf.sharding.mesh), step)(leaf, start)


@functools.cache
def _make_slice(where: NamedSharding, step: int):
  """The jitted function of `_slice`, compiled once per shape and sharding."""
  return jax.jit(
    lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, step),
    out_shardings=where,
  )
