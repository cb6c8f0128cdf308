"""scripts/launch_local.sh: quoting, division of devices, exit codes."""

import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'scripts' / 'launch_local.sh'
# Stands for python: prints what it was given, and fails as process 1.
STUB = """#!/bin/bash
echo "XLA_FLAGS=$XLA_FLAGS CUDA=${CUDA_VISIBLE_DEVICES:-}"
for word in "$@"; do echo "<$word>"; done
case "$*" in *--process_id=1) exit 7 ;; esac
"""


def run(*words, python='python', **variables):
  """What the script says and its exit code."""
  environment = {
    'PATH': os.environ['PATH'],
    'PYTHON': str(python),
    'DPO_JAX_PORT': '1234',
    'JAX_PLATFORMS': 'cpu',
    'DPO_JAX_UNCOMMITTED': '1',
  }
  return subprocess.run(
    [str(SCRIPT), *words],
    env=environment | variables,
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.fixture
def stub(tmp_path):
  """A python that only prints."""
  path = tmp_path / "a python's stub"
  path.write_text(STUB)
  path.chmod(0o755)
  return path


def test_a_dry_run_prints_commands_that_a_shell_reads_back():
  name = "a run's folder"
  done = run('--dry-run', '2', '--', f'--workdir={name}', '--config=x.py')
  assert done.returncode == 0, done.stderr
  commands = [shlex.split(line) for line in done.stdout.splitlines()]
  for rank, words in enumerate(commands):
    assert words == [
      *('python', '-m', 'dpo_jax.main', f'--workdir={name}', '--config=x.py'),
      *('--coordinator_address=localhost:1234', '--num_processes=2'),
      f'--process_id={rank}',
    ]
  assert len(commands) == 2


def test_lines_have_a_rank_and_the_first_failure_is_the_exit_code(stub):
  flags = '--xla_force_host_platform_device_count=8 --other'
  done = run('4', '--', "--workdir=it's", python=stub, XLA_FLAGS=flags)
  assert done.returncode == 7
  lines = done.stdout.splitlines()
  for rank in range(4):
    assert f"[{rank}] <--workdir=it's>" in lines
    # Of two equal flags, XLA takes the last.
    own = f'[{rank}] XLA_FLAGS={flags} '
    own += '--xla_force_host_platform_device_count=2 CUDA='
    assert own in lines


def test_gpus_are_divided(stub):
  gpus = {'CUDA_VISIBLE_DEVICES': '4,5,6,7', 'JAX_PLATFORMS': ''}
  lines = run('2', '--', 'x', python=stub, **gpus).stdout.splitlines()
  assert any(x.startswith('[0]') and x.endswith('CUDA=4,5') for x in lines)
  assert any(x.startswith('[1]') and x.endswith('CUDA=6,7') for x in lines)


@pytest.mark.parametrize(
  ('words', 'problem'),
  [
    (['two', '--', 'x'], "'two' is not a number"),
    (['2', 'x'], '-- is missing'),
    (['3', '--', 'x'], '4 devices cannot be divided among 3'),
  ],
)
def test_a_wrong_call_is_one_line(words, problem):
  flags = '--xla_force_host_platform_device_count=4'
  done = run(*words, XLA_FLAGS=flags)
  assert done.returncode == 2
  assert problem in done.stderr and 'fix: ' in done.stderr
  assert done.stderr.count('\n') == 1 and done.stdout == ''
