"""finite: no number that is not finite is saved, done, or exit 0."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models
from commands import CONFIG

from dpo_jax import main as main_lib
from dpo_jax import train
from dpo_jax.run import finite, held_out
from dpo_jax.run.preemption import Diverged
from dpo_jax.storage import checkpoints


def main(workdir, *flags):
  flags = '--config.train.save_every=1', '--config.train.num_steps=3', *flags
  return main_lib.main([CONFIG, f'--workdir={workdir}', *flags])


def steps(workdir):
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    return saved.steps()


def one_line(capsys):
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'fix: ' in error, error
  return error


def spoilt(tree, value):
  """The first float array of the tree, with one element set."""
  leaves, structure = jax.tree.flatten(tree)
  at = next(
    i
    for i, leaf in enumerate(leaves)
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.ndim
  )
  with jax.transfer_guard('allow'):
    flat = leaves[at].reshape(-1).at[0].set(value)
    leaves[at] = jax.device_put(
      flat.reshape(leaves[at].shape), leaves[at].sharding
    )
  return structure.unflatten(leaves)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('item', ['params', 'opt_state'])
@pytest.mark.parametrize('at', [1, 3])
def test_a_state_that_is_not_finite_is_never_saved(
  tmp_path, monkeypatch, capsys, value, item, at
):
  save = train.save

  def spoil(run, state, reference, step):
    if step == at:
      state = state._replace(**{item: spoilt(getattr(state, item), value)})
    save(run, state, reference, step)

  monkeypatch.setattr(train, 'save', spoil)
  assert main(tmp_path) == 1
  error = one_line(capsys)
  assert error.startswith(f'step {at}: {item}/') and 'not finite' in error
  assert at not in steps(tmp_path) and not (tmp_path / 'DONE').exists()
  monkeypatch.undo()
  assert main(tmp_path) == 0  # from the last sound step


def test_a_running_number_of_a_loss_is_tested_too(
  tmp_path, monkeypatch, capsys
):
  save = train.save

  def spoil(run, state, reference, step):
    state = state._replace(
      loss_state={'m': jax.device_put(np.float32('nan'), state.step.sharding)}
    )
    save(run, state, reference, step)

  monkeypatch.setattr(train, 'save', spoil)
  assert main(tmp_path) == 1
  assert 'loss_state/m is not finite' in one_line(capsys)
  assert steps(tmp_path) == []


@pytest.mark.parametrize('metric', ['loss', 'rewards/margins', 'entropy'])
def test_a_held_out_metric_that_is_not_finite_ends_the_run(
  tmp_path, monkeypatch, capsys, metric
):
  measure = held_out.measure

  def spoil(*arguments):
    metrics, examples = measure(*arguments)
    return metrics | {metric: float('nan')}, examples

  assert main(tmp_path / 'sound') == 0
  capsys.readouterr()
  monkeypatch.setattr(held_out, 'measure', spoil)
  assert main(tmp_path / 'run') == 1
  error = one_line(capsys)
  assert error.startswith(f'step 0, held out: {metric} is nan')
  assert 'no learning rate is at fault' in error
  assert not (tmp_path / 'run' / 'DONE').exists()
  assert steps(tmp_path / 'run') == []
  flags = '--mode=evaluate', f'--workdir={tmp_path}/sound'
  assert main_lib.main([*flags]) == 1
  captured = capsys.readouterr()
  assert f', held out: {metric} is nan; nothing' in captured.err
  assert 'NaN' not in captured.out


def test_a_rate_that_breaks_the_only_update_is_no_run_that_is_done(
  tmp_path, capsys
):
  flags = (
    '--config.optim.learning_rate=1e15',
    '--config.optim.schedule=constant',
  )
  code = main(tmp_path, *flags, '--config.train.num_steps=1')
  error = one_line(capsys)
  assert code == 1 and 'step 1' in error and 'optim.learning_rate' in error
  assert steps(tmp_path) == [] and not (tmp_path / 'DONE').exists()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert all(json.loads(line) for line in lines) and 'NaN' not in str(lines)


def test_a_finite_state_that_leads_to_none_is_not_the_newest(tmp_path, capsys):
  # The first update leaves finite weights whose scores are NaN.
  flags = (
    '--config.optim.learning_rate=1e15',
    '--config.optim.schedule=constant',
  )
  for _ in range(2):
    assert main(tmp_path, *flags) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith('step 2: ')
    assert 'checkpoints/1: moved to set_aside/1' in captured.out
    assert steps(tmp_path) == [] and not (tmp_path / 'DONE').exists()


@pytest.mark.parametrize('value', [1e30, 3e38])
def test_moments_that_are_finite_and_too_large_are_not_the_newest(
  tmp_path, monkeypatch, capsys, value
):
  save, keep = train.save, '--config.train.keep_checkpoints=9'

  def spoil(run, state, reference, step):
    if step == 2:
      # Its square is no float32, the moment itself is.
      state = state._replace(opt_state=spoilt(state.opt_state, value))
    save(run, state, reference, step)

  monkeypatch.setattr(train, 'save', spoil)
  # The loop goes on with its own state: the restart takes the spoilt one.
  assert main(tmp_path, keep) == 0
  (tmp_path / 'DONE').unlink()
  shutil.rmtree(tmp_path / 'checkpoints' / '3')
  monkeypatch.undo()
  capsys.readouterr()
  assert main(tmp_path, keep) == 1
  captured = capsys.readouterr()
  assert captured.err.startswith('step 3: ') and 'not saved' not in captured.err
  assert 'checkpoints/2: moved to set_aside/2' in captured.out
  assert steps(tmp_path) == [1] and not (tmp_path / 'DONE').exists()
  # From the sound step before, the run comes to its end.
  assert main(tmp_path, keep) == 0


def test_margins_whose_sum_overflows_are_no_run(tmp_path, capsys):
  path = tmp_path / 'pairs.jsonl'
  row = '{"prompt": "p%d", "chosen": "y%d", "rejected": "n", "margin": 9e37}\n'
  path.write_text(''.join(row % (i, i) for i in range(24)))
  flags = (
    f'--config.data.train={path}',
    '--config.data.eval_pairs=4',
    '--config.loss.terms.sigmoid=0',
    '--config.loss.terms.margin=1',
  )
  assert main(tmp_path / 'run', *flags) == 1
  # Held out it is finite, in float64; the first update's is float32.
  assert one_line(capsys).startswith('step 1: loss is inf')
  assert steps(tmp_path / 'run') == []
  assert not (tmp_path / 'run' / 'DONE').exists()


def test_the_first_bad_leaf_is_named():
  good = {'a': jnp.ones(3), 'n': jnp.arange(3), 'empty': jnp.zeros((0, 2))}
  assert finite.bad_leaf(good) == '' and finite.bad_leaf({}) == ''
  bad = good | {'b': [jnp.ones(2), jnp.float32([1, -jnp.inf])]}
  assert finite.bad_leaf(bad) == 'b/1'
  with pytest.raises(Diverged, match='x: b/1 is not finite; .*; fix: y'):
    finite.check_state('x', bad, 'y')
  finite.check_metrics('x', {'loss': 1.0}, 'y')
  with pytest.raises(Diverged, match='x: kl is inf; .*; fix: y'):
    finite.check_metrics('x', {'loss': 1.0, 'kl': float('inf')}, 'y')


@pytest.mark.parametrize('mode', ['evaluate', 'sample', 'train'])
def test_given_weights_that_are_not_finite_leave_nothing(
  tmp_path, capsys, mode
):
  flags = small_models.write(
    tmp_path / 'model', spoil=('final_norm/scale', float('nan'))
  )
  workdir = tmp_path / 'deep' / 'run'
  assert main(workdir, f'--mode={mode}', *flags) == 2
  assert 'model.norm.weight holds numbers that are not finite' in one_line(
    capsys
  )
  # No token cache, no folder, in the workdir or on the way to it.
  assert not (tmp_path / 'deep').exists()
