"""scripts/supervise.sh: what it starts again, and when it gives up."""

import os
import pathlib
import signal
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'scripts' / 'supervise.sh'
# Stands for python: the n-th call ends with the n-th code of `codes`, and
# leaves a checkpoint if the code has a + behind it.
STUB = """#!/bin/bash
cd "$(dirname "$0")"
echo "$*" >>calls
line=$(sed -n "$(wc -l <calls)p" codes)
[[ $line == *+ ]] && mkdir -p "run/checkpoints/$(wc -l <calls)"
[[ $line == hang ]] && { trap 'exit 143' TERM; echo up >>up; sleep 60 & wait; }
exit "${line%+}"
"""


@pytest.fixture
def supervise(tmp_path):
  """Starts the script with a python that ends with these codes."""
  path = tmp_path / 'python'
  path.write_text(STUB)
  path.chmod(0o755)

  def start(codes, *words):
    (tmp_path / 'codes').write_text('\n'.join(codes) + '\n')
    workdir = f'--workdir={tmp_path}/run'
    words = words or ('--wait=0', '--tries=3', '--', '--config=x y', workdir)
    return subprocess.Popen(
      [str(SCRIPT), *words],
      env={'PATH': os.environ['PATH'], 'PYTHON': str(path)},
      stderr=subprocess.PIPE,
      text=True,
    )

  return start


def calls(folder):
  path = folder / 'calls'
  return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
  ('codes', 'code', 'count'),
  [
    (['143', '137', '1', '0'], 1, 3),  # no checkpoint: three tries
    (['143+', '137', '1', '3+', '143', '0'], 0, 6),  # each one sets it back
    (['2'], 2, 1),
    (['0'], 0, 1),
    (['143+', '2'], 2, 2),
  ],
)
def test_starts_again_until_it_is_done_or_does_not_move(
  supervise, tmp_path, codes, code, count
):
  started = supervise(codes)
  error = started.communicate(timeout=120)[1]
  assert started.returncode == code, error
  command = f'-m dpo_jax.main --config=x y --workdir={tmp_path}/run'
  assert calls(tmp_path) == [command] * count
  assert error.count('\n') == count - (code in (0, 2)), error
  if code == 1:
    assert '3 tries without progress; fix: ' in error.splitlines()[-1]


def test_a_signal_ends_the_run_and_is_not_undone(supervise, tmp_path):
  started = supervise(['hang', '0'])
  while not (tmp_path / 'up').exists():
    assert started.poll() is None
  started.send_signal(signal.SIGTERM)
  assert started.wait(timeout=120) == 143
  assert len(calls(tmp_path)) == 1


@pytest.mark.parametrize(
  'words', [(), ('--',), ('--tries=0', '--', 'x'), ('--trys=3', '--', 'x')]
)
def test_wrong_words_are_refused(supervise, words):
  started = supervise(['0'], *(words or ('x',)))
  error = started.communicate(timeout=120)[1]
  assert started.returncode == 2 and error.count('fix: ') == 1
