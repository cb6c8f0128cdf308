"""The lock of a run directory: one process writes a run.

Comes in: the folder of a run. Goes out: a `Lock` until it is closed or the
process ends, or one line that another process has it. On a file system that
lock is the system's; in a bucket it is a lease (leases.py).
"""

import fcntl
import os
from typing import IO

from dpo_jax import errors
from dpo_jax.storage import buckets, files, leases
from dpo_jax.types import InputError


class Lock:
  """A lock that this process has; made by `take`."""

  def __init__(self, held: IO[bytes] | leases.Lease):
    """Takes the open file, or the lease."""
    self._held = held

  def confirm(self) -> None:
    """Raises InputError if another process took a lease over.

    On a disk: if the folder was removed, which frees the lock, or if another
    one is in its place.
    """
    if isinstance(self._held, leases.Lease):
      self._held.confirm()
    elif not self._is_in_place():
      raise errors.unwritten(
        os.path.dirname(self._held.name),
        'the run directory is gone, removed or moved while the run wrote it',
        'put it back, or give the same command again to start over',
      )

  def _is_in_place(self) -> bool:
    """Whether the file of this lock is still the one of its name."""
    try:
      return os.path.samestat(
        os.fstat(self._held.fileno()), os.stat(self._held.name)
      )
    except OSError:
      return False

  def discard(self) -> None:
    """Leaves no object of a lease; a file's lock is kept."""
    if isinstance(self._held, leases.Lease):
      self._held.discard()

  def close(self) -> None:
    """Gives the lock up."""
    if isinstance(self._held, leases.Lease):
      self._held.release()
    else:
      self._held.close()


def take(path: files.AnyPath) -> Lock:
  """Locks the folder for this process, until the process ends.

  A POSIX lock: a second run in the same process (a test) is let in. In a
  bucket, a holder that may be dead is watched until it has lost its lease.

  Raises:
    InputError: another process has the lock, or the store cannot hold one.
  """
  if isinstance(path, buckets.Path):
    leases.check(path / '.lock')
    lease = leases.Lease(path / '.lock')
    other = lease.take(patient=True)
    if other:
      raise _taken(path, f' ({other})')
    return Lock(lease)
  file = open(path / '.lock', 'ab')
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError) as error:
    file.close()
    raise _taken(path) from error
  except OSError:
    # Some network file systems have no locks: go on without one.
    pass
  return Lock(file)


def _taken(path: files.AnyPath, owner: str = '') -> InputError:
  return errors.refuse(
    path,
    f'another process is writing this run{owner}',
    'wait for it, stop it, or give another --workdir',
  )
