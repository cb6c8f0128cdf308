"""sharding: placement of arrays on a mesh of eight CPU devices."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dpo_jax import optim, sharding, types
from dpo_jax.train_step import init_state
from dpo_jax.types import InputError

PARAMS = {'kernel': np.zeros((3, 8, 6), np.float32), 'bias': np.zeros(6)}
AXES = {'kernel': ('layers', 'embed', 'mlp'), 'bias': ('mlp',)}


def test_mesh_sizes_fill_in_the_rest():
  assert sharding.mesh_sizes(8, fsdp=2) == (4, 2, 1)
  assert sharding.mesh_sizes(8, data=1, tensor=-1) == (1, 1, 8)
  assert sharding.make_mesh(data=2, fsdp=2, tensor=2).shape == {
    'data': 2,
    'fsdp': 2,
    'tensor': 2,
  }
  assert (
    sharding.row_multiple(sharding.make_mesh(data=2, fsdp=2, tensor=2)) == 4
  )


@pytest.mark.parametrize(
  'sizes', [(3, 1, 1), (-1, -1, 1), (-1, 3, 1), (0, 1, 1), (8, 2, 1)]
)
def test_a_mesh_that_does_not_fit_is_refused(sizes):
  with pytest.raises(InputError, match='config.mesh.*8 device') as error:
    sharding.make_mesh(**dict(zip(types.MESH_AXES, sizes)))
  assert '\n' not in str(error.value)


def test_parameters_are_split_by_their_logical_axes():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  got = sharding.param_shardings(mesh, AXES, PARAMS)
  assert got['kernel'].spec == P(None, 'fsdp', 'tensor')
  assert got['bias'].spec == P('tensor')
  # 6 is not divisible by 4, so the axis is not split.
  wide = sharding.param_shardings(
    sharding.make_mesh(data=1, fsdp=2, tensor=4), AXES, PARAMS
  )
  assert wide['kernel'].spec == P(None, 'fsdp', None)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_moments_lie_where_their_parameters_do(name):
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  optimizer = optim.make_optimizer(name, clip_norm=1.0, weight_decay=0.1)
  state = init_state(PARAMS, optimizer, seed=0)
  shardings = sharding.param_shardings(mesh, AXES, PARAMS)
  got = sharding.state_shardings(mesh, optimizer, shardings, state)
  placed = jax.device_put(state, got)  # fails on any shape that won't split
  assert placed.params['kernel'].sharding.spec == P(None, 'fsdp', 'tensor')
  moments = optax.tree_utils.tree_get_all_with_path(placed.opt_state, 'mu')
  for _, moment in moments:
    assert moment['kernel'].sharding.spec == P(None, 'fsdp', 'tensor')


def test_sizes_that_fit_are_named():
  with pytest.raises(InputError, match='data=2 fsdp=4 tensor=1') as error:
    sharding.make_mesh(data=2, fsdp=3)
  assert error.value.args[0].count('data=') == 4


class Chip:
  """A device of one of two TPU slices."""

  platform, device_kind = 'tpu', 'TPU v5 lite'

  def __init__(self, number):
    self.id, self.process_index, self.slice_index = number, number, number // 4
    self.coords = (number % 2, number // 2 % 2, 0)
    self.core_on_chip = 0

  def __repr__(self):
    return str(self.id)


def test_slices_share_data_alone():
  chips = [Chip(i) for i in range(8)]
  mesh = sharding.make_mesh(chips, data=2, fsdp=4)
  for part, row in enumerate(mesh.devices):
    assert {chip.slice_index for chip in row.flat} == {part}
  with pytest.raises(InputError, match='config.mesh.data: 1 .* 2 slices') as no:
    sharding.make_mesh(chips, data=1, fsdp=8)
  assert 'data=2 fsdp=4 tensor=1' in str(no.value)
