"""Claims of points: one process runs a point, and its claim dies with it.

Comes in: the folder of a sweep. Goes out: the claim of a point, or the word
that another process has it. A claim is a lock on a file, which the system gives
up when its owner ends, and the owner's name in that file, by which a file
system whose locks do not reach the other machine is noticed. In a bucket a
claim is a lease (storage/leases.py), which ends some time after its owner.
"""

import contextlib
import fcntl
import json
import platform
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from dpo_jax import errors
from dpo_jax.storage import buckets, files, leases, leftovers

# A live owner writes the time into its claim this often, and a claim without a
# lock counts as alive for that long after it.
_BEAT_SECONDS = 10.0
_ALIVE_SECONDS = 60.0
_SHARD = '--sweep.shard=I/N splits the points without locks'


def check(folder: files.AnyPath) -> None:
  """Refuses a folder whose file system has no locks.

  Args:
    folder: of the claims; made if it is missing.

  Raises:
    InputError: a lock is refused for another reason than another's lock.
  """
  if isinstance(folder, buckets.Path):
    return leases.check(folder)
  with files.storage_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with open(
      folder / f'.{leases.owner().replace(":", "-")}.probe', 'ab'
    ) as probe:
      try:
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        raise errors.refuse(
          folder, f'this file system has no locks ({error.strerror})', _SHARD
        ) from None
      finally:
        files.at(probe.name).unlink(missing_ok=True)


def alive(folder: files.AnyPath, name: str) -> str:
  """The owner of a point's claim, as far as its file tells; '' = none.

  Takes no lock: a process that wants the point is not in its way.
  """
  if isinstance(folder, buckets.Path):
    return leases.holder(folder / f'{name}.lock')
  try:
    with open(folder / f'{name}.lock', 'rb') as file:
      claimed = _read(file)
  except OSError:
    return ''
  if not claimed:
    return ''
  host, _, number = claimed['owner'].rpartition(':')
  if host == platform.node():
    is_alive = number.isdecimal() and leftovers.is_running(int(number))
  else:
    is_alive = time.time() - claimed['time'] < _ALIVE_SECONDS
  return claimed['owner'] if is_alive else ''


@contextlib.contextmanager
def claim(folder: files.AnyPath, name: str) -> Iterator[str]:
  """Claims a point until the end of the block.

  Args:
    folder: of the claims.
    name: of the point.

  Yields:
    '' if the claim is this process's, else the name of the owner.

  Raises:
    InputError: the lock was given, and yet another process's claim is alive:
      the locks of this file system do not reach the machine of the other.
  """
  path = folder / f'{name}.lock'
  if isinstance(folder, buckets.Path):
    lease = leases.Lease(path)
    try:
      yield lease.take(log=lambda line: None)
    finally:
      lease.release()
    return
  with files.storage_errors(path):
    opened = open(path, 'a+b')
  with opened as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
      yield _read(file).get('owner', 'another process')
      return
    except OSError as error:
      raise errors.refuse(
        path, f'this file system has no locks ({error.strerror})', _SHARD
      ) from None
    before = _read(file)
    elsewhere = before.get('owner', '').rpartition(':')[0] != platform.node()
    age = time.time() - before.get('time', 0)
    if before and elsewhere and age < _ALIVE_SECONDS:
      raise errors.refuse(
        path,
        f'{before["owner"]} runs this point and wrote so {age:.0f} s ago, but '
        'its lock does not reach this machine',
        f'{_SHARD}; if that process was killed, wait {_ALIVE_SECONDS:.0f} s',
      )
    with _beating(file):
      yield ''
    # What is left is an empty file: removing it could remove another's lock.
    file.truncate(0)


@contextlib.contextmanager
def wait_for(folder: files.AnyPath, name: str) -> Iterator[None]:
  """Claims as `claim`, once the process that has it is through.

  Raises:
    InputError: it has it for longer than a file takes to be written.
  """
  end = time.monotonic() + _ALIVE_SECONDS
  while True:
    with claim(folder, name) as other:
      if not other:
        yield
        return
    if time.monotonic() > end:
      raise errors.refuse(
        folder / name, f'{other} has had it for a minute', 'start again'
      )
    time.sleep(0.1)


@contextlib.contextmanager
def _beating(file: IO[bytes]) -> Iterator[None]:
  """Writes owner and time into a claim, again and again."""
  stop = threading.Event()

  def write():
    with contextlib.suppress(OSError):  # the claim itself is the lock
      _write(file, {'owner': leases.owner(), 'time': time.time()})

  def beat():
    while not stop.wait(_BEAT_SECONDS):
      write()

  write()

  thread = threading.Thread(target=beat, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()


def _write(file: IO[bytes], value: dict[str, Any]) -> None:
  # One write of a few bytes, into the open file: a rename would lose the lock.
  file.truncate(0)
  file.write(json.dumps(value).encode())
  file.flush()


def _read(file: IO[bytes]) -> dict[str, Any]:
  """What a claim says; {} if nothing, or if it is being written."""
  file.seek(0)
  value = files.parse_object(file.read()) or {}
  is_claim = isinstance(value.get('owner'), str) and isinstance(
    value.get('time'), int | float
  )
  return value if is_claim else {}
