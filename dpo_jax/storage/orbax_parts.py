"""Parts of Orbax's manager: which steps it keeps, which of its logs are shown.

Comes in: step numbers, log entries, a step to move. Goes out: decisions, and
the step in its new place of a bucket. Reads no array.
"""

import logging
import os
from collections.abc import Callable

from etils import epath

from dpo_jax.storage import files

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


def not_from_orbax(entry: logging.LogRecord) -> bool:
  """Filters out Orbax's tracebacks: its errors are raised or logged here."""
  return f'{os.sep}orbax{os.sep}' not in entry.pathname
