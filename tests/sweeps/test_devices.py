"""devices: which devices a process of a few sees."""

import pytest

from dpo_jax.sweeps import devices


def test_a_part_of_the_visible_devices():
  own = devices.environment('gpu', 2, 2, {'A': 'b'})
  assert own['CUDA_VISIBLE_DEVICES'] == '2,3' and own['A'] == 'b'
  some = {'CUDA_VISIBLE_DEVICES': '4,5,6,7'}
  assert devices.environment('gpu', 2, 1, some)['CUDA_VISIBLE_DEVICES'] == '6'
  assert devices.environment('tpu', 3, 1, {})['TPU_VISIBLE_DEVICES'] == '3'


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
