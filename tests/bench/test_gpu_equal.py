"""gpu_equal: a head that is wrong is named, one that is right is not."""

import json

import numpy as np
import pytest

from dpo_jax.bench import gpu_equal
from dpo_jax.models.kernels import proof


@pytest.fixture
def kept():
  """One form, with the values that were computed for it."""
  gpu_equal._scores.cache_clear()
  yield
  gpu_equal._scores.cache_clear()


def test_kept_logits_are_right_and_a_wrong_gradient_is_not(kept, monkeypatch):
  row = gpu_equal._head('logits kept', 0, 'bfloat16', True)
  assert row['right'] and 0 < row['gradient'] <= 2 * row['dense_gradient']
  scores = gpu_equal._scores

  def wrong(dtype, chunk, tiny):
    logps, leaves = scores(dtype, chunk, tiny)
    return logps, leaves if chunk is None else [1.05 * x for x in leaves]

  monkeypatch.setattr(gpu_equal, '_scores', wrong)
  assert not gpu_equal._head('logits kept', 0, 'bfloat16', True)['right']


def test_the_file_is_written_after_each_row_and_names_what_is_wrong(
  tmp_path, monkeypatch
):
  path = tmp_path / 'equal.json'
  row = {'form': 'head', 'case': 'x', 'dtype': 'float32'}

  def rows(tiny):
    yield row | {'right': True}
    assert len(json.loads(path.read_text())['rows']) == 1
    yield row | {'line': 'not possible: no GPU'}
    yield row | {'right': False}

  monkeypatch.setattr(gpu_equal, 'rows', rows)
  assert gpu_equal.main([f'--json={path}', '--tiny']) == 1
  assert json.loads(path.read_text())['failed'] == {'head, x, float32': 'wrong'}
  assert np.isnan(proof.error([np.nan, 1.0], [1.0, 1.0]))
