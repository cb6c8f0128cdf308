"""stdout and stderr that take no more -> a clean stop, and one line.

Comes in: the streams of a command. Goes out: streams that raise nothing. A pipe
that nobody reads any more (`| head -1`), a full disk under `> FILE`, a closed
terminal: the rest is dropped, and the next poll ends the run as a signal would,
with its step saved. Prints nothing itself.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from dpo_jax.run import preemption
from dpo_jax.storage import append

_FIX = 'give the same command again with output that can be written'


class Closed(preemption.Preempted):
  """A stream of the command takes no more: it stops, with exit code 1."""

  exit_code = 1

  def __init__(self, title: str, error: OSError):
    """Takes the stream's name and the system's error."""
    reason = error.strerror or error
    BaseException.__init__(
      self, f'{title}: cannot be written ({reason}); fix: {_FIX}'
    )

  def line(self) -> str:
    """Returns the line for stderr, with the step that is saved."""
    return f'{self}; {self.saved}' if self.saved else str(self)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
  """Context in which a failing stdout or stderr asks the command to stop.

  Streams that somebody put in place of the process's own stay as they are.
  """
  before = sys.stdout, sys.stderr
  own = sys.__stdout__, sys.__stderr__
  made = [
    _guard(stream, title) if stream is original else stream
    for stream, original, title in zip(before, own, ('stdout', 'stderr'))
  ]
  sys.stdout, sys.stderr = made
  try:
    yield
  finally:
    for stream, was in zip(made, before):
      if stream is not was:
        stream.flush()
    sys.stdout, sys.stderr = before


def _guard(stream: TextIO | None, title: str) -> TextIO | None:
  """The stream over bytes that raise nothing; itself if it has none."""
  # Python starts without a stream if its descriptor is closed.
  if stream is None:
    return open(os.devnull, 'w')
  try:
    stream.flush()
    raw = append.Lossy(
      stream.fileno(),
      lambda error: preemption.ask(Closed(title, error)),
      closefd=False,
    )
  except (OSError, ValueError):
    return stream
  return io.TextIOWrapper(
    io.BufferedWriter(raw),
    encoding=stream.encoding,
    errors=stream.errors,
    line_buffering=stream.line_buffering,
    write_through=title == 'stderr',
  )
