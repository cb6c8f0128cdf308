"""watchdog: a run that stands still says where, and ends; others never."""

import pathlib
import subprocess
import sys

import pytest

from dpo_jax.run import watch, watchdog

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A process whose main thread sleeps in the place of train._loop.
STUCK = """
import pathlib, sys, time
from dpo_jax.run import preemption, watchdog

def _loop(signals):
  for step in range(31):
    signals.poll(step)
  time.sleep(110)

with watchdog.Watchdog(0.05, lambda: [20, 10], 'again') as dog:
  with preemption.Signals() as signals:
    _loop(signals)
"""


def test_a_silence_ends_the_process_with_one_line(tmp_path):
  path = tmp_path / 'dpo_jax' / 'train.py'
  path.parent.mkdir()
  path.write_text(STUCK)
  done = subprocess.run(
    [sys.executable, str(path)],
    env={'PYTHONPATH': str(ROOT), 'PYTHONSAFEPATH': '1'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 3
  assert done.stderr.count('\n') == 1 and not done.stdout
  assert done.stderr.startswith(
    'process 0 of 1: no progress for 0.05 minutes in update (train.py:8) '
    'after step 30; last good checkpoint: step 20; fix: '
  )
  assert done.stderr.endswith(' then: again\n')


class Looks:
  """Stands for the event that ends the thread: after so many looks."""

  def __init__(self, dog, count, polls):
    self.left, self.dog, self.polls = count, dog, polls

  def wait(self, seconds):
    del seconds
    self.left -= 1
    if self.polls(self.left):
      self.dog.heard(self.left)
    return self.left < 0


@pytest.mark.parametrize(
  ('polls', 'barks'),
  [
    (lambda left: False, True),
    (lambda left: left % 60 == 0, False),  # one poll in 60 looks
    (lambda left: left > 100, True),  # then none
  ],
)
def test_it_counts_the_looks_without_a_poll(monkeypatch, polls, barks):
  said = []

  def end(line):
    said.append(line)
    raise SystemExit

  monkeypatch.setattr(watchdog, '_end', end)
  dog = watchdog.Watchdog(1, lambda: [], 'again')
  dog._ended = Looks(dog, 300, polls)
  if barks:
    with pytest.raises(SystemExit):
      dog._watch()
  else:
    dog._watch()
  assert len(said) == barks
  assert all('checkpoint: none, it starts over; fix' in line for line in said)


@pytest.mark.parametrize(
  ('beats', 'says'),
  [
    (['1 4 3 0', '1 4 3 1'], 'process 1 of 2 (b, 7): no progress for 1 minutes '
     'in a compile or its own work, process 0 waits in the beginning after '),
    (['1 4 3 1', '1 4 3 0'], 'process 0 of 2: no progress for 1 minutes in the '
     'beginning after step 0; last good checkpoint: step 5; fix: '),
    (['1 4 3 0', '1 4 3 0'], 'process 0 of 2: no progress for 1 minutes in the '
     'beginning after step 0; last good checkpoint: step 5; fix: '),
  ],
)  # fmt: skip
def test_of_several_it_names_the_one_that_is_waited_for(
  monkeypatch, beats, says
):
  sent = {
    'who': {'1': 'b, 7'},
    'beat': {str(i): b for i, b in enumerate(beats)},
  }
  store = watch.Store(None, None, None, sent.get)
  monkeypatch.setattr(watchdog, '_joined', [watch.Watch(store, 0, 2, 60.0)])
  monkeypatch.setattr(watchdog, '_phase', lambda thread: 'the beginning')
  line = watchdog.Watchdog(1, lambda: [5], 'again').line()
  assert line.startswith(says)
  assert line.count('after step') == 1 and '; fix: ' in line
