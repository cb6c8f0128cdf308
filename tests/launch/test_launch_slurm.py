"""scripts/launch_slurm.sbatch on a real Slurm of two nodes.

An array that is a sweep, and a job over both nodes that is stopped.
"""

import json
import os
import pathlib
import re
import sys
import time

import experiment
import pytest
import slurm

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'scripts' / 'launch_slurm.sbatch'


@pytest.mark.slow
def test_an_array_finishes_a_sweep_with_a_requeue_in_between(tmp_path):
  reason = slurm.missing()
  if reason:
    pytest.skip(reason)
  # Names with a space and a quote reach the command as they are.
  folder = tmp_path / "a sweep's folder"
  path = experiment.write(tmp_path)
  arguments = ['--mode=sweep', f'--config={path}', f'--workdir={folder}']
  arguments += ['--sweep.loss.beta=0.1,0.2,0.3,0.4', '--sweep.seed=0:2']
  arguments += ['--config.train.num_steps=60', '--config.train.save_every=1']
  (tmp_path / 'slurm').mkdir()
  with slurm.cluster(tmp_path / 'slurm') as environment:
    environment |= {'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu'}
    environment |= {'PYTHONPATH': str(ROOT), 'DPO_JAX_UNCOMMITTED': '1'}
    log = f'--output={tmp_path}/%a.log'
    sent = slurm.run(
      environment, 'sbatch', '--array=3-6', log, str(SCRIPT), *arguments
    )
    job = sent.split()[-1]
    _wait(lambda: any(folder.glob('*/metrics.jsonl')), 300, tmp_path)
    first = next(folder.glob('*/metrics.jsonl')).parent.name
    element = 3 + int((float(first.split('=')[1].split(',')[0]) - 0.05) * 10)
    slurm.run(environment, 'scontrol', 'requeue', f'{job}_{element}')
    listed = ('squeue', '--noheader', '-o', '%i %T')
    _wait(lambda: not slurm.run(environment, *listed).strip(), 600, tmp_path)
  logs = ''.join(p.read_text() for p in sorted(tmp_path.glob('*.log')))
  assert len(list(folder.glob('*/DONE'))) == 8, logs
  assert 'stopped by SIGTERM' in logs
  assert 'back into the queue' in logs
  assert logs.count('points: ') >= 4


@pytest.mark.slow
def test_a_job_over_two_nodes_is_stopped_and_finishes(tmp_path):
  reason = slurm.missing()
  if reason:
    pytest.skip(reason)
  folder, log = tmp_path / "a run's folder", tmp_path / 'job.log'
  arguments = [f'--config={experiment.write(tmp_path)}', f'--workdir={folder}']
  # Only the signal saves before the end.
  arguments += ['--config.train.num_steps=100', '--config.train.save_every=0']
  arguments += ['--config.train.eval_every=0']
  (tmp_path / 'slurm').mkdir()
  with slurm.cluster(tmp_path / 'slurm') as environment:
    environment |= {'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu'}
    environment |= {'PYTHONPATH': str(ROOT), 'DPO_JAX_UNCOMMITTED': '1'}
    environment['XLA_FLAGS'] = ''  # a device per task
    nodes = ('--nodes=2', '--ntasks-per-node=1', f'--output={log}')
    job = slurm.run(environment, 'sbatch', *nodes, str(SCRIPT), *arguments)
    number = job.split()[-1]
    metrics = folder / 'metrics.jsonl'
    _wait(lambda: '"step": 3,' in _text(metrics), 300, tmp_path)
    # To the tasks, not to the script.
    slurm.run(environment, 'scancel', '--signal=TERM', number)
    listed = ('squeue', '--noheader', '-o', '%i %T')
    _wait(lambda: not slurm.run(environment, *listed).strip(), 600, tmp_path)
  said = log.read_text()
  assert said.count('stopped by SIGTERM') == 1, said
  assert said.count('back into the queue') == 1, said
  (again,) = re.findall(r'continuing from step (\d+) of 100', said)
  assert 3 <= int(again) < 100
  lines = [json.loads(line) for line in _text(metrics).splitlines()]
  steps = [line['step'] for line in lines if line['split'] == 'train']
  assert steps == [*range(1, 101)], said
  assert (folder / 'DONE').exists()
  # Both tasks were one run: each has a device.
  assert json.loads(_text(folder / 'env.json'))['num_devices'] == 2, said


def _text(path):
  return path.read_text() if path.exists() else ''


def _wait(holds, seconds, folder):
  end = time.monotonic() + seconds
  while not holds():
    logs = {p.name: p.read_text()[-2000:] for p in folder.glob('*.log')}
    assert time.monotonic() < end, logs
    time.sleep(0.5)


def test_the_script_is_executable():
  assert os.access(SCRIPT, os.X_OK)
