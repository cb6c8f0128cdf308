"""SIGTERM and Ctrl-C -> a clean stop at the next safe place.

Comes in: signals. Goes out: `Preempted` from `poll()`, which every loop calls.
The first signal asks, the second ends the process at once. `Diverged` and
`Lost` are the other early ends of a run. Saves nothing itself. Where several
processes train, watch.py hears signals and all polls ask it.
"""

import os
import signal
from collections.abc import Callable

# What a poll asks in place of this process's own signals; see `listen`.
_asked: list[Callable[[int | None], None]] = []
# What hears of every poll: see watchdog.py.
heard: list[Callable[[int | None], None]] = []


class Diverged(Exception):
  """A metric is not finite; the message names step and metric."""


class Lost(Exception):
  """Another process of the run is gone or stuck; the message names it."""

  exit_code = 3


class Preempted(Exception):
  """A signal asked the run to stop; `exit_code` is 128 + its number."""

  def __init__(self, number: int):
    """Remembers which signal it was."""
    super().__init__(signal.Signals(number).name)
    self.exit_code = 128 + number


class Signals:
  """Context that records SIGTERM and SIGINT instead of ending the process."""

  def __init__(self):
    """Starts without a signal."""
    self._received = 0  # number of the first signal; 0 = none
    self._previous = {}

  def __enter__(self) -> 'Signals':
    for number in () if _asked else (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def poll(self, step: int | None = None) -> None:
    """Raises Preempted if a signal has come.

    Args:
      step: updates done, where several processes train together.
    """
    for hear in heard:
      hear(step)
    for ask in _asked:
      ask(step)
    if self._received:
      raise Preempted(self._received)

  def _receive(self, number, frame):
    # Only takes a note: a handler may run in the middle of any line, where the
    # state may be half donated.
    del frame
    if self._received:
      os._exit(128 + number)
    self._received = number


def listen(poll: Callable[[int | None], None]) -> None:
  """Makes every poll of this process ask `poll(step)`, until its end."""
  _asked[:] = [poll]
