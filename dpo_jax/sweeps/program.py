"""a step -> a program that takes it for many points at once.

Comes in: one update as a pure function, and how to put many into one program.
Goes out: the jitted update of a stack: trees of arrays with an axis of points
in front, spread over devices. Knows no run.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import PartitionSpec

from dpo_jax import types
from dpo_jax.types import MESH_AXES

AXIS = 'sweep'  # of the points of a stack
WAYS = ('map', 'vmap')  # one after another within a step; side by side


def one_device() -> jax.sharding.Mesh:
  """The mesh of every point of a stack: no point is split over devices."""
  first = np.array(jax.devices()[:1])
  return jax.sharding.Mesh(first.reshape((1,) * len(MESH_AXES)), MESH_AXES)


def make_step(
  step: Callable,
  mesh: jax.sharding.Mesh,
  way: str,
  *,
  is_common: bool,
  donates: bool,
) -> Callable:
  """Jits `step(stack, reference, batch, hyper) -> (stack, metrics)`.

  Args:
    step: of one point, `(state, reference, batch, hyper)`.
    mesh: one axis, AXIS; each device has a part of the points.
    way: one of WAYS.
    is_common: whether all points take one batch, else there is a stack of them.
    donates: whether the old stack gives its memory to the new one.
  """

  def on_device(stack, reference, batch, hyper):
    def one(state, own, numbers):
      return step(state, reference, own, numbers)

    if way == 'vmap':
      axes = (0, None if is_common else 0, 0)
      return jax.vmap(one, in_axes=axes)(stack, batch, hyper)
    if is_common:
      return jax.lax.map(lambda x: one(x[0], batch, x[1]), (stack, hyper))
    return jax.lax.map(lambda x: one(*x), (stack, batch, hyper))

  split, whole = PartitionSpec(AXIS), PartitionSpec()
  spread = jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(split, whole, whole if is_common else split, split),
    out_specs=(split, split),
    check_vma=False,
  )
  return jax.jit(spread, donate_argnums=0 if donates else ())


def padded(batch: types.Batch, rows: int) -> types.Batch:
  """The batch with as many rows in each microbatch; new ones are empty."""
  missing = rows - batch.rows.tokens.shape[1]

  def pad(array, value=0):
    return np.pad(array, ((0, 0), (0, missing), (0, 0)), constant_values=value)

  padded = types.Rows(*map(pad, batch.rows))
  owner = pad(batch.rows.completion_id, -1)
  return batch._replace(rows=padded._replace(completion_id=owner))
