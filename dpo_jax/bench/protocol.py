"""Both ends of a pipe between the benchmark and a process that it measures.

Comes in: a command to start; then questions, one word each. Goes out: answers,
one JSON object per line. Children that run another framework, or an older
commit, load this file by its path: it imports the standard library only.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class ChildFailed(RuntimeError):
  """A child ended before it answered; the text is its last line."""


class Remote:
  """A process that is asked; it answers `{}` or more to every question."""

  def __init__(
    self,
    command: Sequence[str],
    log: pathlib.Path,
    environ: Mapping[str, str] | None = None,
  ):
    """Starts the process; its messages go to the file `log`."""
    self._log = log
    with log.open('wb') as stderr:
      self._process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, **(environ or {})},
        text=True,
      )

  def ask(self, question: str) -> dict[str, Any]:
    """Returns the answer; ChildFailed if the process ends before it."""
    try:
      print(question, file=self._process.stdin, flush=True)
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ''
    if not line:
      self._process.wait()
      raise ChildFailed(self._last_line())
    return json.loads(line)

  def close(self) -> None:
    """Ends the process."""
    for pipe in (self._process.stdin, self._process.stdout):
      try:
        pipe.close()
      except BrokenPipeError:
        pass
    try:
      self._process.wait(timeout=30)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def _last_line(self) -> str:
    text = self._log.read_text(errors='replace').strip()
    lines = [line for line in text.splitlines() if line.strip()]
    # The last line of a traceback, not what an interpreter says at its exit.
    named = [line for line in lines if 'Error' in line.partition(':')[0]]
    last = (named or lines or ['no message'])[-1].strip()
    return f'exit {self._process.returncode}: {last}'


class Channel:
  """The end of a child: it reads questions and writes answers."""

  def __init__(self):
    """Takes stdout; what the process prints from here on goes to stderr."""
    self._answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

  def question(self) -> str:
    """Waits for the next question; '' = the other end is closed."""
    return sys.stdin.readline().strip()

  def answer(self, values: Mapping[str, Any]) -> None:
    """Answers the question."""
    print(json.dumps(values), file=self._answers, flush=True)


def serve(answers: Mapping[str, Callable[[], Mapping[str, Any]]]) -> None:
  """Answers questions by name until the other end closes."""
  channel = Channel()
  while question := channel.question():
    channel.answer(answers[question]())


class Clock:
  """Wall and CPU seconds of this process, all its threads included."""

  def __init__(self):
    """Starts."""
    self._wall, self._cpu = time.perf_counter(), time.process_time()

  def read(self) -> dict[str, float]:
    """Returns the seconds since the start."""
    wall = time.perf_counter() - self._wall
    return {'seconds': wall, 'cpu_seconds': time.process_time() - self._cpu}


def peak_rss_mb() -> float:
  """Returns the most memory that this process held at one time, in MB."""
  status = pathlib.Path('/proc/self/status')
  if not status.exists():
    return float('nan')
  for line in status.read_text().splitlines():
    if line.startswith('VmHWM'):
      return int(line.split()[1]) * 1024 / 1e6
  return float('nan')
