"""silence of a run -> one line that says where it is stuck, and its end.

Comes in: polls, which every loop of a run makes (preemption.py). Goes out: if
none comes for so many minutes, a line on stderr with the process, the phase,
the last step, the last good checkpoint and the command that resumes the run;
then exit code 3. A thread watches: a main thread that waits for a device or a
disk raises nothing. watch.py finds one process of many that stays behind; this
one finds a run that stands still as a whole, or alone.
"""

import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dpo_jax import errors
from dpo_jax.run import preemption, watch
from dpo_jax.run.preemption import Lost

# Phases by what the main thread is in, innermost last: (end of the file's name,
# function or '' for any, phase).
_PHASES = (
  ('jax/_src/compiler.py', '', 'compile'),
  ('dpo_jax/train.py', 'evaluate_run', 'evaluation'),
  ('dpo_jax/train.py', '_sample', 'samples'),
  ('dpo_jax/train.py', 'save', 'checkpoint'),
  ('dpo_jax/train.py', 'finish', 'end'),
  ('dpo_jax/train.py', '_loop', 'update'),
  ('dpo_jax/run/reference.py', '', 'reference'),
  ('dpo_jax/run/inputs.py', '', 'data'),
  ('dpo_jax/run/start.py', '', 'start'),
)
_joined: list[watch.Watch] = []  # of several processes, this one's
_LOOKS = 64  # per allowed silence


class Watchdog:
  """Context in which a silence ends the process.

  Args:
    minutes: of silence; 0 = any.
    saved: returns the steps of the checkpoints.
    resume: the command.
  """

  def __init__(
    self,
    minutes: float,
    saved: Callable[[], Iterable[int]],
    resume: str,
  ):
    """Starts nothing yet."""
    self._seconds, self._saved, self._resume = 60 * minutes, saved, resume
    self._polls, self._step = 0, 0
    self._main = threading.main_thread().ident
    self._ended = threading.Event()

  def __enter__(self) -> 'Watchdog':
    """Starts the thread."""
    if self._seconds:
      preemption.heard.append(self.heard)
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    """Ends the thread."""
    self._ended.set()
    if self._seconds:
      preemption.heard.remove(self.heard)

  def heard(self, step: int | None = None) -> None:
    """Notes that the run goes on; step: updates done, if they are known."""
    self._polls += 1
    self._step = self._step if step is None else step

  def line(self) -> str:
    """Returns where the run is stuck, and how to go on."""
    try:
      steps = sorted(self._saved())
    except Exception:  # the disk may be what is stuck
      steps = []
    last = f'step {steps[-1]}' if steps else 'none, it starts over'
    minutes = self._seconds / 60
    who, step, phase = self._stuck()
    return (
      f'process {who}: no progress for {minutes:.3g} minutes in '
      f'{phase} after step {step}; last good checkpoint: '
      f'{last}; fix: look at the machine (its disks, its devices), a larger '
      f'train.watchdog_minutes if it was at work, then: {self._resume}'
    )

  def _stuck(self) -> tuple[str, int, str]:
    """The process that the others wait for, else this one; step and phase."""
    phase = _phase(self._main)
    if not _joined:
      return '0 of 1', self._step, phase
    group = _joined[0]
    # The watchdogs of those that wait for it have as much patience as its own.
    behind = group.behind()
    if behind is None or behind[0] == group.rank:
      return f'{group.rank} of {group.count}', self._step, phase
    _, who, beat = behind
    place = 'a compile or its own work' if beat.is_excused else 'an update'
    return who, beat.step, f'{place}, process {group.rank} waits in {phase}'

  def _watch(self) -> None:
    """Thread: counts the silence, in looks.

    Not by a clock: a process that was stopped and goes on was not silent.
    """
    looks, polls = 0, -1
    while not self._ended.wait(self._seconds / _LOOKS):
      looks = looks + 1 if self._polls == polls else 0
      polls = self._polls
      if looks >= _LOOKS:
        _end(self.line())


def join(own: watch.Watch) -> None:
  """Makes the end of this process the end of all that work together."""
  _joined[:] = [own]


def _end(line: str) -> None:
  """Says the line, and ends this process and the others at once."""
  if _joined:
    own = _joined[0]
    own.fail(watch.Fault(own.rank, Lost.exit_code, line, at_once=True))
    own.exit()
  print(errors.printable(line), file=sys.stderr, flush=True)
  os._exit(Lost.exit_code)


def command() -> str:
  """Returns this process's command, as a shell reads it."""
  return f'python -m dpo_jax.main {shlex.join(sys.argv[1:])}'


def _phase(thread: int | None) -> str:
  """Returns what a thread is at, in a word and a place."""
  frames = list(_frames(thread))
  place = next(
    (
      f' ({os.path.basename(f.f_code.co_filename)}:{f.f_lineno})'
      for f in frames
      if 'dpo_jax' in f.f_code.co_filename
    ),
    '',
  )
  for frame in frames:
    for name, function, phase in _PHASES:
      code = frame.f_code
      if code.co_filename.endswith(name) and function in ('', code.co_name):
        return phase + place
  return 'the beginning' + place


def _frames(thread: int | None) -> Iterator[Any]:
  """The frames of a thread, innermost first."""
  frame = sys._current_frames().get(thread)
  while frame is not None:
    yield frame
    frame = frame.f_back
