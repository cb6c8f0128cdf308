"""Locks in a bucket: one process holds a name, and says so again and again.

Comes in: a Path of a bucket. Goes out: a `Lease`, or the name of its holder.
Stores have no locks that end with a process. A lease is a row of objects
NUMBER.json below the name; the highest one is the holder's. It is made by a put
that fails if the object exists, so of two processes one gets the number, and
its holder writes it again every few seconds. A holder that is silent for
ALIVE_SECONDS, watched by the clock of the process that waits, loses the name to
the next number: a clock that is wrong can delay that, never cause it.

No lock of this kind stops a holder that slept through its loss in the middle of
a put: `confirm` comes before every step that matters and narrows that to one.
"""

import contextlib
import json
import os
import pathlib
import platform
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from dpo_jax import errors
from dpo_jax.storage import buckets, files

BEAT_SECONDS = 10.0  # from one sign of life to the next
ALIVE_SECONDS = 60.0  # of silence after which a holder has lost the name
_WATCH_SECONDS = 25.0  # of silence, if the holder's clock says it is long dead


def owner() -> str:
  """Returns the name of this process: host and number."""
  return f'{platform.node()}:{os.getpid()}'


def check(folder: buckets.Path) -> None:
  """Refuses a bucket without a put that fails if the object exists.

  Such a put is also the proof that this process may write there.

  Raises:
    InputError: the store cannot, or fails.
  """
  probe = folder / f'.probe-{uuid.uuid4().hex[:12]}'
  try:
    probe.write_bytes(b'', new=True)
    probe.write_bytes(b'', new=True)
  except FileExistsError:
    return
  finally:
    with contextlib.suppress(OSError):
      probe.unlink(missing_ok=True)
  raise errors.refuse(
    folder,
    'this store has no put that fails if the object exists, so two processes '
    'could write one run',
    'update its fsspec package, or use a gs:// bucket',
  )


class Lease:
  """The right of one process to write below a name.

  Args:
    folder: of the lease's objects.
  """

  def __init__(self, folder: buckets.Path):
    """Asks the store nothing yet."""
    self._folder = folder
    self._token = uuid.uuid4().hex
    self._path: buckets.Path | None = None  # this process's object
    self._beat = 0  # number of signs of life
    self._heard = 0.0  # time.monotonic of the last one
    self._is_lost = False
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def take(
    self, *, patient: bool = False, log: Callable[[str], None] = print
  ) -> str:
    """Takes the name unless another process has it.

    Args:
      patient: whether a holder that gave no sign yet is watched until it does
        or has lost the name; else one whose clock says that it lives is
        believed at once.
      log: takes a line before a wait.

    Returns:
      '' if the name is this process's now, else the holder's.

    Raises:
      InputError: the store fails.
    """
    with files.storage_errors(self._folder):
      path, value = self._top()
      holder = self._alive(path, value, patient, log)
      if holder:
        return holder
      number = int(path.stem) + 1 if path else 1
      mine = self._folder / f'{number:06d}.json'
      try:
        mine.write_bytes(self._sign(), new=True)
      except FileExistsError:
        # A put whose answer was lost is put again and finds itself.
        other = _read(mine)
        if other.get('token') != self._token:
          return other.get('owner', 'another process')
      self._path, self._heard = mine, time.monotonic()
      for older in self._objects():
        if older < mine:
          older.unlink(missing_ok=True)
    self._thread = threading.Thread(target=self._beat_on, daemon=True)
    self._thread.start()
    return ''

  def confirm(self) -> None:
    """Makes sure that the name is still this process's.

    Raises:
      InputError: another process has taken it.
    """
    if self._path and time.monotonic() - self._heard > ALIVE_SECONDS / 3:
      with files.storage_errors(self._folder):
        self._say()
    if self._is_lost:
      raise errors.refuse(
        self._folder.parent,
        'another process took this run over, because this one gave no sign of '
        f'life for {ALIVE_SECONDS:.0f} s',
        'leave it to that process, or stop that one first',
      )

  def release(self) -> None:
    """Gives the name up; again is harmless."""
    self._end()
    if self._path and not self._is_lost:
      # Its number stays, so that no later holder gets it again.
      with contextlib.suppress(OSError):
        self._path.write_bytes(self._sign(released=True))
    self._path = None

  def discard(self) -> None:
    """Gives the name up and leaves no object: nothing was written under it."""
    self._end()
    if self._path and not self._is_lost:
      with contextlib.suppress(OSError):
        self._path.unlink(missing_ok=True)
    self._path = None

  def _end(self) -> None:
    """Ends the thread."""
    self._stop.set()
    if self._thread:
      self._thread.join()
      self._thread = None

  def _alive(self, path, value, patient, log) -> str:
    """The living holder of the highest object; '' if there is none."""
    name = value.get('owner', 'another process')
    runs = _runs_here(value)
    if not path or value.get('released') or runs is False:
      return ''
    if runs:
      return name
    age = time.time() - value.get('time', 0.0)
    if not patient and age < ALIVE_SECONDS:
      return name
    silence = ALIVE_SECONDS if patient else _WATCH_SECONDS
    log(
      f'{self._folder.parent}: {name} has it, and wrote so {age:.0f} s ago by '
      f'its clock; watching it for {silence:.0f} s'
    )
    end = time.monotonic() + silence
    while time.monotonic() < end:
      time.sleep(min(1.0, silence / 10))
      now, latest = self._top()
      if (now, latest.get('beat')) != (path, value.get('beat')):
        return '' if latest.get('released') else latest.get('owner', name)
    return ''

  def _beat_on(self) -> None:
    """Gives signs of life until the end or the loss."""
    while not self._stop.wait(BEAT_SECONDS) and not self._is_lost:
      with contextlib.suppress(OSError):
        self._say()

  def _say(self) -> None:
    """Gives one sign of life, unless another process has a higher number."""
    path, value = self._top()
    if path != self._path or value.get('token') != self._token:
      self._is_lost = True
      return
    self._beat += 1
    self._path.write_bytes(self._sign())
    self._heard = time.monotonic()

  def _sign(self, **more: Any) -> bytes:
    """The content of this process's object."""
    value = {'owner': owner(), 'token': self._token, 'time': time.time()}
    value |= {'beat': self._beat, 'process': _process(os.getpid())}
    return json.dumps(value | more).encode()

  def _objects(self) -> list[buckets.Path]:
    """The objects of the lease, the highest last."""
    return sorted(self._folder.glob('[0-9]*.json'))

  def _top(self) -> tuple[buckets.Path | None, dict[str, Any]]:
    """The highest object and what it says; (None, {}) if there is none."""
    listed = self._objects()
    return (listed[-1], _read(listed[-1])) if listed else (None, {})


def holder(folder: buckets.Path) -> str:
  """Returns the living holder of a lease, as far as it tells; '' = none."""
  path, value = Lease(folder)._top()
  runs = _runs_here(value)
  if not path or value.get('released') or runs is False:
    return ''
  age = time.time() - value.get('time', 0.0)
  is_alive = runs or age < ALIVE_SECONDS
  return value.get('owner', 'another process') if is_alive else ''


def _read(path: buckets.Path) -> dict[str, Any]:
  """What an object says; {} if it is gone or no JSON."""
  try:
    return files.parse_object(path.read_bytes()) or {}
  except FileNotFoundError:
    return {}


def _runs_here(value: dict[str, Any]) -> bool | None:
  """Whether the holder runs, if it is of this machine; else None."""
  process = value.get('process') or {}
  own = _process(os.getpid())
  if not own or [process.get(k) for k in _PLACE] != [own[k] for k in _PLACE]:
    return None
  return _process(process.get('number')) == process


_PLACE = ('boot', 'namespace')  # equal for processes that see one another


def _process(number: Any) -> dict[str, Any]:
  """What tells a process of this machine from all others; {} if none runs."""
  try:
    # Behind the name, which may hold anything: the state is field 3, the start
    # in clock ticks field 22.
    fields = pathlib.Path(f'/proc/{int(number)}/stat').read_text()
    fields = fields.rpartition(')')[2].split()
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    namespace = os.readlink('/proc/self/ns/pid')
  except (OSError, ValueError, TypeError):
    return {}
  if fields[0] in 'ZX':
    return {}
  return {
    'number': int(number),
    'start': int(fields[19]),
    'boot': boot,
    'namespace': namespace,
  }
