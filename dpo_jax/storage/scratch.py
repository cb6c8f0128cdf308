"""The scratch folder of this process: copies of objects, uploads in the making.

Comes in: a Path of a store. Goes out: a file of this machine with its bytes,
for readers that map files or seek in them. The folder lies in $TMPDIR, goes
with the process, and is removed by the next one if the process was killed.
Nothing in it is ever the only copy of a result.
"""

import atexit
import contextlib
import fcntl
import functools
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from dpo_jax.storage import buckets

_PREFIX = 'dpo_jax-scratch-'
_LOCK = '.lock'  # locked while its process lives
_copying = threading.Lock()
_versions: dict[buckets.Path, str] = {}  # of the copies


def copy(path: Any) -> Any:
  """Returns a file of this machine: the path itself, or a copy of the object.

  An object that has changed since is copied again.

  Raises:
    FileNotFoundError: no such object.
    InputError: the store fails.
  """
  if not isinstance(path, buckets.Path):
    return path
  place = _place(path)
  with _copying:
    version = path.version()
    if _versions.get(path) != version or not version or not place.exists():
      place.parent.mkdir(parents=True, exist_ok=True)
      path.fetch(place)
      _versions[path] = version
  return place


def copy_folder(path: Any) -> Any:
  """Returns a folder of this machine: the path itself, or a copy of all in it.

  Raises:
    FileNotFoundError: nothing is there.
    InputError: the store fails.
  """
  if not isinstance(path, buckets.Path):
    return path
  for file in path.rglob('*'):
    copy(file)
  return _place(path)


def stand_in(path: Any) -> Any:
  """Returns a folder of this machine for files that others write.

  The path itself, or a folder of the scratch that nobody puts into the bucket.
  """
  if not isinstance(path, buckets.Path):
    return path
  return pathlib.Path(tempfile.mkdtemp(prefix='stand-in-', dir=folder()))


@contextlib.contextmanager
def new_folder() -> Iterator[pathlib.Path]:
  """Yields an empty folder, removed at the end of the block."""
  made = pathlib.Path(tempfile.mkdtemp(dir=folder()))
  try:
    yield made
  finally:
    shutil.rmtree(made, ignore_errors=True)


@functools.cache
def folder() -> pathlib.Path:
  """Returns the folder of this process; made at the first call."""
  parent = pathlib.Path(tempfile.gettempdir())
  for other in parent.glob(f'{_PREFIX}*'):
    _remove_if_dead(other)
  made = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX))
  held = open(made / _LOCK, 'ab')
  fcntl.flock(held, fcntl.LOCK_EX)
  atexit.register(_leave, made, held, os.getpid())
  return made


def _leave(made: pathlib.Path, held: Any, owner: int) -> None:
  """Removes the folder; a forked child leaves it to its parent."""
  if os.getpid() == owner:
    shutil.rmtree(made, ignore_errors=True)
    held.close()


def _remove_if_dead(other: pathlib.Path) -> None:
  """Removes the folder of a process that was killed."""
  try:
    with open(other / _LOCK, 'rb') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      shutil.rmtree(other, ignore_errors=True)
  except OSError:
    return  # alive, another user's, or about to be locked


def _place(path: buckets.Path) -> pathlib.Path:
  """Where the copy of a name is: under the same name, for messages."""
  return folder() / 'copies' / path.as_posix().replace('://', '/', 1)
