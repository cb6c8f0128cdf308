"""weights, optim: what is held in fewer bytes, through the real command."""

import shutil

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_train

from dpo_jax import sharding, tree, types
from dpo_jax.run import job as job_lib
from dpo_jax.run import memory, weights
from dpo_jax.run import reference as reference_lib
from dpo_jax.storage import checkpoints

OPTIONS = (
  'precision.reference=bfloat16',
  'reference.offload=True',
  'data.max_shapes=1',  # one compile
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
  for key in ('optim.moments_dtype', 'precision.reference'):
    others = [option for option in OPTIONS if not option.startswith(key)]
    assert test_train.train(rounded, *others) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert f'{key} is "bfloat16" there and "float32" now' in error


def build(folder, **overrides):
  keys = {k.replace('__', '.'): v for k, v in overrides.items()}
  return commands.build(folder, keys.items())


def scores(job, params):
  batch = job_lib.batch_source(job, job.eval_plan, job.inputs.evaluation)(0)
  rows = jax.tree.map(lambda x: x[0], batch.rows)
  return jax.device_get(job.score(params, rows, batch.labels.shape[0]).logps)


def test_the_reference_is_the_rounded_model(tmp_path):
  plain = build(tmp_path)
  given = weights.frozen(plain, with_reference=True).reference()
  assert {x.dtype for x in jax.tree.leaves(given)} == {jnp.dtype('float32')}
  before = {id(x) for x in jax.live_arrays()}
  keys = {'precision__reference': 'bfloat16', 'reference__offload': True}
  job = build(tmp_path, **keys)
  reference = weights.frozen(job, with_reference=True).reference()
  # Nothing is left of what was read.
  new = [x for x in jax.live_arrays() if id(x) not in before and x.ndim]
  assert {x.dtype for x in new} == {jnp.dtype('bfloat16')}
  held = jax.tree.leaves(reference)
  assert {x.sharding.memory_kind for x in held} == {'pinned_host'}
  rounded = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), given)
  jax.tree.map(np.testing.assert_array_equal, reference, rounded)
  # Its scores are those of float32 arithmetic on the rounded numbers.
  wide = jax.device_put(
    jax.tree.map(lambda x: x.astype(np.float32), rounded),
    plain.weights.shardings,
  )
  own = scores(plain, reference)
  np.testing.assert_array_equal(own, scores(plain, wide))
  assert np.abs(own - scores(plain, given)).max() > 1e-4


def test_the_cache_keeps_both_apart(tmp_path, monkeypatch):
  def score_all(job, params, store, log, poll):
    lengths = store.table.completion_lengths
    return np.zeros(len(lengths), np.float32), store.table.num_trained

  monkeypatch.setattr(reference_lib, '_score_all', score_all)
  job = build(tmp_path)
  for dtype, number in (('float32', 1), ('bfloat16', 2), ('bfloat16', 2)):
    reference = {'w': jnp.ones(3, dtype)}
    store = job.inputs.train.store
    reference_lib.scores_of(job, reference, store, tmp_path / 'scores')
    assert len(list((tmp_path / 'scores').glob('*.npz'))) == number


def test_an_adapters_base_keeps_its_dtype_beside_a_reference(rounded, tmp_path):
  job = build(
    tmp_path,
    adapter__rank=2,
    reference__init_from=str(rounded),
    precision__reference='bfloat16',
  )
  frozen = weights.frozen(job, with_reference=True)
  for held, dtype in ((frozen.base, 'float32'), (frozen.weights, 'bfloat16')):
    assert {x.dtype for x in jax.tree.leaves(held)} == {jnp.dtype(dtype)}
  assert (
    memory.needed(job).reference == memory.on_device(job.weights.abstract) / 2
  )


def test_devices_that_read_no_host_memory_are_named(monkeypatch):
  monkeypatch.setattr(sharding, '_HOST', 'far_host')
  mesh = sharding.make_mesh()
  with pytest.raises(types.InputError) as error:
    sharding.in_host_memory(mesh, sharding.replicated(mesh))
  line = str(error.value)
  assert line.startswith('config.reference.offload: cpu reads no far_host')
  assert 'device, pinned_host' in line and '; fix: leave it out' in line
