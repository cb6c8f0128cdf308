"""metrics -> run directory: metrics.jsonl, TensorBoard and a progress line.

Comes in: a dict of scalars, a step and a split ('train', 'eval'). Goes out: one
JSON object per line, flushed at once: the source of truth. TensorBoard and the
progress line show the same numbers. Computes no metric; metrics_file.py reads
the lines and says how they hold NaN.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import jax
import rich.console
import rich.progress
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2

from dpo_jax.storage import (
  append,
  files,
  metrics_file,
  readable,
  scratch,
  trackers,
)

# Metrics of the progress line, if present: name, label, format.
_SHOWN = (
  ('loss', 'loss', '.4f'),
  ('rewards/accuracies', 'accuracy', '.3f'),
  ('rewards/margins', 'margin', '.3f'),
)
_PLAIN_SECONDS = 10.0  # least time between two plain lines
_BOARD_SECONDS = 30.0  # longest time until TensorBoard sees a step


class MetricWriter:
  """Writes a run's metrics: a context manager, for one process and thread.

  A continued run keeps the lines up to the step that was restored, and drops
  the later ones, which it will write again. A line that was kept (such as an
  evaluation at the restored step) is not written twice.

  Args:
    workdir: the run directory, which exists.
    total_steps: number of updates of the run, for the progress line.
    start_step: the step that was restored; 0 starts over and keeps only an
      evaluation at step 0.
    comparisons_per_step: for the rate in the progress line; 0 leaves it out.
    stream: output for progress; a terminal gets a bar, anything else one line
      per ten seconds at most and one at the end.
    tracker: takes the same numbers; closed with the writer. None = none.
    confirm: called before a put to a bucket; raises if the run is another
      process's now.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    total_steps: int,
    start_step: int = 0,
    comparisons_per_step: float = 0.0,
    stream: TextIO | None = None,
    tracker: trackers.Tracker | None = None,
    confirm: Callable[[], None] = lambda: None,
  ):
    """Cuts metrics.jsonl back to start_step and opens all outputs."""
    workdir = files.at(workdir)
    self._path = workdir / 'metrics.jsonl'
    with files.storage_errors(self._path):
      kept = _cut_back(self._path, start_step)
      self._file = append.open_text(self._path, confirm)
      self._board = _Board(workdir / 'tensorboard', start_step)
    self._tracker = tracker
    self._written = {(entry['step'], entry['split']) for entry in kept}
    self._seal = metrics_file.Seal(kept)
    stream = sys.stdout if stream is None else stream
    self._progress = _Progress(
      stream, total_steps, start_step, comparisons_per_step
    )

  def __enter__(self) -> 'MetricWriter':
    """Returns itself."""
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Closes all outputs; written lines stay."""
    self.close()

  def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
    """Writes one line, unless the file has that step and split already.

    Args:
      step: updates done.
      split: 'train' or 'eval'.
      metrics: {name: scalar} of Python, numpy or jax (waited for here).

    Raises:
      InputError: the line could not be written.
    """
    if self.has(step, split):
      return
    # One transfer for all metrics; it waits for the step that made them.
    read = jax.device_get(dict(metrics))
    values = {name: _number(read[name]) for name in metrics}
    bad = {k: v for k, v in values.items() if not math.isfinite(v)}
    line = {'step': step, 'split': split}
    line |= {name: None if name in bad else v for name, v in values.items()}
    # JSON has no NaN: see metrics_file.py.
    if bad:
      line['nonfinite'] = ', '.join(f'{k}={v}' for k, v in bad.items())
    with files.storage_errors(self._path):
      self._file.write(json.dumps(line, allow_nan=False) + '\n')
      self._file.flush()
      append.check(self._file)
      self._seal.add(line)
      finite = {f'{split}/{k}': v for k, v in values.items() if k not in bad}
      self._board.write(step, finite)
    self._written.add((step, split))
    if self._tracker:
      self._tracker.write(step, split, values)
    self._progress.show(step, split, values)

  def has(self, step: int, split: str) -> bool:
    """Returns whether the file has that line, from any session."""
    return (step, split) in self._written

  def seal(self) -> dict[str, Any]:
    """Returns the digest of all lines, which are on disk from here on."""
    with files.storage_errors(self._path):
      append.sync(self._file)
      self._board.sync()
    return self._seal.value()

  def write_text(self, step: int, name: str, text: str) -> None:
    """Shows a text in TensorBoard."""
    with files.storage_errors(self._path):
      self._board.write_text(step, name, text)

  def log(self, message: str) -> None:
    """Shows a line above the progress bar."""
    self._progress.log(message)

  def close(self) -> None:
    """Ends the bar and closes the files; again is harmless."""
    if self._file.closed:
      return
    self._progress.close()
    if self._tracker:
      self._tracker.close()
    with contextlib.suppress(OSError):  # every line of the file is flushed
      self._board.close()
    append.close(self._file)


class SilentWriter:
  """A MetricWriter that writes nothing: one process of a run writes for all."""

  def __enter__(self) -> 'SilentWriter':
    """Returns itself."""
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Has nothing to close."""

  def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
    """Drops a line."""

  def has(self, step: int, split: str) -> bool:
    """Returns False: only the process that writes knows."""
    return False

  def seal(self) -> dict[str, Any]:
    """Returns {}: a checkpoint keeps the seal of the process that writes."""
    return {}

  def write_text(self, step: int, name: str, text: str) -> None:
    """Drops a text."""

  def log(self, message: str) -> None:
    """Drops a line."""

  def close(self) -> None:
    """Has nothing to close."""


def _cut_back(path: files.AnyPath, step: int) -> list[dict[str, Any]]:
  """Drops lines after `step`; returns those that stay."""
  if not path.exists():
    return []
  # Rewritten whole, so that a kill leaves the old lines or the new ones.
  kept = [entry for entry in metrics_file.read(path) if entry['step'] <= step]
  with files.atomic_file(path) as file:
    file.writelines(json.dumps(entry).encode() + b'\n' for entry in kept)
  return kept


def _number(value: Any) -> float | int:
  """Returns any scalar on the host as a Python int or float."""
  value = value.item() if hasattr(value, 'item') else value
  return int(value) if isinstance(value, int) else float(value)


class _Board:
  """TensorBoard's event file, written in this thread.

  tensorboardX's own SummaryWriter writes in another thread. When the disk is
  full, that thread dies, and the next metric waits for it forever.
  """

  def __init__(self, folder: files.AnyPath, start_step: int):
    folder.mkdir(exist_ok=True)
    self._folder, self._local = folder, scratch.stand_in(folder)
    self._pace = append.Pace()
    self._events = event_file_writer.EventsWriter(
      str(self._local / 'events'),
      f'.{time.time_ns()}',  # two sessions may begin in one second
    )
    # Makes TensorBoard hide later steps of an earlier session.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._events.write_event(
      event_pb2.Event(step=start_step + 1, session_log=start)
    )
    self._flushed = -math.inf

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds an event of scalars; it is on disk within half a minute."""
    self._add(step, [summary.scalar(k, v).value[0] for k, v in values.items()])

  def write_text(self, step: int, name: str, text: str) -> None:
    """Adds an event of a text."""
    self._add(step, [summary.text(name, text).value[0]])

  def _add(self, step: int, values: list[Any]) -> None:
    now = time.time()
    self._events.write_event(
      event_pb2.Event(
        step=step, wall_time=now, summary=summary_pb2.Summary(value=values)
      )
    )
    if now - self._flushed > _BOARD_SECONDS:
      self._flushed = now
      self._events.flush()
      if self._pace.is_due():
        self._put()

  def sync(self) -> None:
    """Puts the file where it belongs if that is a bucket."""
    if self._local is not self._folder:
      self._events.flush()
      self._put()

  def close(self) -> None:
    """Flushes and closes the file."""
    self._events.close()
    self._put()

  def _put(self) -> None:
    """Puts the event file into the bucket; on a disk it is there."""
    if self._local is not self._folder:
      for file in self._local.iterdir():
        self._pace.put(self._folder / file.name, file.read_bytes())


class _Progress:
  """A rich bar on a terminal, plain lines elsewhere."""

  def __init__(
    self, stream: TextIO, total: int, start: int, comparisons: float
  ):
    self._stream, self._total, self._start = stream, total, start
    self._comparisons = comparisons
    self._began: tuple[int, float] | None = None  # after the first step
    self._shown = -math.inf  # when the last plain line was written
    self._bar = None
    if stream.isatty():
      self._bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn('{task.description}', markup=False),
        console=rich.console.Console(file=stream),
      )
      self._task = self._bar.add_task('', total=total, completed=start)
      self._bar.start()

  def show(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Shows a step; evaluations always get a line of their own."""
    text = '  '.join(
      f'{label} {values[name]:{form}}'
      for name, label, form in _SHOWN
      if name in values
    )
    where = f'step {step}/{self._total}'
    if split != 'train':
      self.log(f'{split} {where}  {text}')
      return
    now = time.monotonic()
    text += self._speed(step, now)
    if self._bar:
      self._bar.update(self._task, completed=step, description=text)
    elif now - self._shown >= _PLAIN_SECONDS or step >= self._total:
      self._shown = now
      self.log(f'{where}  {text}')

  def log(self, message: str) -> None:
    """Writes a line, above the bar if there is one."""
    if self._bar:
      self._bar.console.print(message, markup=False, highlight=False)
    else:
      print(message, file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the terminal as it was."""
    if self._bar:
      self._bar.stop()

  def _speed(self, step: int, now: float) -> str:
    """Returns rate and time left; leaves out the first step, which compiles."""
    if self._began is None:
      self._began = (step, now)
    first, began = self._began
    # A clock may stand still between two quick steps.
    if step <= first or now <= began:
      return ''
    rate = (step - first) / (now - began)
    pairs = f'  {self._comparisons * rate:.1f} comparisons/s'
    clock = readable.clock(max(0, self._total - step) / rate)
    return f'{pairs if self._comparisons else ""}  {clock} left'
