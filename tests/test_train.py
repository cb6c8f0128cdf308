"""train: whole runs through the real command, compared with each other."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dpo_jax import main as main_lib
from dpo_jax import tree
from dpo_jax.run import evaluate, preemption, sample
from dpo_jax.storage import checkpoints, writers

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUICKSTART = f'--config={ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
SIX_STEPS = ('train.num_steps=6', 'train.save_every=1', 'train.eval_every=3')


def arguments(workdir, *overrides, mode='train'):
  keys = [f'--config.{override}' for override in overrides]
  return [QUICKSTART, f'--workdir={workdir}', f'--mode={mode}', *keys]


def train(workdir, *overrides, mode='train'):
  return main_lib.main(arguments(workdir, *overrides, mode=mode))


def lines(workdir, split):
  """{step: metrics} of a split, without rates: they depend on the clock."""
  by_step = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    values = json.loads(line)
    if values['split'] == split:
      by_step[values['step']] = {
        k: v for k, v in values.items() if not k.endswith('_per_second')
      }
  return by_step


def state(workdir):
  """(step, fingerprint of every leaf, meta) of the last checkpoint."""
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    items = ('params', 'opt_state', 'loss_state', 'rng', 'data')
    restored = saved.restore_latest(dict.fromkeys(items))
  return restored.step, tree.fingerprint(restored.items), restored.meta


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  """An uninterrupted run of six steps."""
  workdir = tmp_path_factory.mktemp('uninterrupted') / 'run'
  assert train(workdir, *SIX_STEPS) == 0
  return workdir


def test_a_run_directory_has_what_the_contract_says(uninterrupted):
  names = {path.name for path in uninterrupted.iterdir()}
  assert names >= {
    'config.json',
    'env.json',
    'model.json',
    'metrics.jsonl',
    'per_example',
    'checkpoints',
    'DONE',
  }
  assert sorted(lines(uninterrupted, 'train')) == [1, 2, 3, 4, 5, 6]
  assert sorted(lines(uninterrupted, 'eval')) == [0, 3, 6]
  config = json.loads((uninterrupted / 'config.json').read_text())
  assert config['loss']['label_smoothing'] == 0.0  # resolved, not null
  done = json.loads((uninterrupted / 'DONE').read_text())
  ledger = done['ledger']['train']
  assert (
    ledger['trained'] + ledger['not_reached'] + ledger['held_out']
    == (ledger['read'])
  )
  with np.load(uninterrupted / 'per_example' / 'eval_6.npz') as scores:
    assert len(scores['uid']) == 16
    gap = scores['policy_chosen'] - scores['reference_chosen']
    gap -= scores['policy_rejected'] - scores['reference_rejected']
  accuracy = lines(uninterrupted, 'eval')[6]['rewards/accuracies']
  np.testing.assert_allclose(np.mean(gap > 0), accuracy, atol=1e-6)


def test_a_done_run_says_so_and_does_nothing(uninterrupted, capsys):
  before = (uninterrupted / 'metrics.jsonl').read_bytes()
  assert train(uninterrupted, *SIX_STEPS) == 0
  assert 'this run is done: step 6' in capsys.readouterr().out
  assert (uninterrupted / 'metrics.jsonl').read_bytes() == before


def test_another_config_in_the_workdir_is_refused(uninterrupted, capsys):
  assert train(uninterrupted, *SIX_STEPS, 'loss.beta=0.2') == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'loss.beta' in error and '0.2' in error


def starts_at_ln2(workdir):
  for split, step in (('eval', 0), ('train', 1)):
    metrics = lines(workdir, split)[step]
    assert abs(metrics['loss'] - np.log(2)) < 1e-6
    assert abs(metrics['rewards/margins']) < 1e-5
  assert 0 < metrics['packing_efficiency'] <= 1


def test_loss_at_step_0_is_ln2_with_shared_prompts(uninterrupted):
  starts_at_ln2(uninterrupted)


def test_loss_at_step_0_is_ln2_padded_and_accumulated(tmp_path):
  overrides = 'data.layout=padded', 'train.microbatches=4'
  assert train(tmp_path / 'run', 'train.num_steps=1', *overrides) == 0
  starts_at_ln2(tmp_path / 'run')


def test_cached_scores_and_packed_rows_train_alike(uninterrupted, tmp_path):
  overrides = 'reference.mode=cache', 'data.layout=packed'
  assert train(tmp_path / 'run', *SIX_STEPS, *overrides) == 0
  starts_at_ln2(tmp_path / 'run')
  cached, expected = (
    lines(tmp_path / 'run', 'eval')[6],
    lines(uninterrupted, 'eval')[6],
  )
  for name, value in expected.items():
    if isinstance(value, float):
      np.testing.assert_allclose(cached[name], value, rtol=1e-3, atol=1e-4)


def killed_at(step, monkeypatch, workdir, *overrides):
  """Trains in this process; dies as the metrics of `step` would be written."""

  class Killed(BaseException):
    pass

  def write(self, step_, split, metrics):
    if (step_, split) == (step, 'train'):
      raise Killed
    return real(self, step_, split, metrics)

  real = writers.MetricWriter.write
  with monkeypatch.context() as patched, pytest.raises(Killed):
    patched.setattr(writers.MetricWriter, 'write', write)
    train(workdir, *overrides)


def run_child(workdir, **options):
  env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
  command = [sys.executable, '-m', 'dpo_jax.main']
  return subprocess.Popen(
    command + arguments(workdir, *SIX_STEPS),
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    cwd=ROOT,
    text=True,
    **options,
  )


def wait_for_step(workdir, step, child):
  path = workdir / 'metrics.jsonl'
  end = time.monotonic() + 120
  while time.monotonic() < end and child.poll() is None:
    if path.exists() and path.read_text().count('"split": "train"') >= step:
      return
    time.sleep(0.02)


@pytest.mark.slow
def test_sigkill_then_the_same_command_gives_the_same_bits(
  uninterrupted, tmp_path
):
  workdir = tmp_path / 'run'
  for kill_at in random.Random(time.time_ns()).sample([1, 2, 3, 4, 5], 2):
    child = run_child(workdir)
    wait_for_step(workdir, kill_at, child)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
  assert train(workdir, *SIX_STEPS) == 0
  assert lines(workdir, 'train') == lines(uninterrupted, 'train')
  assert lines(workdir, 'eval') == lines(uninterrupted, 'eval')
  assert state(workdir) == state(uninterrupted)


@pytest.mark.slow
def test_sigterm_saves_the_step_and_exits_143(uninterrupted, tmp_path):
  workdir = tmp_path / 'run'
  child = run_child(workdir)
  wait_for_step(workdir, 2, child)
  child.send_signal(signal.SIGTERM)
  out, _ = child.communicate(timeout=120)
  if child.returncode == 0:  # the run ended before the signal came
    pytest.fail(f'the run ended before SIGTERM came:\n{out}')
  assert child.returncode == 143, out
  assert state(workdir)[0] >= 2
  assert train(workdir, *SIX_STEPS) == 0
  assert state(workdir) == state(uninterrupted)


def test_an_evaluation_that_was_stopped_is_made_up_for(
  uninterrupted, tmp_path, monkeypatch
):
  evaluations = []

  def stopped(*args, **kwargs):
    evaluations.append(args)
    if len(evaluations) == 2:
      raise preemption.Preempted(signal.SIGTERM)
    return finished(*args, **kwargs)

  finished = evaluate.evaluate
  monkeypatch.setattr(evaluate, 'evaluate', stopped)
  assert train(tmp_path / 'run', *SIX_STEPS) == 143
  assert sorted(lines(tmp_path / 'run', 'eval')) == [0]
  assert train(tmp_path / 'run', *SIX_STEPS) == 0
  assert lines(tmp_path / 'run', 'eval') == lines(uninterrupted, 'eval')


def test_samples_that_a_signal_stopped_are_made_up_for(tmp_path, monkeypatch):
  calls = []

  def stopped(*args, **kwargs):
    calls.append(args)
    if len(calls) == 2:
      raise preemption.Preempted(signal.SIGTERM)
    return finished(*args, **kwargs)

  def names(workdir):
    return sorted(path.name for path in (workdir / 'samples').iterdir())

  finished = sample.sample
  monkeypatch.setattr(sample, 'sample', stopped)
  overrides = ('train.num_steps=3', 'train.save_every=1', 'train.eval_every=2')
  overrides += ('eval.num_samples=2', 'sample.max_new_tokens=2')
  workdir = tmp_path / 'run'
  # The samples of step 2 are stopped: its metrics are written, they are not.
  assert train(workdir, *overrides) == 143
  assert sorted(lines(workdir, 'eval')) == [0, 2]
  assert [name[:7] for name in names(workdir)] == ['eval_0_']
  assert train(workdir, *overrides) == 0
  assert [name[:7] for name in names(workdir)] == [
    *('eval_0_', 'eval_2_', 'eval_3_')
  ]
  assert train(tmp_path / 'whole', *overrides) == 0
  assert names(workdir) == names(tmp_path / 'whole')
  for path in (workdir / 'samples').iterdir():
    other = tmp_path / 'whole' / 'samples' / path.name
    assert path.read_bytes() == other.read_bytes()


def test_a_step_that_is_not_finite_stops_the_run(tmp_path, capsys):
  workdir = tmp_path / 'run'
  overrides = ('optim.learning_rate=1e30', 'loss.terms.sigmoid=0')
  overrides += ('loss.terms.ipo=1', 'loss.reduction=sum')
  assert train(workdir, *SIX_STEPS, *overrides) == 1
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'step ' in error
  assert ('loss is' in error) or ('norm is' in error)
  assert not (workdir / 'DONE').exists()
  steps = checkpoints.Checkpoints(workdir / 'checkpoints').steps()
  bad = int(error.split('step ')[1].split(':')[0])
  assert all(step < bad for step in steps)


def test_sft_evaluate_and_export_work_on_a_run(tmp_path, capsys):
  workdir, folder = tmp_path / 'sft', tmp_path / 'hf'
  config = QUICKSTART.replace('stage=dpo', 'stage=sft')
  assert main_lib.main([config, f'--workdir={workdir}']) == 0
  metrics = lines(workdir, 'eval')
  assert metrics[2]['loss'] < metrics[0]['loss'] and 'kl' not in metrics[2]
  capsys.readouterr()
  assert main_lib.main([config, f'--workdir={workdir}', '--mode=evaluate']) == 0
  printed = capsys.readouterr().out.strip().splitlines()[-1]
  again = json.loads(printed.split(': ', 1)[1])
  np.testing.assert_allclose(again['loss'], metrics[2]['loss'], rtol=1e-6)
  export = [f'--workdir={workdir}', '--mode=export', f'--export_to={folder}']
  assert main_lib.main([config, *export]) == 0
  # A DPO run from the export and one from the run itself have the same start.
  starts = []
  for i, source in enumerate((workdir, folder)):
    overrides = ('train.num_steps=1', 'model.preset=')
    run = tmp_path / f'dpo{i}'
    init = f'model.init_from={source}'
    assert train(run, *overrides, init, 'tokenizer=byte') == 0
    starts.append(lines(run, 'eval')[0])
  assert starts[0] == starts[1]


def test_waiting_for_the_last_checkpoint_is_not_time_of_updates(
  tmp_path, monkeypatch, capsys
):
  verify = checkpoints.Checkpoints.verify_latest

  def slow(self):
    time.sleep(2)
    return verify(self)

  monkeypatch.setattr(checkpoints.Checkpoints, 'verify_latest', slow)
  assert train(tmp_path / 'run', 'train.num_steps=1') == 0
  line = re.search('^time: .*$', capsys.readouterr().out, re.M)[0]
  assert float(re.search(r'checkpoint ([0-9.]+)', line)[1]) >= 2
