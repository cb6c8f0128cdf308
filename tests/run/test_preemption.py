"""preemption: the first signal asks, the second one ends the process."""

import os
import signal
import subprocess
import sys

import pytest

from dpo_jax.run import preemption


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch):
  monkeypatch.setattr(preemption, 'wait', lambda seconds: None)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_raised_at_the_next_poll(number):
  before = signal.getsignal(number)
  with preemption.Signals() as signals:
    signals.poll()  # nothing has come
    os.kill(os.getpid(), number)
    with pytest.raises(preemption.Preempted) as stop:
      signals.poll()
  assert stop.value.exit_code == 128 + number
  assert str(stop.value) == signal.Signals(number).name
  assert signal.getsignal(number) == before


@pytest.mark.parametrize('second', ['SIGTERM', 'SIGINT'])
def test_a_stop_that_is_heard_twice_is_one_stop(second):
  # As of GNU timeout: to the process, and at once to its group. Two more come
  # while the first is waited out; whoever took one for a second stop ends.
  code = f"""
import os, signal
from dpo_jax.run import preemption
waited = []
def wait(seconds):
  waited.append(seconds)
  for _ in range(2):
    os.kill(os.getpid(), signal.{second})
preemption.wait = wait
with preemption.Signals() as signals:
  os.kill(os.getpid(), signal.SIGTERM)
  try:
    signals.poll()
  except preemption.Preempted as stop:
    print('saves', stop.exit_code, waited == [preemption.SAME_STOP])
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert done.stdout == b'saves 143 True\n'


def test_a_second_signal_ends_the_process_at_once():
  code = """
import os, signal
from dpo_jax.run import preemption
preemption.wait = lambda seconds: None
with preemption.Signals():
  for _ in range(2):
    os.kill(os.getpid(), signal.SIGTERM)
  print('still here')
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert done.returncode == 143 and done.stdout == b''


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_where_files_are_read_a_signal_raises_without_a_poll(number):
  with preemption.Signals() as signals:
    with pytest.raises(preemption.Preempted) as stop, preemption.at_once():
      # Within the `try`: a template or a parser that may raise anything.
      try:
        os.kill(os.getpid(), number)
        for _ in range(10**6):  # as a loop over ten gigabytes of blanks
          int('1')
      except Exception:  # takes nothing that is meant for main
        raise AssertionError from None
    assert stop.value.exit_code == 128 + number
    with pytest.raises(preemption.Preempted):  # what swallowed it polls
      signals.poll()


def test_a_signal_that_came_before_is_raised_where_files_are_read():
  with preemption.Signals():
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(preemption.Preempted), preemption.at_once():
      raise AssertionError


def test_without_a_listener_at_once_does_nothing():
  with preemption.at_once():
    pass
