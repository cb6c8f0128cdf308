"""The lines of the scorecard: their claims, and what runs them."""

from collections.abc import Callable
from typing import NamedTuple

import kills
from score import Line


class Row(NamedTuple):
  """One line of the scorecard."""

  claim: str
  run: Callable[[Line], None]


LINES = {
  'R1': Row('survives SIGKILL', kills.survives_kills),
  'R2': Row('bitwise resume', kills.resumes_bitwise),
  'R4': Row('preemption', kills.hears_signals),
}
