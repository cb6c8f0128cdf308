"""example_file: values per example and arrays of the whole set in one file."""

import numpy as np
import pytest

from dpo_jax.results import run_files
from dpo_jax.storage import example_file
from dpo_jax.types import InputError

VALUES = {'uid': np.array([b'ab', b'cd']), 'loss': np.array([0.5, 0.25])}
WHOLE = {
  'policy.logps': np.arange(5, dtype=np.float32),
  'policy.heads_2P': np.ones((2, 2), np.float32),
  'state.bco.desirable': np.float32(3),
  'columns': np.array(['comparisons', 'scores']),
}


def written(folder, values=VALUES):
  path = folder / 'per_example' / 'eval_2.npz'
  whole = {f'{example_file.WHOLE}{name}': x for name, x in WHOLE.items()}
  example_file.write(path, values | whole)
  return path


def test_either_kind_comes_back_alone(tmp_path):
  path = written(tmp_path)
  back = example_file.read_whole(path)
  assert back.keys() == WHOLE.keys()
  for name, array in WHOLE.items():
    np.testing.assert_array_equal(back[name], array)
    assert back[name].dtype == array.dtype
  # Tables and notebooks see one value per example.
  assert run_files.read_arrays(path.read_bytes(), path).keys() == VALUES.keys()
  examples = run_files.parse_examples(path.read_bytes(), 2, path)
  assert examples.arrays['loss'].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
  'bad', [{'loss': np.zeros(3)}, {'loss': np.array([None, None])}]
)
def test_values_that_do_not_belong_together_are_refused(tmp_path, bad):
  with pytest.raises(ValueError, match='per_example/eval_2: rows'):
    written(tmp_path, VALUES | bad)
  assert not list(tmp_path.rglob('*.npz'))


@pytest.mark.parametrize('cut', [0, 10, -30])
def test_a_damaged_file_is_named(tmp_path, cut):
  path = written(tmp_path)
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(InputError, match='eval_2.npz: not a readable npz'):
    example_file.read_whole(path)
  path.unlink()
  with pytest.raises(InputError, match='eval_2.npz: not a readable npz'):
    example_file.read_whole(path)
