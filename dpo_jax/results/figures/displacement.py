"""Displacement: the log-ratios of chosen and rejected answers against the step.

Comes in: a report. Goes out: the data of the figure `displacement`: a panel
per side, a line per row, the mean of log policy - log reference over held-out
answers, in nats. None if no run reports logps. Draws nothing.

That both lines fall is common: the loss sees their difference only
(arXiv:2402.13228, arXiv:2410.08847).
"""

from typing import Any

import numpy as np

from dpo_jax.results import collect
from dpo_jax.results.figures import looks, series, units
from dpo_jax.results.figures.report import Report

_SIDES = ('chosen', 'rejected')


def data(report: Report) -> dict[str, Any] | None:
  """Two panels with one scale."""
  plan = looks.make_plan(report.table)
  panels = [
    panel for side in _SIDES if (panel := _panel(report, plan, side))['series']
  ]
  if not panels:
    return None
  drawn = [each for panel in panels for each in panel['series']]
  note = f'{plan.note} {series.interval_note(drawn)}'.strip()
  return {
    'caption': 'Mean log-ratio log π(y)/π_ref(y) of held-out chosen and '
    f'rejected answers against the number of updates. {note} Below 0: less '
    'likely than under the reference. Without saved scores of a reference, '
    'the change since step 0.',
    'note': note,
    'panels': panels,
    'columns': {'narrow': 2, 'wide': 2},
    **report.legend(plan),
  }


def _panel(report: Report, plan: looks.Plan, side: str) -> dict[str, Any]:
  drawn = []
  for look in (*plan.context, *plan.looks):
    group = report.table.rows[look.row].group
    lines = series.by_seed(group, lambda run: _log_ratio(run, side))
    if lines:
      drawn.append(
        series.describe(look, group.runs, report.folder)
        | series.over_seeds(lines, plan.thin)
        | {'context': look in plan.context}
      )
  return {
    'title': f'{side} answers',
    'x_label': units.UPDATES,
    'x_whole': True,
    'y_label': 'log-ratio (nats)' if side == _SIDES[0] else '',
    'share_y': 'log-ratio',
    'guides': [{'y': 0.0}],
    'series': drawn,
  }


def _log_ratio(run: collect.Run, side: str) -> series.Points:
  """The mean log-ratio of one run against its steps."""
  logps = series.read(run, 'eval', f'logps/{side}')
  if not logps.x.size:
    return logps
  start = _reference(run, side)
  if start is None:
    if logps.x[0] != 0:
      return series.Points(np.zeros(0), np.zeros(0))
    start = logps.y[0]
  return logps._replace(y=logps.y - start)


def _reference(run: collect.Run, side: str) -> float | None:
  """The mean log-probability of the side under the reference, in nats.

  Every evaluation of a run scores the same answers, so that of one step is
  that of all.
  """
  if run.examples is None:
    return None
  arrays = run.examples.arrays
  weight = arrays.get('weight', np.ones(len(run.examples.uid)))
  if 'desirable' in arrays:
    wanted = arrays['desirable'].astype(bool)
    weight = weight * (wanted if side == 'chosen' else ~wanted)
  name = 'reference' if 'desirable' in arrays else f'reference_{side}'
  values = arrays.get(name)
  # Without a reference the file holds zeros.
  if values is None or not np.any(values) or not weight.sum() > 0:
    return None
  return float(np.average(values, weights=weight))
