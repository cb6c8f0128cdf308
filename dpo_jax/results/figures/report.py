"""Report: what every figure is made from.

Comes in: a table, its runs and the output folder. Goes out: the same, with the
legend's part of a figure's data. Draws nothing.
"""

import os
from typing import Any, NamedTuple

from dpo_jax.results import cells, collect, tables
from dpo_jax.results.figures import looks, series


class Report(NamedTuple):
  """A table, and where its files will lie."""

  table: cells.Table
  folder: str | os.PathLike  # paths of runs in the data start there
  named: bool = False  # whether --metrics chose the measures

  def name(self, run: collect.Run) -> str:
    """The run's path from the output folder."""
    return tables.run_name(run, self.folder)

  def legend(self, plan: looks.Plan) -> dict[str, Any]:
    """The parts `legend` and `scale` of a figure's data."""
    scale = None
    if plan.scale is not None:
      values = sorted({look.beta for look in plan.looks})
      low, high = plan.scale
      scale = {'label': 'β', 'low': low, 'high': high, 'log': True}
      scale['values'] = series.numbers(values)
    return {
      'legend': [series.entry(look) for look in plan.entries],
      'scale': scale,
    }
