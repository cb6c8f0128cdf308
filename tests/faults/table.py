"""The lines of the scorecard: their claims, and what runs them."""

from collections.abc import Callable
from typing import NamedTuple

import artefacts
import changed
import chaos
import corruption
import crews
import disk
import ends
import kills
import ledgers
import mutations
import numerics
import stopped
import suites
from score import Line


class Row(NamedTuple):
  """One line of the scorecard."""

  claim: str
  run: Callable[[Line], None]


LINES = {
  'R1': Row('survives SIGKILL', kills.survives_kills),
  'R2': Row('bitwise resume', kills.resumes_bitwise),
  'R3': Row('elastic', crews.moves),
  'R4': Row('preemption', stopped.hears_signals),
  'R5': Row('storage faults', disk.survives_storage),
  'R6': Row('corruption', corruption.survives_corruption),
  'R7': Row('processes', ends.ends_together),
  'R8': Row('numerics', numerics.halts),
  'R9': Row('inputs', mutations.are_read_or_refused),
  'R10': Row('configs', suites.of('R10')),
  'R11': Row('hostile artefacts', artefacts.are_refused),
  'R12': Row('nothing lost silently', ledgers.balance),
  'R13': Row('honest reproducibility', changed.is_said),
  'R14': Row('chaos', chaos.survives_chaos),
  'R15': Row('restore strictness', suites.of('R15')),
}
