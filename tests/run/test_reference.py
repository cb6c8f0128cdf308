"""reference: TR-DPO in the loop; the reference moves, is saved and is read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_train

from dpo_jax import losses, tree
from dpo_jax.storage import checkpoints

# Every step is saved and kept.
MOVING = (
  'loss.tr_dpo=True',
  'loss.tr_tau=2',
  'train.num_steps=4',
  'train.eval_every=2',
  'train.save_every=1',
  'train.keep_checkpoints=9',
)
ITEMS = ('params', 'opt_state', 'loss_state', 'rng', 'data', 'reference')


def read(workdir, step, items=ITEMS):
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    return saved.restore(step, dict.fromkeys(items)).items


@pytest.fixture(scope='module')
def moving(tmp_path_factory):
  """An uninterrupted run of four steps; the default tr_alpha is 0.6."""
  workdir = tmp_path_factory.mktemp('moving') / 'run'
  assert test_train.train(workdir, *MOVING) == 0
  return workdir


def test_the_reference_is_the_mixture_at_every_second_step(moving):
  saved = {step: read(moving, step) for step in (1, 2, 3, 4)}
  refs = {
    k: dict(tree.flatten_with_names(v['reference'])) for k, v in saved.items()
  }
  policies = {
    k: dict(tree.flatten_with_names(v['params'])) for k, v in saved.items()
  }
  for name, initial in refs[1].items():
    second = 0.6 * np.float64(policies[2][name]) + 0.4 * np.float64(initial)
    fourth = 0.6 * np.float64(policies[4][name]) + 0.4 * second
    np.testing.assert_allclose(refs[2][name], second, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(refs[3][name], refs[2][name])
    np.testing.assert_allclose(refs[4][name], fourth, rtol=1e-6, atol=1e-8)
  # The comparison is not of equal numbers: the policy moved.
  assert any(np.abs(refs[4][k] - refs[1][k]).max() > 1e-4 for k in refs[1])


def test_a_killed_run_goes_on_with_the_moved_reference(
  moving, tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  test_train.killed_at(3, monkeypatch, workdir, *MOVING)
  assert checkpoints.Checkpoints(workdir / 'checkpoints').steps() == [1, 2]
  assert test_train.train(workdir, *MOVING) == 0
  for step in (3, 4):
    continued, expected = read(workdir, step), read(moving, step)
    assert tree.fingerprint(continued) == tree.fingerprint(expected)
  for split in ('train', 'eval'):
    assert test_train.lines(workdir, split) == test_train.lines(moving, split)


def test_evaluation_is_against_the_moved_reference(tmp_path, capsys):
  # With tr_alpha 1 the reference is the policy: the loss is ln 2 again.
  workdir = tmp_path / 'run'
  assert test_train.train(workdir, *MOVING, 'loss.tr_alpha=1') == 0
  for step, metrics in test_train.lines(workdir, 'eval').items():
    assert abs(metrics['loss'] - np.log(2)) < 1e-6, step
  train = test_train.lines(workdir, 'train')
  assert abs(train[2]['loss'] - np.log(2)) > 1e-5
  assert abs(train[3]['loss'] - np.log(2)) < 1e-6
  capsys.readouterr()
  options = (*MOVING, 'loss.tr_alpha=1')
  assert test_train.train(workdir, *options, mode='evaluate') == 0
  printed = capsys.readouterr().out.strip().splitlines()[-1]
  assert printed.startswith('step 4: ')
  metrics = json.loads(printed.split(': ', 1)[1])
  assert abs(metrics['loss'] - np.log(2)) < 1e-6


def test_any_pytree_moves_and_none_does_without_the_option():
  reference = {'adapter': [jnp.array([1.0, 2.0])], 'none': {}}
  policy = {'adapter': [jnp.array([3.0, -2.0])], 'none': {}}
  terms = {'sigmoid': 1.0}
  objective = losses.make_objective(tuple(terms), options=('tr_dpo',))
  hyper = losses.default_hyper(terms, ('tr_dpo',), tr_alpha=0.25, tr_tau=3.0)
  move = jax.jit(objective.move_reference)
  for step, expected in ((2, [1.0, 2.0]), (3, [1.5, 1.0]), (4, [1.0, 2.0])):
    moved = move(reference, policy, jnp.int32(step), hyper)
    np.testing.assert_allclose(moved['adapter'][0], expected, rtol=1e-6)
  plain = losses.make_objective(tuple(terms))
  assert plain.move_reference(reference, policy, 3, hyper) is reference
