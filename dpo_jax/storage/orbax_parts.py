"""Parts of Orbax's manager: which steps it keeps, what its failures say.

Comes in: step numbers, errors, log entries, a step to move. Goes out:
decisions, the line of a failed save, and the step in its new place of a bucket.
Reads no array.
"""

import asyncio
import functools
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable

from etils import epath

from dpo_jax import errors
from dpo_jax.storage import faults, files, places
from dpo_jax.types import StorageError

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


def unwritten(
  step: epath.Path, error: Exception, num_bytes: float, steps: list[int]
) -> StorageError:
  """Returns what a failed save raises; `steps` are those on the disk."""
  return errors.unwritten(
    step,
    f'the checkpoint was not written ({reason(error)}); '
    + places.show_need(num_bytes, step.parent),
    f'{faults.fix(error)}; run the same command again, {then(steps)}',
  )


def reason(error: BaseException) -> str:
  """Returns an error in a few words: the system's own if it has some."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = ' '.join(str(error).split())
  # TensorStore's errors run over a page, with the system's number in it.
  system = re.search(r"os_error_code='(\d{1,4})'", text)
  if system:
    return os.strerror(int(system[1]))
  text = re.split(r' \[tensorstore_spec| See full TensorStore', text)[0]
  if len(text) > 160:
    text = f'{text[:40]} ... {text[-115:]}'
  return f'{type(error).__name__}: {text}'


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
