"""Signals, errors and silence of one process -> one end of all processes.

Comes in: a key-value store that all processes of a run reach, signals of the
operating system, calls of `poll`. Goes out: the same exception at the same poll
in every process, or the end of a process whose main thread can raise nothing
any more. Computes nothing on a device.

A stop is agreed by counts of polls, which are equal in all processes: each says
how many it has made, and all stop at the next poll after the largest count. So
nobody waits for a step that another process does not take. Threads watch,
because a main thread that waits for a device answers no signal.
"""

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.run.preemption import SAME_STOP, Diverged, Lost, Preempted
from dpo_jax.storage import files

_EVERY = 0.2  # seconds between two looks at the store
_GRACE = 2.0  # seconds in which a main thread may end by itself
# Files of jax whose functions a main thread is in while it makes a program.
_COMPILERS = tuple(
  os.path.join('jax', '_src', *name.split('/'))
  for name in (
    *('compiler.py', 'interpreters/partial_eval.py'),
    'interpreters/mlir.py',
  )
)
_LAST = 4.0  # seconds that the first process waits for the others to be gone


class Fault(NamedTuple):
  """Why all processes end, as one process said it."""

  rank: int  # who said it
  code: int  # the exit code of all
  line: str  # to be printed once
  at_once: bool = False  # whether no main thread is waited for

  def error(self) -> Exception:
    """Returns the exception that ends a command with this code."""
    if self.code == 2:
      return errors.again(self.line)
    if self.code > 128:
      return Preempted(self.code - 128)
    return Diverged(self.line) if self.code == 1 else Lost(self.line)


def to_text(fault: Fault) -> str:
  """Returns a fault as it is sent."""
  return json.dumps(fault._asdict())


def from_text(text: str) -> Fault:
  """Returns the fault that was sent."""
  return Fault(**files.parse_object(text))


class Beat(NamedTuple):
  """What a process tells of itself about once a second."""

  number: int  # grows, also in a process whose main thread stands still
  polls: int
  step: int
  is_excused: bool  # whether others may be ahead: it compiles, or is by itself

  @classmethod
  def parse(cls, text: str) -> 'Beat':
    """Returns the beat that was sent."""
    number, polls, step, is_excused = map(int, text.split())
    return cls(number, polls, step, bool(is_excused))


class Store(NamedTuple):
  """The key-value store of a run: strings by name."""

  put: Callable[[str, str], None]  # the first value of a name stays
  put_over: Callable[[str, str], None]  # the last value of a name stays
  get: Callable[[str, float], str | None]  # waits; None = not in that time
  all: Callable[[str], dict[str, str]]  # of a folder, by name without it


class Watch:
  """The threads of one process that hear the others and the system.

  Args:
    store: of all processes.
    rank: number of this process.
    count: number of processes.
    heartbeat: seconds of silence after which a process is taken for lost.
  """

  def __init__(self, store: Store, rank: int, count: int, heartbeat: float):
    """Starts nothing yet."""
    self.rank, self.count, self.heartbeat = rank, count, heartbeat
    self.fault: Fault | None = None
    self.stop = 0  # number of the signal that any process got; 0 = none
    self._store = store
    self._lock = threading.Lock()  # held while a stop is being agreed
    self._polls, self._step = 0, 0
    self._last_poll = 0  # the poll that raises; 0 = not agreed yet
    self._is_local = False  # whether others need not be at the same poll
    self._heard = time.monotonic()  # when the store last answered
    self._since: float | None = None  # when the fault was seen
    self._first = 0.0  # when the first signal came
    self._signals: list[int] = []
    self._beats = 0
    self._seen: dict[str, tuple[Beat, float]] = {}  # last beat, and when
    self._counts: dict[str, tuple[int, float]] = {}  # last polls, and when
    self._ended = threading.Event()
    self._exiting = threading.Lock()  # held by the thread that ends the process

  def start(self) -> None:
    """Takes over SIGTERM and SIGINT, and starts the threads."""
    read, write = os.pipe()
    for end in (read, write):
      os.set_blocking(end, False)
    # The system's own handler writes the number of a signal here at once, also
    # while the main thread waits for a device.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda number, frame: None)
    self._store.put(f'who/{self.rank}', f'{os.uname().nodename}, {os.getpid()}')
    for work in (lambda: self._listen(read), self._talk, self._guard):
      threading.Thread(target=work, daemon=True).start()

  def end(self) -> None:
    """Ends the threads: from here on nobody is taken for lost."""
    self._ended.set()

  def poll(self, step: int | None = None) -> None:
    """Raises what all processes raise here; called by all equally often.

    Args:
      step: updates done, for messages.

    Raises:
      Preempted: a signal came to any process.
      InputError, Diverged, Lost: of another process.
    """
    self.check()
    if self._is_local:
      if self.stop:
        raise Preempted(self.stop)
      return
    with self._lock:
      self._polls += 1
      self._step = self._step if step is None else step
      is_last = 0 < self._last_poll <= self._polls
    if is_last:
      raise Preempted(self.stop)

  def check(self) -> None:
    """Raises the fault of another process, if one is known."""
    if self.fault is not None:
      raise self.fault.error()

  def local(self, action: Callable[[], Any]) -> Any:
    """Runs what the processes do at their own pace, to be agreed after it."""
    self._is_local = True
    try:
      return action()
    finally:
      self._is_local = False

  def fail(self, fault: Fault) -> None:
    """Tells all processes; the first fault that is told counts."""
    self._store.put('news/fault', to_text(fault))
    self._take(self._store.all('news'))

  def behind(self) -> tuple[int, str, Beat] | None:
    """Returns who keeps the others waiting; None = all are as far.

    One with fewer polls than another process, or that is excused at as many:
    its rank, the words for it and those like it, and its beat.
    """
    beats = self._beats_of_all()
    far = {r: (beat.polls, not beat.is_excused) for r, beat in beats.items()}
    most = max(far.values())
    late = [rank for rank in far if far[rank] < most]
    if not late:
      return None
    rank, more = min(late, key=int), len(late) - 1
    who = self._store.all('who').get(rank, 'unknown')
    words = f'{rank} of {self.count} ({who})' + f' and {more} more' * bool(more)
    return int(rank), words, beats[rank]

  def wait_for_fault(self) -> None:
    """Waits until a process that is lost now would be known."""
    until = time.monotonic() + self.heartbeat + _GRACE
    while self.fault is None and time.monotonic() < until:
      time.sleep(0.1)

  def leave(self) -> int:
    """Waits until the fault's line is printed and, first, all others left.

    Returns:
      The exit code of all.
    """
    fault = self.fault
    until = time.monotonic() + _LAST
    if self.rank == 0:
      _say(fault)
      self._store.put('printed', '1')
      while time.monotonic() < until and len(self._left()) < self.count - 1:
        time.sleep(0.05)
    else:
      # The line comes from the first process, unless that one is gone.
      if self._store.get('printed', _LAST / 2) is None:
        _say(fault)
      self._store.put(f'left/{self.rank}', '1')
    return fault.code

  def _left(self) -> dict[str, str]:
    """The processes that left, those without a sign of life among them."""
    gone = {r: '' for r in self._silent() if r != '0'}
    return gone | self._store.all('left')

  def _listen(self, pipe: int) -> None:
    """Thread: hears signals of the system."""
    while not self._ended.is_set():
      if not select.select([pipe], [], [], _EVERY)[0]:
        continue
      for number in os.read(pipe, 64):
        if number in (signal.SIGTERM, signal.SIGINT):
          self._hear(number, time.monotonic())

  def _hear(self, number: int, now: float) -> None:
    """Takes a signal: the first asks, a second one ends all at once."""
    if not self._signals:
      self._signals, self._first = [number], now
      self._store.put('news/stop', str(number))
    # Else the end of the first stop: see preemption.py.
    elif now - self._first >= SAME_STOP:
      self._signals.append(number)
      name = signal.Signals(number).name
      line = f'a second {name} came to process {self.rank}: nothing is saved'
      self.fail(Fault(self.rank, 128 + number, line, at_once=True))

  def _talk(self) -> None:
    """Thread: tells that this process lives, and hears news."""
    beat = 0.0
    # All ask one process: many ask less often.
    every = _EVERY + self.count / 1000
    while not self._ended.is_set():
      try:
        if time.monotonic() - beat > min(1.0, self.heartbeat / 8):
          beat = time.monotonic()
          self._beat()
        self._take(self._store.all('news'))
        self._heard = time.monotonic()
        if self.stop and not self._last_poll and self.fault is None:
          self._agree()
      except Exception:
        # The store is gone, or not to be reached now: `_guard` counts the time.
        if self._ended.is_set():
          return
      time.sleep(every)

  def _beat(self) -> None:
    """Tells a number that grows, the polls so far and the step."""
    self._beats += 1
    is_excused = self._is_local or _compiles()
    beat = Beat(self._beats, self._polls, self._step, is_excused)
    text = ' '.join(str(int(value)) for value in beat)
    self._store.put_over(f'beat/{self.rank}', text)
    if self.rank == 0 and self.fault is None:
      self._judge(self._beats_of_all())

  def _beats_of_all(self) -> dict[str, Beat]:
    """The last beat of each process, by rank."""
    sent = self._store.all('beat')
    return {rank: Beat.parse(text) for rank, text in sent.items()}

  def _judge(self, beats: dict[str, Beat]) -> None:
    """Tells a fault if a process is silent, or stays behind the others."""
    now = time.monotonic()
    most = max(beat.polls for beat in beats.values())
    for rank, beat in beats.items():
      if self._seen.get(rank, (None, 0))[0] != beat:
        self._seen[rank] = beat, now
      _, polls, step, is_excused = beat
      before = self._counts.get(rank)
      # Time counts only while others are ahead, and not while it compiles.
      if before is None or before[0] != polls or polls == most or is_excused:
        self._counts[rank] = polls, now
      # One that is silent as well is not stuck, but about to be lost.
      elif now - before[1] > self.heartbeat > 2 * (now - self._seen[rank][1]):
        self._lose(rank, f'is stuck after step {step}', before[1])
        return
    for rank in self._silent():
      self._lose(rank, 'does not answer', self._seen[rank][1])
      return

  def _silent(self) -> list[str]:
    """The processes whose beat has not come for a heartbeat."""
    late = time.monotonic() - self.heartbeat
    return [rank for rank, (_, when) in self._seen.items() if when < late]

  def _lose(self, rank: str, what: str, since: float) -> None:
    """Tells that a process is lost; a run that was to stop just stops."""
    who = self._store.all('who').get(rank, 'unknown')
    seconds = time.monotonic() - since
    self.fail(self._lost(rank, who, f'{what}, for {seconds:.0f} s'))

  def _lost(self, rank: str, who: str, what: str) -> Fault:
    code = 128 + self.stop if self.stop else Lost.exit_code
    line = (
      f'process {rank} of {self.count} ({who}) {what}; the last step is '
      f'{self._step}; fix: give the same command again, it continues from the '
      'last checkpoint'
    )
    return Fault(self.rank, code, line)

  def _take(self, news: dict[str, str]) -> None:
    """Takes a stop and a fault that somebody told."""
    if 'stop' in news and not self.stop:
      self.stop = int(news['stop'])
    if 'fault' in news and self.fault is None:
      self._since = time.monotonic()
      self.fault = from_text(news['fault'])

  def _agree(self) -> None:
    """Finds the poll at which all stop; no poll is made meanwhile."""
    with self._lock:
      self._store.put(f'at/{self.rank}', str(self._polls))
      beat = time.monotonic()
      while not self._ended.is_set() and self.fault is None:
        counts = self._store.all('at')
        if len(counts) == self.count:
          self._last_poll = max(map(int, counts.values())) + 1
          return
        self._take(self._store.all('news'))
        self._heard = time.monotonic()
        time.sleep(0.02)
        # A process that died before it answered is found by its silence.
        if time.monotonic() - beat > 0.5:
          beat = time.monotonic()
          self._beat()

  def _guard(self) -> None:
    """Thread: ends the process if its main thread cannot."""
    while not self._ended.wait(0.1):
      now = time.monotonic()
      if self.fault is None and now - self._heard > self.heartbeat:
        seconds = now - self._heard
        self._since, self.fault = (
          now,
          self._lost('0', 'its coordinator', f'is silent for {seconds:.0f} s'),
        )
      if self.fault is None:
        continue
      if self.fault.at_once or now - self._since > _GRACE:
        self.exit()

  def exit(self) -> None:
    """Ends this process now, with the code of the fault."""
    if not self._exiting.acquire(blocking=False):
      threading.Event().wait()  # another thread is about to end the process
    late = time.monotonic() - self._heard > self.heartbeat
    code = self.fault.code
    # A store that does not answer would hold this thread.
    if late:
      _say(self.fault)
    else:
      try:
        code = self.leave()
      except Exception:
        _say(self.fault)
    sys.stderr.flush()
    os._exit(code)


def _compiles() -> bool:
  """Whether the main thread traces or compiles: hosts differ in how long."""
  frame = sys._current_frames().get(threading.main_thread().ident)
  while frame is not None:
    if frame.f_code.co_filename.endswith(_COMPILERS):
      return True
    frame = frame.f_back
  return False


def _say(fault: Fault) -> None:
  """Prints the line of a fault as one line."""
  print(errors.printable(fault.line), file=sys.stderr, flush=True)
