"""patience: what ends is returned, what does not is left, signals are heard."""

import signal
import threading

import pytest

from dpo_jax.data.text import patience


def test_it_returns_and_raises_what_the_action_does():
  assert patience.call(lambda: threading.current_thread().daemon, 60)

  def fail():
    raise KeyboardInterrupt('x')  # no Exception, as a panic is none

  with pytest.raises(KeyboardInterrupt, match='x'):
    patience.call(fail, 60)


def test_what_does_not_return_is_left():
  lasts = threading.Event()
  with pytest.raises(TimeoutError, match='not done after 0 s'):
    patience.call(lasts.wait, 0.1)
  lasts.set()


def test_a_signal_is_heard_while_it_is_at_work():
  lasts = threading.Event()

  def hear(number, frame):
    raise InterruptedError(number)

  before = signal.signal(signal.SIGALRM, hear)
  try:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(InterruptedError):
      patience.call(lasts.wait, 600)
  finally:
    signal.signal(signal.SIGALRM, before)
    lasts.set()
