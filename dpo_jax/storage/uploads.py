"""A file or a folder of this machine -> a bucket, whole or not at all.

Comes in: a Path of a bucket. Goes out: something to write into, whose content
is put there at the end. An object is whole by itself: it takes its name with
its last byte. A folder is not: the object UNFINISHED is its first and is
removed after its last, so what a killed process left says what it is.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from dpo_jax import errors
from dpo_jax.storage import buckets, scratch

UNFINISHED = '.unfinished'
# Files that readers look for first are put last.
_LAST = ('config.json', 'meta.json', 'adapter_config.json')


@contextlib.contextmanager
def new_object(path: buckets.Path) -> Iterator[IO[bytes]]:
  """Opens a binary file that is put as `path` at the end of the block."""
  with tempfile.NamedTemporaryFile(dir=scratch.folder()) as file:
    yield file
    file.flush()
    path.put(file.name)


@contextlib.contextmanager
def new_folder(path: buckets.Path, *, may_exist: bool) -> Iterator[Any]:
  """Yields a folder of this machine whose files are put below `path`.

  Args:
    path: in a bucket; nothing is there, unless `may_exist`.
    may_exist: whether the content follows from the name: what another process
      finished meanwhile is kept, what a killed one left is put again.

  Raises:
    InputError: something is there and `may_exist` is False, or the store
      fails.
  """
  if not may_exist:
    refuse_unfinished(path)
    if path.exists():
      raise errors.refuse(
        path, 'is there already', 'give another folder, or remove it'
      )
  with scratch.new_folder() as beside:
    yield beside
    if may_exist and is_whole(path):
      return
    # Of two processes that may not share the folder, one fails here.
    try:
      (path / UNFINISHED).write_bytes(b'', new=not may_exist)
    except FileExistsError:
      refuse_unfinished(path)
      raise
    names = [file for file in beside.rglob('*') if file.is_file()]
    for file in sorted(names, key=lambda file: (file.name in _LAST, file)):
      (path / file.relative_to(beside)).put(file)
    (path / UNFINISHED).unlink(missing_ok=True)


def is_whole(path: buckets.Path) -> bool:
  """Returns whether a folder is there, and all of it."""
  return path.exists() and not (path / UNFINISHED).exists()


def refuse_unfinished(path: buckets.Path) -> None:
  """Refuses a folder of which a process wrote a part only."""
  if (path / UNFINISHED).exists():
    raise errors.refuse(
      path,
      f'was never finished (it has {UNFINISHED}): its writer was killed, or '
      'goes on',
      'remove it once nobody writes it, or give another folder',
    )
