"""gpu_check: what it has survives a stage that fails, hangs or is cut off."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dpo_jax.bench import gpu_check, gpu_stages
from dpo_jax.bench.gpu_stages import Stage
from dpo_jax.run import peaks

_WRITE = (
  'import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])'
)
_STEP = {
  'variants': {
    'packed+shared': {'pairs_per_second': 12.34, 'mfu': 0.456, 'losses': [0.69]}
  },
  'failed': {},
}


def stage(name, code, value=None, seconds=30):
  words = ('-c', code, '{json}')
  if value is not None:
    words += (json.dumps(value),)
  return Stage(name, name, 'step', seconds, words)


FIGURES = stage('figures', _WRITE, _STEP)


def check(tmp_path, stages, **options):
  options = {'seconds': 60, 'tick': 0.05} | options
  state = gpu_check.run(stages, tmp_path, **options)
  kept = json.loads((tmp_path / 'gpu_check.json').read_text())
  assert kept == state
  return state['stages'], (tmp_path / 'gpu_check.md').read_text()


def test_a_stage_that_ends_badly_is_named_and_the_next_one_follows(tmp_path):
  stages, page = check(
    tmp_path,
    [
      stage('broken', 'raise RuntimeError("out of memory | here")'),
      stage('refused', 'import sys; sys.exit(print("no such kernel") or 2)'),
      stage(
        'partial',
        f'{_WRITE}; sys.exit(1)',
        {'variants': {}, 'failed': {'trl:as_shipped': 'killed'}},
      ),
      FIGURES,
    ],
  )
  assert [s['status'] for s in stages.values()] == [
    'failed',
    'not possible',
    'incomplete',
    'done',
  ]
  assert stages['refused']['line'] == 'no such kernel'
  assert stages['partial']['line'] == 'trl:as_shipped: killed'
  assert 'RuntimeError: out of memory \\| here' in page
  assert '| figures | packed+shared | 12.3 |  | 45.6% |' in page


def test_a_stage_over_its_budget_keeps_what_it_wrote(tmp_path):
  # It starts a process of its own, which must not outlive it.
  own = (
    'import subprocess, sys, time; subprocess.Popen([sys.executable, "-c", '
    '"import time, pathlib; time.sleep(3); '
    f'pathlib.Path({str(tmp_path / "late")!r}).touch()"])'
  )
  slow = stage('slow', f'{_WRITE}; {own}; time.sleep(60)', _STEP, seconds=1.5)
  stages, page = check(tmp_path, [slow, FIGURES])
  assert stages['slow']['status'] == 'cut off'
  assert stages['slow']['result'] == _STEP
  assert '| slow | packed+shared | 12.3' in page
  assert stages['figures']['status'] == 'done'
  time.sleep(1.5)
  assert not (tmp_path / 'late').exists()


def test_what_has_no_time_left_is_not_started(tmp_path):
  stages, page = check(tmp_path, [FIGURES], seconds=5)
  assert stages['figures']['status'] == 'not started'
  assert '| figures | not started |  | the time was over |' in page


def test_a_signal_ends_it_with_its_page(tmp_path):
  # The first stage has figures and goes on; SIGTERM comes then.
  slow = stage('slow', f'{_WRITE}; import time; time.sleep(60)', _STEP)
  code = (
    'import sys, signal, pathlib; from dpo_jax.bench import gpu_check, '
    'gpu_stages\n'
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n'
    f'slow = gpu_stages.Stage(*{tuple(slow)!r})\n'
    f'gpu_check.run([slow], pathlib.Path({str(tmp_path)!r}), seconds=60, '
    'tick=0.05)'
  )
  process = subprocess.Popen([sys.executable, '-c', code], cwd=gpu_check.ROOT)
  path = tmp_path / 'gpu_check.json'
  until = time.monotonic() + 120
  # The command, which is saved too, has the figures with escaped quotes.
  figure = '"pairs_per_second": 12.34'
  while not (path.exists() and figure in path.read_text()):
    assert time.monotonic() < until
    time.sleep(0.05)
  os.kill(process.pid, signal.SIGTERM)
  assert process.wait(120) == 143
  page = (tmp_path / 'gpu_check.md').read_text()
  assert '| slow | cut off |' in page and '| slow | packed+shared |' in page


def test_mfu_refers_to_the_data_sheet_of_the_machine(tmp_path):
  machine = Stage('machine', '', 'step', 30, FIGURES.words[:-1])
  machine = machine._replace(words=(*machine.words, '{"sheet_tflops": 989.4}'))
  told = stage(
    'told', f'{_WRITE}; assert "--peak_tflops=989.4" in sys.argv', {}
  )
  stages, _ = check(tmp_path, [machine, told])
  assert stages['told']['status'] == 'done', stages['told']['line']
  assert peaks.flops('NVIDIA H100 80GB HBM3') / 1e12 == 989.4
  assert peaks.flops('NVIDIA H100 PCIe') / 1e12 == 756.0
  assert peaks.flops('cpu') / 1e12 == 0.0


def test_the_dry_listing_of_a_rehearsal(capsys):
  assert gpu_check.main(['--tiny', '--list', '--data=FILE']) == 0
  lines = capsys.readouterr().out.splitlines()
  names = [line.split()[0] for line in lines]
  assert names[:4] == ['machine', '1.3b', '1.3b-trl', '1.3b-unrolled']
  assert {'profile', 'equal', '1.3b-cached', '1.3b-lora', '1.3b-remat'} < set(
    names
  )
  for kernel in ('dense', *gpu_stages.KERNELS):
    assert {f'1.3b-{kernel}', f'0.6b-{kernel}'} < set(names)
  steps = [line for line in lines if 'benchmark.py' in line]
  assert all('--layers=2 ' in line and '--data=FILE' in line for line in steps)


@pytest.mark.parametrize('tiny', [False, True])
def test_what_counts_most_fits_into_six_minutes(tiny):
  stages = gpu_stages.make(tiny=tiny)
  # The step, TRL, the profile and equality, if each takes all of its budget.
  assert stages[5].name == 'equal'
  assert sum(stage.seconds for stage in stages[:6]) <= 360
  assert len({stage.name for stage in stages}) == len(stages)


def test_the_check_and_its_stages_import_little():
  # A machine that can fetch nothing has none of these, and needs none.
  code = (
    'import sys; from dpo_jax.bench import gpu_check; '
    'assert "jax" not in sys.modules; import dpo_jax.bench.step\n'
    'from dpo_jax.bench import gpu_machine, gpu_profile\n'
    'absent = {"tensorflow_datasets", "qwix", "matplotlib", "tensorboardX", '
    '"tensorflow", "torch", "transformers", "trl", "datasets", "pytest"}\n'
    'assert not absent & set(sys.modules), absent & set(sys.modules)'
  )
  root = pathlib.Path(gpu_check.ROOT)
  subprocess.run([sys.executable, '-c', code], cwd=root, check=True)
