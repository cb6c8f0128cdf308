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


def test_cores_that_cannot_be_parted_are_refused(monkeypatch):
  with pytest.raises(types.InputError, match='2 does not divide 3 cores'):
    devices.split_cores([0, 1, 2], 2, lambda: True)
  monkeypatch.setattr(devices, 'ask', lambda: ('gpu', 8))
  with pytest.raises(types.InputError, match='--sweep.devices_per_point'):
    devices.split_cores([0, 1, 2, 3], 2, lambda: True)


class Child:
  """A process that ends after some looks at it."""

  def __init__(self, looks, code):
    self.looks, self.code, self.ended = looks, code, False

  def poll(self):
    self.looks -= 1
    return self.code if self.looks < 0 else None

  def wait(self):
    return self.code

  def terminate(self):
    self.ended = True


@pytest.mark.parametrize(
  ('looks', 'code', 'waits', 'number'),
  [
    (99, 0, 3, 2),  # the first one is under way at the third look
    (2, 0, 99, 1),  # nothing was left to do
    (2, 1, 99, 1),  # it failed before it was under way
  ],
)
def test_the_first_process_starts_alone(
  monkeypatch, looks, code, waits, number
):
  made = []

  def popen(command, preexec_fn):
    made.append(Child(looks, code))
    return made[-1]

  monkeypatch.setattr(devices, 'ask', lambda: ('cpu', 1))
  monkeypatch.setattr(devices.subprocess, 'Popen', popen)
  monkeypatch.setattr(devices.time, 'sleep', lambda seconds: None)
  looked = iter(range(1, 100))
  got = devices.split_cores([4, 7], 1, lambda: next(looked) >= waits)
  assert (got, len(made)) == (code, number)


def test_an_error_while_they_run_ends_them(monkeypatch):
  made = []
  monkeypatch.setattr(devices, 'ask', lambda: ('cpu', 1))
  monkeypatch.setattr(
    devices.subprocess,
    'Popen',
    lambda *args, **kwargs: made.append(Child(99, 0)) or made[-1],
  )

  def stop():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    devices.split_cores([0, 1], 1, stop)
  assert [child.ended for child in made] == [True]


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
