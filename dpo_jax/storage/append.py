"""Text files that grow: appended on disk, put whole again in a bucket.

Comes in: a path and lines. Goes out: a text file to write to. A store has no
append, so the lines wait in memory and the object is put whole: at `sync`, at
the end, and between them as often as costs at most a twentieth of the time. A
kill loses the lines since the last put, never a part of one.
"""

import contextlib
import errno
import io
import os
import time
from collections.abc import Callable
from typing import Any, TextIO

from dpo_jax.storage import buckets, files

_PUT_SECONDS = 30.0  # least time from one put to the next
_SHARE = 20.0  # times as long as the last put took


def open_text(path: Any, confirm: Callable[[], None] = lambda: None) -> TextIO:
  """Opens a UTF-8 text to append to; its folder exists.

  Args:
    path: of the file.
    confirm: called before a put; raises if another process writes there now.
  """
  path = files.at(path)
  if isinstance(path, buckets.Path):
    return _Object(path, confirm)
  return open(path, 'a', encoding='utf-8')


class Lossy(io.FileIO):
  """The bytes of a text that may be lost: from the first error on, it drops.

  Args:
    file: a path or a descriptor.
    lost: takes that error.
    closefd: whether a descriptor is closed with it.
  """

  def __init__(
    self,
    file: Any,
    lost: Callable[[OSError], None] = lambda error: None,
    closefd: bool = True,
  ):
    """Opens for appending."""
    super().__init__(file, 'ab', closefd)
    self._lost, self._is_lost = lost, False

  def write(self, data: Any) -> int | None:
    """Writes, or drops all of it."""
    if not self._is_lost:
      try:
        return super().write(data)
      except OSError as error:
        self._is_lost = True
        self._lost(error)
    return memoryview(data).nbytes


def open_log(path: Any) -> TextIO:
  """Opens as `open_text`; what cannot be written is lost and no error.

  For what a run prints: a full disk ends it where it writes its results.
  """
  path = files.at(path)
  if isinstance(path, buckets.Path):
    return _Object(path, lambda: None)
  return io.TextIOWrapper(
    io.BufferedWriter(Lossy(path)), encoding='utf-8', line_buffering=True
  )


def check(file: TextIO) -> None:
  """Raises FileNotFoundError or OSError if a file on a disk is gone or cut."""
  if isinstance(file, _Object):
    return
  if os.stat(file.name).st_size < os.fstat(file.fileno()).st_size:
    raise OSError(
      errno.ESTALE, 'was replaced while the run wrote it', file.name
    )


def sync(file: TextIO) -> None:
  """Returns once all that was written is on the disk or in the bucket."""
  if isinstance(file, _Object):
    file.put()
  else:
    file.flush()
    os.fsync(file.fileno())


def close(file: TextIO) -> None:
  """Closes a file; an error counts only where lines may be lost by it."""
  # On a disk every line was flushed before.
  with contextlib.suppress(() if isinstance(file, _Object) else OSError):
    file.close()


class Pace:
  """When to put an object again that grows."""

  def __init__(self):
    """The first put is due after the least time."""
    self._next = time.monotonic() + _PUT_SECONDS

  def is_due(self) -> bool:
    """Returns whether a put may be made now."""
    return time.monotonic() >= self._next

  def put(self, path: buckets.Path, data: bytes) -> None:
    """Puts the object and sets the time of the next put."""
    began = time.monotonic()
    path.write_bytes(data)
    ended = time.monotonic()
    self._next = ended + max(_PUT_SECONDS, _SHARE * (ended - began))


class _Object(io.TextIOBase):
  """A text in memory that is put as one object."""

  def __init__(self, path: buckets.Path, confirm: Callable[[], None]):
    """Reads what is there."""
    self._path, self._pace, self._confirm = path, Pace(), confirm
    try:
      self._data = bytearray(path.read_bytes())
    except FileNotFoundError:
      self._data = bytearray()
    self._num_put = len(self._data)

  @property
  def name(self) -> str:
    """The URL."""
    return str(self._path)

  def writable(self) -> bool:
    """Returns True."""
    return True

  def write(self, text: str) -> int:
    """Keeps the text."""
    self._data += text.encode()
    return len(text)

  def flush(self) -> None:
    """Puts the object if that is due."""
    if not self.closed and self._pace.is_due():
      self.put()

  def put(self) -> None:
    """Puts the object unless it is there as it is."""
    if len(self._data) != self._num_put:
      self._confirm()
      data = bytes(self._data)
      self._pace.put(self._path, data)
      self._num_put = len(data)

  def close(self) -> None:
    """Puts the object; again is harmless."""
    if not self.closed:
      try:
        self.put()
      finally:
        super().close()
