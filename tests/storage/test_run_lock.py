"""run_lock: a folder that vanishes or is replaced is noticed."""

import shutil

import pytest

from dpo_jax import types
from dpo_jax.storage import run_lock


def test_a_folder_that_is_gone_is_one_line_of_the_disk(tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  lock = run_lock.take(folder)
  lock.confirm()
  folder.rename(tmp_path / 'moved')
  with pytest.raises(types.StorageError, match='run: .* is gone.*put it back'):
    lock.confirm()
  # Put back, the lock is the same one.
  (tmp_path / 'moved').rename(folder)
  lock.confirm()
  shutil.rmtree(folder)
  with pytest.raises(types.StorageError, match='is gone'):
    lock.confirm()
  lock.close()


def test_another_folder_of_that_name_is_not_the_runs(tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  lock = run_lock.take(folder)
  folder.rename(tmp_path / 'moved')
  folder.mkdir()
  other = run_lock.take(folder)  # as a second run would
  other.confirm()
  with pytest.raises(types.StorageError, match='is gone'):
    lock.confirm()
  lock.close()
  other.close()
