"""SIGTERM and Ctrl-C -> a clean stop at the next safe place.

Comes in: signals. Goes out: `Preempted`, from `poll()`, which every loop calls,
or from any line within `at_once()`, which is for reading: nothing is half done
there. The first signal asks, the second ends the process; one that comes within
SAME_STOP of the first is the same stop, heard twice. `Diverged` and `Lost` are
the other early ends of a run. Saves nothing itself. Where several processes
train, watch.py hears signals and all polls ask it.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

# What a poll asks in place of this process's own signals; see `listen`.
_asked: list[Callable[[int | None], None]] = []
# What hears of every poll: see watchdog.py.
heard: list[Callable[[int | None], None]] = []
# What other parts of this process ask for.
_stops: list['Preempted'] = []
# Those that listen, the innermost last: that one hears.
_listening: list['Signals'] = []


# Seconds within which two signals are one stop: GNU timeout, Slurm and
# Kubernetes send to the process and to its group, launchers send Ctrl-C on.
SAME_STOP = 0.5
# Waits for the rest of a stop; a test has its own.
wait: Callable[[float], None] = time.sleep

CONTINUE = 'the same command, given again, continues the run'


class Diverged(Exception):
  """A metric is not finite; the message names step and metric."""


class Lost(Exception):
  """Another process of the run is gone or stuck; the message names it."""

  exit_code = 3


# No Exception: it may be raised in any line, and `except Exception` would take
# it for a fault of the file that is being read.
class Preempted(BaseException):
  """A signal asked the run to stop; `exit_code` is 128 + its number."""

  saved = ''  # what the run has saved since, in words

  def __init__(self, number: int):
    """Remembers which signal it was."""
    super().__init__(signal.Signals(number).name)
    self.exit_code = 128 + number

  def line(self) -> str:
    """Returns the line for stderr."""
    return f'stopped by {self}; {CONTINUE}'


class Signals:
  """Context that records SIGTERM and SIGINT instead of ending the process."""

  def __init__(self):
    """Starts without a signal."""
    self._received = 0  # number of the first signal; 0 = none
    self._previous = {}
    self._is_waiting = False  # whether the first stop is still being heard
    self.raises = False  # whether the first signal raises where it comes

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
    for hear in heard:
      hear(step)
    for ask in _asked:
      ask(step)
    if self._received:
      raise Preempted(self._received)
    if _stops:
      raise _stops[0]

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Context within which a signal raises in whatever line it comes."""
    before, self.raises = self.raises, True
    try:
      self.poll()
      yield
    finally:
      self.raises = before

  def _receive(self, number, frame):
    # Elsewhere it only takes a note: a handler may run in the middle of any
    # line, where the state may be half donated.
    del frame
    if self._is_waiting:
      return
    if self._received:
      os._exit(128 + number)
    self._received = number
    # Waited for here, where a handler is called in time. Later the main thread
    # may be with a device for longer than SAME_STOP, and would take the end of
    # the first stop for a second one.
    self._is_waiting = True
    wait(SAME_STOP)
    self._is_waiting = False
    if self.raises:
      raise Preempted(number)


def at_once() -> contextlib.AbstractContextManager:
  """Context within which a signal raises at once, if anything listens.

  For what reads and keeps nothing half done: files, and what is made of them.
  Several processes stop at polls alone.
  """
  if not _listening or _asked:
    return contextlib.nullcontext()
  return _listening[-1].at_once()


def ask(stop: Preempted) -> None:
  """Makes the next poll raise `stop`, as if a signal had come.

  Of several processes, all stop by a signal that this one sends itself.
  """
  if _asked:
    signal.raise_signal(signal.SIGTERM)
    return
  _stops.append(stop)
  if _listening and _listening[-1].raises:
    raise stop


def take_asked() -> Preempted | None:
  """Returns what `ask` was given, once; None if it was not called."""
  asked = _stops[0] if _stops else None
  _stops.clear()
  return asked


def listen(poll: Callable[[int | None], None]) -> None:
  """Makes every poll of this process ask `poll(step)`, until its end."""
  _asked[:] = [poll]
