"""file -> rows: one data file on disk, its kind and its rows.

Comes in: a path ending in .jsonl, .jsonl.gz, .json, .json.gz (all four hold
one object per line), .parquet or .arrow, or a folder that the `save_to_disk`
of `datasets` wrote. Goes out: (row number from 1, dict) pairs.
Any fault of the file is a types.InputError of the form `path:line: problem;
fix: ...`. Line 0 stands for the file itself. Does not look at the columns: see
records.py.
"""

import gzip
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import arrow, jsonl
from dpo_jax.storage import buckets, scratch
from dpo_jax.storage import files as storage_files
from dpo_jax.types import InputError

EXTENSIONS = (
  '.jsonl',
  '.jsonl.gz',
  '.json',
  '.json.gz',
  '.parquet',
  '.arrow',
)

_GZIP = b'\x1f\x8b'
_PARQUET = b'PAR1'
# First bytes of files that are often given by mistake: name and fix.
_OTHER_MAGIC = {
  b'PK\x03\x04': ('a zip archive', 'unpack it'),
  b'\x28\xb5\x2f\xfd': ('zstd data', 'decompress it (zstd -d)'),
  b'\xfd7zXZ': ('xz data', 'decompress it (xz -d)'),
  b'BZh': ('bzip2 data', 'decompress it (bzip2 -d)'),
  b'ARROW1': ('an Arrow file', 'rename it to end in .arrow'),
  b'\x89HDF': ('an HDF5 file', 'write it as Parquet or JSONL'),
}


def read_rows(
  path: str, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (row number, row) after checking the kind of the file.

  Args:
    path: the file or folder. Its extension decides how it is read.
    wanted: takes the name of a column in a Parquet or Arrow file. Columns that
      are not wanted are not decoded: they are None in the rows.

  Raises:
    InputError: a missing, misnamed, damaged or malformed file.
  """
  check(path)
  place = _local(path)
  if os.path.isdir(place) or path.endswith(('.parquet', '.arrow')):
    yield from arrow.read_rows(place, wanted, path)
    return
  # The name decides: `check` has refused a file whose bytes contradict it.
  opener = gzip.open if path.endswith('.gz') else open
  with opener(place, 'rb') as file:
    yield from jsonl.read_rows(file, path)


def parts(path: str) -> list[str]:
  """Returns the files that hold the rows: those of a folder, or the path."""
  return arrow.parts(_local(path), path)


def check(path: str) -> None:
  """Refuses a file whose name or first bytes are not those of a data file."""
  where = f'{path}:0'
  try:
    place = _local(path)
    status = os.stat(place)
    if stat.S_ISDIR(status.st_mode):
      if not arrow.parts(place, path):
        raise _folder(path, place, where)
      return
    if not stat.S_ISREG(status.st_mode):
      raise errors.refuse(where, 'not a regular file', 'name a data file')
    with open(place, 'rb') as file:
      start = file.read(512)
  except (FileNotFoundError, NotADirectoryError):
    raise _missing(path, where) from None
  except InputError:  # a ValueError too
    raise
  except (OSError, ValueError) as error:  # ValueError: a NUL in the name
    reason = getattr(error, 'strerror', None) or error
    raise errors.refuse(
      where, f'cannot be read: {reason}', 'check the path and its permissions'
    ) from None
  if not path.endswith(EXTENSIONS):
    extension = os.path.splitext(path)[1]
    raise errors.refuse(
      where,
      f'unknown extension {extension!r}',
      f'{errors.did_you_mean(extension, EXTENSIONS)}use a file ending in '
      f'{", ".join(EXTENSIONS)}',
    )
  if not start:
    raise errors.refuse(where, 'the file is empty', 'write or copy it again')
  _check_start(path, start, where)


def _check_start(path: str, start: bytes, where: str) -> None:
  """Refuses a file whose first bytes contradict its name."""
  # A download that failed often leaves a page or a pointer under this name.
  lowered = start.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if lowered.startswith(b'version https://git-lfs'):
    raise errors.refuse(
      f'{path}:1',
      'a git-lfs pointer, not the data',
      'fetch the data (git lfs pull)',
    )
  if lowered.startswith((b'<!doctype', b'<html', b'<?xml')):
    raise errors.refuse(
      f'{path}:1',
      'an HTML or XML page, not data',
      'download the data file itself, not the page that shows it',
    )
  for magic, (name, fix) in _OTHER_MAGIC.items():
    if start.startswith(magic) and not path.endswith('.arrow'):
      raise errors.refuse(where, f'{name} under a name of another kind', fix)
  for magic, name, extension in (
    (_GZIP, 'gzip data', '.gz'),
    (_PARQUET, 'Parquet data', '.parquet'),
  ):
    named = path.endswith(extension)
    if start.startswith(magic) and not named:
      raise errors.refuse(
        where,
        f'{name}, but its name does not end in {extension}',
        f'rename it to end in {extension}',
      )
    if named and not start.startswith(magic):
      raise errors.refuse(
        where,
        f'not {name}, although its name ends in {extension}: '
        f'{errors.show(start[:16])}',
        'rename it after what it holds, or download it again',
      )


def _local(path: str) -> str:
  """The path on this machine: that of a copy, for a name in a bucket."""
  place = storage_files.at(path)
  if not isinstance(place, buckets.Path):
    return path
  storage_files.refuse_unfinished(place)
  copy = scratch.copy_folder if place.is_dir() else scratch.copy
  return str(copy(place))


def _missing(path: str, where: str) -> Exception:
  folder, name = os.path.split(path)
  try:
    names = [p.name for p in storage_files.at(folder).iterdir()]
  except OSError:
    return errors.refuse(
      where, 'no such file, and no such folder', 'correct the path'
    )
  match = errors.nearest(name, names)
  hint = f'did you mean {os.path.join(folder, match)!r}? ' if match else ''
  return errors.refuse(where, 'no such file', f'{hint}correct the path')


def _folder(path: str, place: str, where: str) -> Exception:
  name = arrow.data_file_in(place, EXTENSIONS).replace(place, path, 1)
  example = f', such as {name!r}' if name else ''
  return errors.refuse(
    where, 'a folder, not a file', f'name one file in it{example}'
  )
