"""watchdog: a run that stands still says where, and ends; others never."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A process whose main thread sleeps in the place of train._loop.
STUCK = """
import pathlib, sys, time
from dpo_jax.run import preemption, watchdog

def _loop(signals, polls):
  for step in range(polls):
    signals.poll(step)
    time.sleep(.002)
  if sys.argv[1] == 'stuck':
    time.sleep(110)

namespace = {'time': time, 'sys': sys}
with watchdog.Watchdog(float(sys.argv[2]), lambda: [20, 10], 'again') as dog:
  with preemption.Signals() as signals:
    _loop(signals, int(sys.argv[3]))
"""


def child(folder, *words):
  """A finished process that runs STUCK as .../dpo_jax/train.py."""
  path = folder / 'dpo_jax' / 'train.py'
  path.parent.mkdir()
  path.write_text(STUCK)
  return subprocess.run(
    [sys.executable, str(path), *words],
    env={'PYTHONPATH': str(ROOT), 'PYTHONSAFEPATH': '1'},
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_a_silence_ends_the_process_with_one_line(tmp_path):
  done = child(tmp_path, 'stuck', '0.005', '31')
  assert done.returncode == 3
  assert done.stderr.count('\n') == 1 and not done.stdout
  assert done.stderr.startswith(
    'process 0 of 1: no progress for 0.005 minutes in update (train.py:10) '
    'after step 30; last good checkpoint: step 20; fix: '
  )
  assert done.stderr.endswith(' then: again\n')


def test_polls_keep_it_quiet_and_zero_is_no_watchdog(tmp_path):
  # Longer at work than the silence that is allowed.
  done = child(tmp_path, 'works', '0.005', '400')
  assert (done.returncode, done.stderr) == (0, '')
