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
