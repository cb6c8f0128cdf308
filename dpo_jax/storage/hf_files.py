"""Safetensors files of a folder, read one range of a tensor at a time.

Comes in: a folder. Goes out: names, shapes and dtypes of its tensors, and
ranges of them as numpy arrays. Gives no meaning to the tensors and reads no
pickles.
"""

import contextlib
import os
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors

from dpo_jax import errors
from dpo_jax.storage import faults, files, scratch
from dpo_jax.types import InputError

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# numpy has no such types, so safetensors cannot slice them: see `_mapped`.
_SMALL = {
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'F8_E5M2': ml_dtypes.float8_e5m2,
}
PLAIN = ('F64', 'F32', 'F16', 'BF16')  # kinds that safetensors gives to numpy
FLOATS = (*PLAIN, *_SMALL)


class Files:
  """The open safetensors files of a folder, and the file of each tensor.

  Args:
    folder: the folder.
    stack: closes the files.
  """

  def __init__(self, folder: files.AnyPath, stack: contextlib.ExitStack):
    """Opens the files; InputError if they are missing or damaged."""
    self.folder = folder
    self._file = {}  # tensor -> (path, open file)
    for path in _find(folder):
      try:
        file = stack.enter_context(
          safetensors.safe_open(scratch.copy(path), 'numpy')
        )
        self._file |= {name: (path, file) for name in file.keys()}
      except (safetensors.SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    self.names = set(self._file)

  def path(self, name: str) -> files.AnyPath:
    """Returns the file that holds a tensor."""
    return self._file[name][0]

  def describe(self, name: str) -> tuple[tuple[int, ...], str]:
    """Reads the shape and dtype (such as those of FLOATS) from the header."""
    tensor = self._file[name][1].get_slice(name)
    return tuple(tensor.get_shape()), tensor.get_dtype()

  def read(self, name: str, where: tuple[slice, ...]) -> np.ndarray:
    """Reads a range of a tensor, in the file's dtype, and nothing else."""
    path, file = self._file[name]
    tensor = file.get_slice(name)
    if tensor.get_dtype() in _SMALL:
      return _mapped(path, name)[where]
    return tensor[where]


def _mapped(path: files.AnyPath, name: str) -> np.ndarray:
  """Maps a tensor into memory."""
  # The file is: length of the header (8 bytes), header (JSON), data.
  with open(scratch.copy(path), 'rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    entry = files.parse_json(file.read(length), path, fix='copy it again')[name]
  start = 8 + length + entry['data_offsets'][0]
  dtype, shape = np.dtype(_SMALL[entry['dtype']]), tuple(entry['shape'])
  return np.memmap(scratch.copy(path), dtype, 'r', start, shape)


def _find(folder: files.AnyPath) -> list[files.AnyPath]:
  """Finds the safetensors files of a folder; InputError if it has none."""
  files.refuse_unfinished(folder)
  if (folder / INDEX).is_file():
    weight_map = files.read_json(folder / INDEX).get('weight_map')
    if not isinstance(weight_map, Mapping) or not weight_map:
      raise errors.refuse(folder / INDEX, 'no weight_map', 'copy it again')
    names = [os.path.basename(str(f)) for f in weight_map.values()]
    for name in names:
      if not re.fullmatch(r'[\w. -]{1,200}', name, re.ASCII):
        raise errors.refuse(
          folder / INDEX,
          f'{errors.show(name)} in weight_map is no file name',
          'copy it again',
        )
    paths = [folder / name for name in names]
    for path in (paths := list(dict.fromkeys(paths))):
      if not path.is_file():
        raise errors.refuse(
          path, f'missing, though {INDEX} names it', 'copy it again'
        )
    return paths
  if (folder / SINGLE).is_file():
    return [folder / SINGLE]
  pickles = sorted(folder.glob('*.bin')) + sorted(folder.glob('*.pt*'))
  if pickles:
    raise errors.refuse(
      pickles[0],
      'pickled weights are not read, a pickle can run code',
      'convert them once where you trust them: python -c "from transformers '
      'import AutoModelForCausalLM as M; '
      "M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')\"",
    )
  raise errors.refuse(
    folder,
    f'no {SINGLE} and no {INDEX}',
    'give the folder of a Hugging Face checkpoint',
  )


def _damaged(path: files.AnyPath, error: Exception) -> InputError:
  try:
    with path.open('rb') as file:
      pointer = files.is_pointer(file.read(32))
  except OSError as own:  # which the library gives another name
    reason = f'cannot be read ({own.strerror or own})'
    return errors.refuse(path, reason, faults.fix(own))
  if pointer:
    return errors.refuse(path, 'a git-lfs pointer', 'run git lfs pull')
  return errors.refuse(
    path, f'not a safetensors file ({error})', 'copy it again'
  )
