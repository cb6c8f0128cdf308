"""handover: arrays of one process and of all; the devices here are eight."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import sharding, types
from dpo_jax.storage import handover


@pytest.fixture
def two_processes(monkeypatch):
  """The paths of several processes, all of whose devices are here."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  return sharding.make_mesh(data=2, fsdp=4, tensor=1)


@pytest.mark.parametrize('block', [1, 100, 1 << 28])
def test_weights_are_gathered_block_by_block(block, two_processes, monkeypatch):
  monkeypatch.setattr(handover, '_BLOCK', block)
  where = NamedSharding(two_processes, PartitionSpec(None, 'fsdp'))
  rng = np.random.default_rng(0)
  # Seven layers: the last block begins earlier.
  tree = {'a': rng.normal(size=(7, 8)).astype('f4'), 'b': np.arange(8.0)}
  placed = {
    'a': jax.device_put(tree['a'], where),
    'b': jax.device_put(tree['b'], sharding.replicated(two_processes)),
  }
  read = handover.to_first(placed)
  assert all(np.array_equal(read[name], tree[name]) for name in tree)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  assert handover.to_first(placed) is None


def test_keys_and_numbers_are_put_as_they_are(two_processes):
  where = sharding.replicated(two_processes)
  tree = {'key': jax.random.key(3), 'x': np.float32(2), 'y': np.arange(3)}
  with jax.transfer_guard('disallow'):
    placed = handover.put({'x': tree['x'], 'y': tree['y']}, where)
  assert placed['y'].sharding == where and placed['x'] == 2
  key = handover.put(tree['key'], where)
  assert np.array_equal(
    jax.random.key_data(key), jax.random.key_data(tree['key'])
  )


def test_the_rows_of_a_process_are_those_of_its_devices(two_processes):
  class Half:
    """The mesh as a process with every second device sees it."""

    def addressable_devices_indices_map(self, shape):
      mesh = sharding.make_mesh(data=2, fsdp=4, tensor=1)
      rows = NamedSharding(mesh, PartitionSpec(types.ROW_AXES))
      every = rows.devices_indices_map(shape)
      return {d: i for d, i in every.items() if d.id % 2}

  make = handover.NamedSharding
  handover.NamedSharding = lambda *_: Half()
  try:
    own = handover.own_rows(two_processes, 16)
  finally:
    handover.NamedSharding = make
  assert own.tolist() == [2, 3, 6, 7, 10, 11, 14, 15]
  # All devices are this process's own.
  assert handover.own_rows(two_processes, 16).tolist() == list(range(16))


def test_a_process_by_itself_fills_all_rows():
  assert handover.own_rows(sharding.make_mesh(data=8), 16) is None


def test_groups_of_devices_connect_once_all_have_met(
  two_processes, monkeypatch
):
  said = []
  for name in ('process_allgather', 'sync_global_devices'):
    monkeypatch.setattr(
      handover.multihost_utils, name, lambda _, name=name: said.append(name)
    )
  psum = jax.lax.psum
  monkeypatch.setattr(
    jax.lax,
    'psum',
    lambda x, axis_name: said.append(axis_name) or psum(x, axis_name),
  )
  handover.connect(two_processes, lambda: said.append('all met'))
  # Both axes, and the two together; one axis has a single device.
  assert said == [
    *('all met', 'process_allgather', 'sync_global_devices'),
    *(('data',), 'all met', ('fsdp',), 'all met', ('data', 'fsdp'), 'all met'),
  ]
