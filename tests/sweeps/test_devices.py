"""devices: which devices a process of a few sees."""

import pytest

from dpo_jax import types
from dpo_jax.sweeps import devices


def test_a_part_of_the_visible_devices():
  own = devices.environment('gpu', 2, 2, {'A': 'b'})
  assert own['CUDA_VISIBLE_DEVICES'] == '2,3' and own['A'] == 'b'
  some = {'CUDA_VISIBLE_DEVICES': '4,5,6,7'}
  assert devices.environment('gpu', 2, 1, some)['CUDA_VISIBLE_DEVICES'] == '6'
  assert devices.environment('tpu', 3, 1, {})['TPU_VISIBLE_DEVICES'] == '3'


@pytest.mark.parametrize(
  'number,box', [(1, '1,1,1'), (2, '1,2,1'), (4, '2,2,1')]
)
def test_processes_of_a_tpu_host_have_chips_and_ports_of_their_own(number, box):
  parts = [
    devices.environment('tpu', first, number, {})
    for first in range(0, 8, number)
  ]
  seen = [part['TPU_VISIBLE_DEVICES'].split(',') for part in parts]
  assert sum(seen, []) == list('01234567')
  assert {part['TPU_CHIPS_PER_PROCESS_BOUNDS'] for part in parts} == {box}
  ports = {part['TPU_MESH_CONTROLLER_PORT'] for part in parts}
  assert len(ports) == len(parts)


@pytest.mark.parametrize('backend,number', [('tpu', 8), ('cpu', 3)])
def test_devices_that_cannot_be_parted_are_refused(backend, number):
  with pytest.raises(types.InputError, match='--sweep.devices_per_point'):
    devices.split(backend, 16, number)


def test_cpu_devices_are_counted_anew():
  flags = '--xla_a=1 --xla_force_host_platform_device_count=8'
  own = devices.environment('cpu', 4, 2, {'XLA_FLAGS': flags})
  assert own['XLA_FLAGS'].split() == [
    '--xla_a=1',
    '--xla_force_host_platform_device_count=2',
  ]


@pytest.mark.parametrize('backend', ['gpu', 'tpu', 'cpu'])
def test_the_environment_of_this_process_stays(backend):
  before = {'XLA_FLAGS': ''}
  devices.environment(backend, 0, 1, before)
  assert before == {'XLA_FLAGS': ''}
