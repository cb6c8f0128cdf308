"""SIGTERM and Ctrl-C -> a clean stop at the next safe place.

Comes in: signals. Goes out: `Preempted`, from `poll()`, which every loop calls,
or from any line within `at_once()`, which is for reading: nothing is half done
there. The first signal asks, the second ends the process. `Diverged` and `Lost`
are the other early ends of a run. Saves nothing itself. Where several processes
train, watch.py hears signals and all polls ask it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

# What a poll asks in place of this process's own signals; see `listen`.
_asked: list[Callable[[int | None], None]] = []
# Those that listen, the innermost last: that one hears.
_listening: list['Signals'] = []


class Diverged(Exception):
  """A metric is not finite; the message names step and metric."""


class Lost(Exception):
  """Another process of the run is gone or stuck; the message names it."""

  exit_code = 3


# No Exception: it may be raised in any line, and `except Exception` would take
# it for a fault of the file that is being read.
class Preempted(BaseException):
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
    self._raises = False  # whether the first signal raises where it comes

  def __enter__(self) -> 'Signals':
    _listening.append(self)
    # Python gives handlers to the main thread only.
    is_main = threading.current_thread() is threading.main_thread()
    listens = is_main and not _asked
    for number in (signal.SIGTERM, signal.SIGINT) if listens else ():
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *_) -> None:
    # Processes that joined meanwhile hear by handlers of their own.
    for number, handler in () if _asked else self._previous.items():
      signal.signal(number, handler)
    _listening.remove(self)

  def poll(self, step: int | None = None) -> None:
    """Raises Preempted if a signal has come.

    Args:
      step: updates done, where several processes train together.
    """
    for ask in _asked:
      ask(step)
    if self._received:
      raise Preempted(self._received)

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Context within which a signal raises in whatever line it comes."""
    before, self._raises = self._raises, True
    try:
      self.poll()
      yield
    finally:
      self._raises = before

  def _receive(self, number, frame):
    # Elsewhere it only takes a note: a handler may run in the middle of any
    # line, where the state may be half donated.
    del frame
    if self._received:
      os._exit(128 + number)
    self._received = number
    if self._raises:
      raise Preempted(number)


def at_once() -> contextlib.AbstractContextManager:
  """Context within which a signal raises at once, if anything listens.

  For what reads and keeps nothing half done: files, and what is made of them.
  Several processes stop at polls alone.
  """
  if not _listening or _asked:
    return contextlib.nullcontext()
  return _listening[-1].at_once()


def listen(poll: Callable[[int | None], None]) -> None:
  """Makes every poll of this process ask `poll(step)`, until its end."""
  _asked[:] = [poll]
