"""SIGTERM and Ctrl-C -> a clean stop at the next safe place.

Comes in: signals. Goes out: `Preempted` from `poll()`, which every loop calls.
The first signal asks, the second ends the process at once. `Diverged` is the
other early end of a run. Saves nothing itself.
"""

import os
import signal


class Diverged(Exception):
  """A metric is not finite; the message names step and metric."""


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
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def poll(self) -> None:
    """Raises Preempted if a signal has come."""
    if self._received:
      raise Preempted(self._received)

  def _receive(self, number, frame):
    # Only takes a note: a handler may run in the middle of any line, where the
    # state may be half donated.
    del frame
    if self._received:
      os._exit(128 + number)
    self._received = number
