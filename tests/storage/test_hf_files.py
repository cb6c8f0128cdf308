"""hf_files.py: tensors by name over several files, ranges of every dtype."""

import contextlib
import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from dpo_jax.storage import hf_files, peft_checkpoint
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


def _claims(entry, data=b'\0' * 16, size=None):
  """A safetensors file whose header says so of its one tensor."""
  header = json.dumps({'a': entry}).encode()
  return (
    struct.pack('<Q', len(header) if size is None else size) + header + data
  )


def _tensor(shape, start, end, dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


CLAIMS = {
  'offsets beyond the file': _claims(_tensor([2**40], 0, 2**42)),
  'a shape beyond its bytes': _claims(_tensor([2**40], 0, 16)),
  'a float8 beyond its bytes': _claims(_tensor([2**40], 0, 16, 'F8_E4M3')),
  'a shape that overflows': _claims(_tensor([2**32, 2**32, 4], 0, 16)),
  'a shape below 0': _claims(_tensor([-4], 0, 16)),
  'bytes from the end': _claims(_tensor([4], 16, 0)),
  'bytes behind a hole': _claims(_tensor([2], 8, 16)),
  'fewer bytes than there are': _claims(_tensor([2], 0, 8)),
  'a header beyond the file': _claims(_tensor([4], 0, 16), size=2**30),
  'a header of 2**63 bytes': _claims(_tensor([4], 0, 16), size=2**63),
  'a header that ends early': _claims(_tensor([4], 0, 16), size=9),
}


@pytest.mark.parametrize('case', CLAIMS)
def test_a_claim_beyond_the_file_is_refused_when_it_is_opened(tmp_path, case):
  for name in (hf_files.SINGLE, peft_checkpoint.TENSORS):
    (tmp_path / name).write_bytes(CLAIMS[case])
  with contextlib.ExitStack() as stack:
    with pytest.raises(InputError, match='not a safetensors file'):
      hf_files.Files(tmp_path, stack)
  with pytest.raises(InputError, match='not a safetensors file'):
    peft_checkpoint._read_tensors(tmp_path)


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
  path = tmp_path / hf_files.SINGLE
  path.write_bytes(CLAIMS['a shape below 0'])

  def denied(*_):
    path.unlink()  # so that it cannot be opened a second time either
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(hf_files.safetensors, 'safe_open', denied)
  with contextlib.ExitStack() as stack:
    with pytest.raises(
      InputError, match='cannot be read .No such file.*; fix: it is'
    ):
      hf_files.Files(tmp_path, stack)


def test_a_sound_claim_is_read(tmp_path):
  (tmp_path / hf_files.SINGLE).write_bytes(_claims(_tensor([4], 0, 16)))
  with contextlib.ExitStack() as stack:
    stored = hf_files.Files(tmp_path, stack)
    assert stored.read('a', (slice(0, 4),)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize('name', ['/etc/passwd', '', '.', '..', 'a' * 999, 7])
def test_an_index_that_names_no_file_of_its_folder(tmp_path, name):
  index = {'weight_map': {'a': name}}
  (tmp_path / hf_files.INDEX).write_text(json.dumps(index))
  with contextlib.ExitStack() as stack:
    with pytest.raises(InputError, match='missing|is no file name'):
      hf_files.Files(tmp_path, stack)
