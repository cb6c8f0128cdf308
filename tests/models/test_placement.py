"""placement: gradients of a lookup add up in float32, on a mesh as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import sharding
from dpo_jax.models import placement


@pytest.mark.parametrize('sizes', [None, (1, 4, 2), (8, 1, 1), (2, 4, 1)])
def test_gradients_of_many_uses_are_not_lost(sizes):
  names = ('data', 'fsdp', 'tensor')
  mesh = sizes and sharding.make_mesh(**dict(zip(names, sizes)))
  ids_RL = np.zeros((8, 512), np.int32)
  ids_RL[:, 0] = 1
  table = np.arange(8.0, dtype=np.float32).reshape(2, 4)

  def loss(table):
    x_RLD = placement.look_up(table, ids_RL, jnp.bfloat16, mesh)
    assert x_RLD.dtype == jnp.bfloat16
    return jnp.sum(x_RLD * jnp.bfloat16(2**-10)), x_RLD

  (_, x_RLD), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(table)
  np.testing.assert_array_equal(x_RLD, table[ids_RL])
  # 8 * 511 uses of 2^-10 each: in bfloat16 a sum of them stops at 0.25.
  np.testing.assert_allclose(grad[0], 8 * 511 / 1024, rtol=1e-6)
  np.testing.assert_allclose(grad[1], 8 / 1024, rtol=1e-6)


def test_the_rows_may_be_on_one_group_of_tensor():
  # As a step has it: its table is split, in the order of `tensor`.
  mesh = sharding.make_mesh(data=1, fsdp=1, tensor=8)
  split = NamedSharding(mesh, PartitionSpec('tensor'))
  table = jax.device_put(
    np.arange(64.0, dtype=np.float32).reshape(16, 4), split
  )
  ids_RL = np.arange(32, dtype=np.int32).reshape(8, 4) % 16

  def loss(table):
    return jnp.sum(placement.look_up(table, ids_RL, jnp.float32, mesh) ** 2)

  grad = jax.jit(jax.grad(loss), out_shardings=split)(table)
  np.testing.assert_allclose(grad, 4 * np.asarray(table))
