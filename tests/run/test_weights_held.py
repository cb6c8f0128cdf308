"""weights, optim: what is held in fewer bytes, through the real command."""

import shutil

import jax.numpy as jnp
import pytest
import test_train

from dpo_jax import tree
from dpo_jax.storage import checkpoints

OPTIONS = (
  'optim.moments_dtype=bfloat16',
  'train.num_steps=3',
  'train.save_every=1',
  'train.keep_checkpoints=9',
)


@pytest.fixture(scope='module')
def rounded(tmp_path_factory):
  """An uninterrupted run of three updates."""
  workdir = tmp_path_factory.mktemp('rounded') / 'run'
  assert test_train.train(workdir, *OPTIONS) == 0
  return workdir


def moments(workdir, step):
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    items = saved.restore(step, {'opt_state': None}, partial=True).items
  leaves = tree.flatten_with_names(items['opt_state'])
  return {name: leaf for name, leaf in leaves if jnp.ndim(leaf)}


def test_checkpoints_hold_the_first_moment_in_bfloat16(rounded):
  dtypes = {k: leaf.dtype for k, leaf in moments(rounded, 3).items()}
  first = {k: v for k, v in dtypes.items() if '/mu/' in k}
  assert first and {*first.values()} == {jnp.dtype('bfloat16')}
  second = {k: v for k, v in dtypes.items() if '/nu/' in k}
  assert len(second) == len(first) == len(dtypes) / 2
  assert {*second.values()} == {jnp.dtype('float32')}


def test_a_run_goes_on_bit_for_bit(rounded, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(rounded, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '3')
  (workdir / 'DONE').unlink()
  assert test_train.train(workdir, *OPTIONS) == 0
  assert 'continuing from step 2 of 3' in capsys.readouterr().out
  assert test_train.state(workdir) == test_train.state(rounded)
  for split in ('train', 'eval'):
    assert test_train.lines(workdir, split) == test_train.lines(rounded, split)


def test_another_dtype_does_not_go_on(rounded, capsys):
  assert test_train.train(rounded, *OPTIONS[1:]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert 'optim.moments_dtype is "bfloat16" there and "float32" now' in error
