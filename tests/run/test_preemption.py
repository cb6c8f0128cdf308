"""preemption: the first signal asks, the second one ends the process."""

import os
import signal
import subprocess
import sys

import pytest

from dpo_jax.run import preemption


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


def test_a_second_signal_ends_the_process_at_once():
  code = """
import os, signal
from dpo_jax.run import preemption
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
