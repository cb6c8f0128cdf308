"""A folder that is written whole or not at all.

Comes in: the path of a folder to be made. Goes out: an empty one beside it,
which takes its place when all is in it.
"""

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from dpo_jax import errors
from dpo_jax.storage import run_dir


@contextlib.contextmanager
def write(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a folder to write to, renamed to `folder` at the end.

  Args:
    folder: to be made; may exist if empty.

  Raises:
    InputError: it is there already, or cannot be written.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  with run_dir.storage_errors(folder):
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
      raise errors.refuse(
        folder, 'is there already', 'give another folder, or remove it'
      )
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f'.{folder.name}.{uuid.uuid4().hex[:8]}'
    try:
      beside.mkdir()
      yield beside
      os.replace(beside, folder)
    finally:
      shutil.rmtree(beside, ignore_errors=True)
