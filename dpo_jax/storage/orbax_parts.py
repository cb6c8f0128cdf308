"""Parts of Orbax's manager: which steps it keeps, which of its logs are shown.

Comes in: step numbers, log entries, a step to move. Goes out: decisions, and
the step in its new place of a bucket. Reads no array.
"""

import asyncio
import functools
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable

from etils import epath

from dpo_jax.storage import faults, files

_CLOSED_LOOP = 'Event loop is closed'
_COMMITTED = 'commit_success.txt'  # Orbax's last object of a step


class Step:
  """Orbax's policy for one step, whose number may change."""

  def __init__(self, number: Callable[[], int | None]):
    """Takes the number anew at every decision."""
    self._number = number

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Returns which of the steps stay."""
    del context
    return [info.step == self._number() for info in checkpoints]


def move(step: epath.Path, target: epath.Path) -> None:
  """Moves a step within a bucket, which has no rename of folders.

  A kill leaves the step as it was, or one that is not committed.
  """
  files.at(str(step)).copy_to(files.at(str(target)))
  (step / _COMMITTED).unlink(missing_ok=True)
  step.rmtree(missing_ok=True)


def then(steps: list[int]) -> str:
  """Returns what the same command does, with these steps on disk."""
  return f'it continues from step {steps[-1]}' if steps else 'it starts over'


def way_out(error: Exception, steps: list[int]) -> str:
  """Returns what the user can do after a failed save, and what it does."""
  return f'{faults.fix(error)}; run the same command again, {then(steps)}'


def not_from_orbax(entry: logging.LogRecord) -> bool:
  """Filters out Orbax's tracebacks: its errors are raised or logged here."""
  return f'{os.sep}orbax{os.sep}' not in entry.pathname


def drop_coroutines(error: BaseException) -> None:
  """Ends what an error left half done in Orbax; see `silence`."""
  # Tracebacks keep the coroutines alive; collected later, each of them warns
  # that it was never awaited.
  seen: set[int] = set()
  chain = [error]
  while chain:
    one = chain.pop()
    if one is not None and id(one) not in seen:
      seen.add(id(one))
      one.__traceback__ = None
      chain += [one.__cause__, one.__context__]
  gc.collect()


@functools.cache
def silence() -> None:
  """Filters what a failed read or save prints beside the error that it raises.

  Orbax logs tracebacks; TensorStore's threads go on and call event loops that
  are closed; coroutines warn that nobody awaited them; an event loop for which
  no descriptor was left fails again when it is collected. What is not of these
  is printed as before.
  """
  logging.getLogger('absl').addFilter(not_from_orbax)
  warnings.filterwarnings('ignore', message='coroutine .* was never awaited')
  logging.getLogger('asyncio').addFilter(lambda entry: False)
  printed, unraisable = sys.excepthook, sys.unraisablehook

  def print_others(kind, error, trace):
    if str(error) != _CLOSED_LOOP:
      printed(kind, error, trace)

  def say_others(args):
    if not (
      asyncio.iscoroutine(args.object)
      or args.object is asyncio.BaseEventLoop.__del__
      or str(args.exc_value) == _CLOSED_LOOP
    ):
      unraisable(args)

  sys.excepthook, sys.unraisablehook = print_others, say_others
