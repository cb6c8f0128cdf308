"""file -> rows: one data file on disk, its kind and its rows.

Comes in: a path ending in .jsonl, .jsonl.gz, .json, .json.gz (all four hold
one object per line) or .parquet. Goes out: (row number from 1, dict) pairs.
Any fault of the file is a types.InputError of the form `path:line: problem;
fix: ...`. Line 0 stands for the file itself. Does not look at the columns: see
records.py.
"""

import gzip
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import jsonl

EXTENSIONS = ('.jsonl', '.jsonl.gz', '.json', '.json.gz', '.parquet')

_GZIP = b'\x1f\x8b'
_PARQUET = b'PAR1'
# First bytes of files that are often given by mistake: name and fix.
_OTHER_MAGIC = {
  b'PK\x03\x04': ('a zip archive', 'unpack it'),
  b'\x28\xb5\x2f\xfd': ('zstd data', 'decompress it (zstd -d)'),
  b'\xfd7zXZ': ('xz data', 'decompress it (xz -d)'),
  b'BZh': ('bzip2 data', 'decompress it (bzip2 -d)'),
  b'ARROW1': ('an Arrow file', 'write it as Parquet or JSONL'),
  b'\x89HDF': ('an HDF5 file', 'write it as Parquet or JSONL'),
}


def read_rows(
  path: str, columns: Iterable[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (row number, row) after checking the kind of the file.

  Args:
    path: the file. Its extension decides how it is read.
    columns: the columns to decode from a Parquet file, by default all. The
      others are None in the rows.

  Raises:
    InputError: a missing, misnamed, damaged or malformed file.
  """
  check(path)
  if path.endswith('.parquet'):
    yield from _parquet_rows(path, columns)
    return
  # The name decides: `check` has refused a file whose bytes contradict it.
  opener = gzip.open if path.endswith('.gz') else open
  with opener(path, 'rb') as file:
    yield from jsonl.read_rows(file, path)


def check(path: str) -> None:
  """Refuses a file whose name or first bytes are not those of a data file."""
  where = f'{path}:0'
  try:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
      raise _not_a_file(path, where, stat.S_ISDIR(status.st_mode))
    with open(path, 'rb') as file:
      start = file.read(512)
  except (FileNotFoundError, NotADirectoryError):
    raise _missing(path, where) from None
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
    if start.startswith(magic):
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


def _parquet_rows(
  path: str, columns: Iterable[str] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
  # Imported here: it takes half a second, which JSONL files do not need.
  import pyarrow
  import pyarrow.parquet

  number = 0
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      names = file.schema_arrow.names
      wanted = [n for n in names if columns is None or n in set(columns)]
      # Columns that are not decoded still count as columns of the row.
      blank = dict.fromkeys(names)
      for batch in file.iter_batches(batch_size=256, columns=wanted):
        for index in range(batch.num_rows):
          number += 1
          row = {c: batch.column(c)[index].as_py() for c in wanted}
          yield number, blank | row
  except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
    raise errors.refuse(
      f'{path}:{number}',
      f'damaged Parquet file: {errors.show(str(error), 120)}',
      'copy or download the file again',
    ) from None


def _missing(path: str, where: str) -> Exception:
  folder, name = os.path.split(path)
  try:
    names = os.listdir(folder or '.')
  except OSError:
    return errors.refuse(
      where, 'no such file, and no such folder', 'correct the path'
    )
  match = errors.nearest(name, names)
  hint = f'did you mean {os.path.join(folder, match)!r}? ' if match else ''
  return errors.refuse(where, 'no such file', f'{hint}correct the path')


def _not_a_file(path: str, where: str, is_folder: bool) -> Exception:
  if not is_folder:
    return errors.refuse(where, 'not a regular file', 'name a data file')
  names = sorted(n for n in os.listdir(path) if n.endswith(EXTENSIONS))
  example = f', such as {os.path.join(path, names[0])!r}' if names else ''
  return errors.refuse(
    where, 'a folder, not a file', f'name one file in it{example}'
  )
