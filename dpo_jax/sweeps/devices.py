"""Devices or cores of one host -> one process for every few of them.

Comes in: the devices or cores, and how many a point takes. Goes out: as many
copies of this command as fit, each with its own, which share the points by
their claims. Starts no device in this process: it would keep it from the
others.
"""

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from dpo_jax import errors
from dpo_jax.run import encoding

_COUNT = 'import jax; print(jax.default_backend(), jax.local_device_count())'
_FLAG = '--sweep.devices_per_point'
_CORES_FLAG = '--sweep.cores_per_point'
_LOOK_SECONDS = 0.5  # between two looks whether the first process is under way
# Variables that show a process only some devices, by backend.
_VISIBLE = {
  'gpu': ('CUDA_VISIBLE_DEVICES', 'ROCR_VISIBLE_DEVICES'),
  'tpu': ('TPU_VISIBLE_DEVICES',),
}
# Chips of a process -> their box in the torus of the host, as libtpu takes it.
_TPU_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1'}
_TPU_PORT = 8476  # of the first process; the others count on from it


def split(backend: str, total: int, per_point: int) -> int:
  """Runs this command once for every `per_point` devices; its exit code.

  Args:
    backend: 'cpu', 'gpu' or 'tpu'.
    total: devices of this host.
    per_point: devices of one point.

  Raises:
    InputError: the devices cannot be divided so.
  """
  if total % per_point:
    raise errors.refuse(
      _FLAG, f'{per_point} does not divide {total} devices', 'use a divisor'
    )
  if backend == 'tpu' and per_point not in _TPU_BOUNDS:
    counts = ', '.join(map(str, _TPU_BOUNDS))
    raise errors.refuse(
      _FLAG, f'{per_point} is no part of a TPU host', f'use one of {counts}'
    )
  # The copies have `per_point` devices each, so they do not split again.
  # They share the cores too: each encodes data on its part of them.
  share = {encoding.SHARE: str(total // per_point)}
  with _together() as children:
    for first in range(0, total, per_point):
      own = environment(backend, first, per_point) | share
      children.append(subprocess.Popen(_command(), env=own))
    return _worst(children)


def split_cores(
  cores: Sequence[int], per_point: int, is_under_way: Callable[[], bool]
) -> int:
  """Runs this command once for every `per_point` cores; its exit code.

  A step of a small model does not fill many cores: what waits for its slowest
  thread is lost. The first copy starts alone, so that it alone encodes the
  data, scores the reference and compiles; the others read the caches.

  Args:
    cores: that this process may use.
    per_point: cores of one point.
    is_under_way: whether the first copy has done all that the others share.

  Raises:
    InputError: the cores cannot be divided so, or the backend is no CPU.
  """
  if len(cores) % per_point:
    raise errors.refuse(
      _CORES_FLAG,
      f'{per_point} does not divide {len(cores)} cores',
      'use a divisor',
    )
  backend, _ = ask()
  if backend != 'cpu':
    raise errors.refuse(
      _CORES_FLAG, f'the backend is {backend}', f'use {_FLAG} there'
    )
  parts = [
    list(cores[first : first + per_point])
    for first in range(0, len(cores), per_point)
  ]

  def start(part):
    # Threads are made for the cores that a process may use at its start.
    confine = functools.partial(os.sched_setaffinity, 0, part)
    return subprocess.Popen(_command(), preexec_fn=confine)

  with _together() as children:
    first = start(parts[0])
    children.append(first)
    while first.poll() is None and not is_under_way():
      time.sleep(_LOOK_SECONDS)
    # If it ended before it came so far, nothing is left to do, or it failed.
    if first.poll() is None:
      for part in parts[1:]:
        children.append(start(part))
    return _worst(children)


def _command() -> list[str]:
  """This command, for a process of its own."""
  return [sys.executable, '-m', 'dpo_jax.main', *sys.argv[1:]]


@contextlib.contextmanager
def _together() -> Iterator[list[subprocess.Popen]]:
  """A list for processes, which get the signal that ends this one."""
  children: list[subprocess.Popen] = []
  try:
    yield children
  except BaseException:
    # The signal of a terminal reached them too; others need to be passed on.
    for child in children:
      child.terminate()
    for child in children:
      child.wait()
    raise


def _worst(children: Sequence[subprocess.Popen]) -> int:
  """Waits for processes; the exit code that is farthest from 0."""
  return max((child.wait() for child in children), key=abs)


def environment(
  backend: str,
  first: int,
  number: int,
  environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
  """The variables of a process that sees some devices of this host only.

  Args:
    backend: 'cpu', 'gpu' or 'tpu'.
    first: the first device, among those that this process sees.
    number: of devices.
    environ: the variables of this process.
  """
  own = dict(environ)
  if backend == 'cpu':
    flags = [
      flag
      for flag in own.get('XLA_FLAGS', '').split()
      if not flag.startswith('--xla_force_host_platform_device_count')
    ]
    flags.append(f'--xla_force_host_platform_device_count={number}')
    return own | {'XLA_FLAGS': ' '.join(flags)}
  for name in _VISIBLE[backend]:
    seen = own.get(name)
    listed = seen.split(',') if seen else list(map(str, range(first + number)))
    own[name] = ','.join(listed[first : first + number])
  if backend == 'tpu':
    # The processes know nothing of one another; each needs a port of its own.
    port = str(_TPU_PORT + first)
    own |= {
      'TPU_PROCESS_BOUNDS': '1,1,1',
      'TPU_CHIPS_PER_PROCESS_BOUNDS': _TPU_BOUNDS[number],
      'TPU_MESH_CONTROLLER_ADDRESS': f'localhost:{port}',
      'TPU_MESH_CONTROLLER_PORT': port,
    }
  return own


def ask() -> tuple[str, int]:
  """Backend and number of devices of this host, asked of another process."""
  done = subprocess.run(
    [sys.executable, '-c', _COUNT], capture_output=True, text=True
  )
  words = done.stdout.split()
  if done.returncode or len(words) != 2:
    last = (done.stderr.strip().splitlines() or ['no answer'])[-1]
    raise errors.refuse(_FLAG, f'jax finds no devices ({last})', 'leave it out')
  return words[0], int(words[1])
