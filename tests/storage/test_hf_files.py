"""hf_files.py: tensors by name over several files, ranges of every dtype."""

import contextlib
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dpo_jax.storage import hf_files
from dpo_jax.types import InputError

DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'F8_E5M2': ml_dtypes.float8_e5m2,
}
ARRAY = np.random.default_rng(0).normal(size=(5, 4))


def test_every_kind_of_float_is_known():
  assert set(DTYPES) == set(hf_files.FLOATS)


@pytest.mark.parametrize('kind', DTYPES)
def test_ranges_are_read_in_the_files_dtype(tmp_path, kind):
  array = ARRAY.astype(DTYPES[kind])
  tensors = {'first': np.zeros(3, np.float32), 'x': array}
  safetensors.numpy.save_file(tensors, tmp_path / hf_files.SINGLE)
  with contextlib.ExitStack() as stack:
    stored = hf_files.Files(tmp_path, stack)
    assert stored.names == {'first', 'x'} and stored.folder == tmp_path
    assert stored.describe('x') == ((5, 4), kind)
    for where in ((slice(0, 5),), (slice(1, 3), slice(2, 4))):
      piece = stored.read('x', where)
      assert piece.dtype == array.dtype
      assert piece.tobytes() == array[where].tobytes()


def test_the_index_says_which_file_has_a_tensor(tmp_path):
  names = {'a': 'one.safetensors', 'b': 'two.safetensors'}
  for value, (name, file) in enumerate(names.items()):
    array = np.full(2, value, np.float32)
    safetensors.numpy.save_file({name: array}, tmp_path / file)
  (tmp_path / hf_files.INDEX).write_text(json.dumps({'weight_map': names}))
  with contextlib.ExitStack() as stack:
    stored = hf_files.Files(tmp_path, stack)
    assert stored.path('b') == tmp_path / 'two.safetensors'
    assert stored.read('b', (slice(0, 2),)).tolist() == [1, 1]


def test_an_index_reaches_no_file_outside_its_folder(tmp_path):
  safetensors.numpy.save_file({'a': ARRAY}, tmp_path / 'x.safetensors')
  folder = tmp_path / 'model'
  folder.mkdir()
  index = {'weight_map': {'a': '../x.safetensors'}}
  (folder / hf_files.INDEX).write_text(json.dumps(index))
  with contextlib.ExitStack() as stack:
    with pytest.raises(InputError, match='model/x.safetensors: missing'):
      hf_files.Files(folder, stack)
