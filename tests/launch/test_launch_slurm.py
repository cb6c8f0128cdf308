"""scripts/launch_slurm.sbatch on a real Slurm: an array that is a sweep."""

import os
import pathlib
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


def _wait(holds, seconds, folder):
  end = time.monotonic() + seconds
  while not holds():
    logs = {p.name: p.read_text()[-2000:] for p in folder.glob('*.log')}
    assert time.monotonic() < end, logs
    time.sleep(0.5)


def test_the_script_is_executable():
  assert os.access(SCRIPT, os.X_OK)
