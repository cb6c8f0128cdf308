"""values of an evaluation -> one npz file of per_example/, and back.

Comes in: arrays by name. Goes out: a file, written whole or not at all. Two
kinds of arrays share it: one value per example, under plain names, and those
of the whole set that was scored, under names that begin with WHOLE.
"""

import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_jax import errors
from dpo_jax.storage import files

WHOLE = 'whole.'  # begins the name of an array of the whole set
_AGAIN = 'evaluate the run again'


def write(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
  """Writes an npz file.

  Args:
    path: the file.
    arrays: any dtype but object. One row per example and equal lengths; those
      of the whole set may have any shape.

  Raises:
    InputError: the file cannot be written.
  """
  path = files.at(path)
  arrays = {key: np.asarray(value) for key, value in arrays.items()}
  rows = {k: v.shape[:1] for k, v in arrays.items() if not is_whole(k)}
  objects = [key for key, value in arrays.items() if value.dtype.hasobject]
  if len(set(rows.values())) != 1 or objects:
    name = f'{path.parent.name}/{path.stem}'
    raise ValueError(f'{name}: rows {rows}, objects {objects}')
  with files.storage_errors(path), files.atomic_file(path) as file:
    np.savez(file, **arrays)


def is_whole(name: str) -> bool:
  """Returns whether an array of that name is of the whole set."""
  return name.startswith(WHOLE)


def read_whole(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns the arrays of the whole set, their names without WHOLE.

  Raises:
    InputError: not a readable npz file, or one of a version that saved only
      values per example.
  """
  try:
    with files.load_arrays(path) as archive:
      arrays = {
        name.removeprefix(WHOLE): archive[name]
        for name in archive.files
        if is_whole(name)
      }
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    problem = str(error).splitlines()[0]
    raise errors.refuse(
      path, f'not a readable npz ({problem})', _AGAIN
    ) from error
  if not arrays:
    raise errors.refuse(
      path,
      'holds values per example only, as older versions saved them',
      _AGAIN,
    )
  return arrays
