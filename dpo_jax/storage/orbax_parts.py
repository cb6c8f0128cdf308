"""Parts of Orbax's manager: which steps it keeps, which of its logs are shown.

Comes in: step numbers and log entries. Goes out: decisions. Reads and writes
nothing.
"""

import logging
import os
from collections.abc import Callable


class Step:
  """Orbax's policy for one step, whose number may change."""

  def __init__(self, number: Callable[[], int | None]):
    """Takes the number anew at every decision."""
    self._number = number

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Returns which of the steps stay."""
    del context
    return [info.step == self._number() for info in checkpoints]


def not_from_orbax(entry: logging.LogRecord) -> bool:
  """Filters out Orbax's tracebacks: its errors are raised or logged here."""
  return f'{os.sep}orbax{os.sep}' not in entry.pathname
