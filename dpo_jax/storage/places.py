"""Folders listed and named, on this machine and in buckets.

Comes in: paths. Goes out: what a folder holds, and names of one place as seen
from another, which tables keep, and how much is free there. Reads no file and
writes nothing.
"""

import os
import pathlib
import shutil
from typing import Any

from dpo_jax import errors
from dpo_jax.storage import buckets, files, readable


def exists(name: Any) -> bool:
  """Returns whether a path is there; False for one that no system takes."""
  place = files.at(name)
  return place.exists() if _in_bucket(place) else os.path.exists(place)


def is_file(name: Any) -> bool:
  """Returns whether a file is there, as `exists`."""
  place = files.at(name)
  return place.is_file() if _in_bucket(place) else os.path.isfile(place)


def is_folder(name: Any) -> bool:
  """Returns whether a folder is there, as `exists`.

  Raises:
    InputError: a folder of a bucket that was never finished.
  """
  place = files.at(name)
  files.refuse_unfinished(place)
  return place.is_dir() if _in_bucket(place) else os.path.isdir(place)


def entries(folder: files.AnyPath) -> list[tuple[files.AnyPath, bool]]:
  """Returns what a folder holds by name, each with whether it is a folder.

  Raises:
    OSError: it cannot be listed.
  """
  if isinstance(folder, buckets.Path):
    return sorted(folder.entries())
  with os.scandir(folder) as listed:
    return [
      (pathlib.Path(entry.path), entry.is_dir())
      for entry in sorted(listed, key=lambda entry: entry.name)
    ]


def refuse_strange(folder: files.AnyPath) -> None:
  """Raises InputError if a folder of ours is a file, or holds what is not ours.

  What is written through a link lies outside of the folder; a pipe holds its
  reader for ever.
  """
  with files.storage_errors(folder):
    if folder.exists() and not folder.is_dir():
      raise errors.refuse(folder, 'a file', 'give --workdir a folder')
    is_listed = folder.exists() and not isinstance(folder, buckets.Path)
    for path, is_folder in entries(folder) if is_listed else ():
      if path.is_symlink():
        raise errors.refuse(
          path,
          f'a link to {os.readlink(path)}, out of the run',
          'put what it leads to in its place; all of --workdir may be a link',
        )
      if not is_folder:
        files.refuse_stream(path)


def show_need(num_bytes: float, folder: Any) -> str:
  """Returns what is needed, and what is free in or above a folder, as text."""
  free = _show_free(folder)
  return f'needs {readable.size(num_bytes)}, {free} free'


def _show_free(folder: Any) -> str:
  """The free space of the nearest folder that exists."""
  # A bucket has no end that anyone knows.
  for path in () if buckets.is_url(folder) else (folder, *folder.parents):
    try:
      return readable.size(shutil.disk_usage(path).free)
    except OSError:
      continue
  return 'an unknown amount'


def relative(path: Any, base: Any) -> str:
  """Returns the name of a path as seen from a folder.

  Between a bucket and another place there is no way: then the path is whole.
  """
  path, base = files.at(path).resolve(), files.at(base).resolve()
  if _in_bucket(path) or _in_bucket(base):
    if path.parts[0] != base.parts[0]:
      return str(path)
    path, base = ('/'.join(p.parts[1:]) or '.' for p in (path, base))
    # From the root, so that this machine's working folder plays no part.
    return os.path.relpath(f'/{path}', f'/{base}')
  return pathlib.Path(os.path.relpath(path, base)).as_posix()


def join(base: Any, name: str) -> files.AnyPath:
  """Returns the path that `relative` named."""
  if buckets.is_url(name) or os.path.isabs(name):
    return files.at(name)
  return files.at(base) / name


def _in_bucket(path: files.AnyPath) -> bool:
  return isinstance(path, buckets.Path)
