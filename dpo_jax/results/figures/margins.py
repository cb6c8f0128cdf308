"""Distributions of margins over held-out comparisons, before and after.

Comes in: a report. Goes out: the data of the figure `margins`: histograms of
log policy(chosen) - log policy(rejected), before and after training, and of
the reward margin after it. None if no run saved comparisons. Draws nothing.
"""

from typing import Any

import numpy as np

from dpo_jax.results import collect
from dpo_jax.results.figures import looks, pooled, series, style
from dpo_jax.results.figures.report import Report

_NUM_BINS = 24
_TAIL = 1.0  # per cent at either end that share the outermost bin
_POLICY = ('policy_chosen', 'policy_rejected')
_REWARD = ('reward_chosen', 'reward_rejected')
_TITLES = {
  _POLICY: 'log-probability margin',
  _REWARD: 'reward margin',
}
BEFORE = 'before training'


def data(report: Report) -> dict[str, Any] | None:
  """A panel per kind of margin."""
  plan = looks.make_plan(report.table)
  panels = [
    panel
    for fields in (_POLICY, _REWARD)
    if (panel := _panel(report, plan, fields)) is not None
  ]
  if not panels:
    return None
  has_before = any(
    each['label'] == BEFORE for panel in panels for each in panel['series']
  )
  parts = [plan.note] if plan.note else []
  if has_before:
    cut = any(panel['cut'] for panel in panels)
    more = ' (cut off at the top)' if cut else ''
    parts.append(f'Grey area: before training, all runs{more}.')
  note = ' '.join(parts).strip()
  entries = [
    entry | {'marker': ''}
    for entry in report.legend(plan)['legend']
    if entry['label'] != looks.CONTEXT
  ]
  return {
    'caption': 'Distribution of margins over held-out comparisons, seeds '
    f'pooled: log π(chosen) - log π(rejected), and the reward margin. {note} '
    'Lines join the centres of bins of one width; the outermost hold the '
    f'{_TAIL:g} % beyond them too. All reward margins are 0 before training '
    'if the policy starts as its reference.',
    'note': note,
    'panels': panels,
    'columns': {'narrow': 2, 'wide': 2},
    'legend': entries,
    'scale': report.legend(plan)['scale'],
  }


def _panel(report: Report, plan: looks.Plan, fields) -> dict[str, Any] | None:
  after = {}
  for look in plan.looks:
    group = report.table.rows[look.row].group
    values = pooled.pool(group, *fields)
    if values is not None:
      after[look] = values
  if not after:
    return None
  every = collect.Group(
    tuple(run for row in report.table.rows for run in row.group.runs)
  )
  before = pooled.pool(every, *fields, get=lambda run: run.first)
  # All margins equal: a spike that hides the others.
  if before is not None and np.ptp(_margin(before, fields)) < 1e-6:
    before = None
  shown = [*after.values(), *([before] if before is not None else [])]
  edges = _edges([_margin(each, fields) for each in shown])
  drawn = []
  if before is not None:
    grey = looks.Look(-1, BEFORE, '', '', None, style.PALE)
    drawn.append(
      _stairs(report, grey, before, fields, edges) | {'mark': 'stairs'}
    )
  drawn += [
    _stairs(report, look, values, fields, edges)
    for look, values in after.items()
  ]
  top = max(y for each in drawn if each['label'] != BEFORE for y in each['y'])
  return {
    'title': _TITLES[fields],
    'x_label': 'nats',
    'y_label': 'share' if fields is _POLICY else '',
    'y_range': [0.0, 1.1 * top],
    'cut': any(y > 1.1 * top for each in drawn for y in each['y']),
    'guides': [{'x': 0.0}],
    'series': drawn,
  }


def _margin(values: pooled.Pooled, fields) -> np.ndarray:
  chosen, rejected = (values.fields[name] for name in fields)
  return chosen - rejected


def _edges(all_values: list[np.ndarray]) -> np.ndarray:
  """Edges of the bins of a panel, [_NUM_BINS + 1]."""
  ends = [np.percentile(v, [_TAIL, 100 - _TAIL]) for v in all_values]
  low, high = min(e[0] for e in ends), max(e[1] for e in ends)
  if not high > low:
    low, high = low - 0.5, high + 0.5
  return np.linspace(low, high, _NUM_BINS + 1)


def _stairs(report: Report, look, values, fields, edges) -> dict[str, Any]:
  margin = np.clip(_margin(values, fields), edges[0], edges[-1])
  counts, _ = np.histogram(margin, edges, weights=values.weight)
  centres = (edges[1:] + edges[:-1]) / 2
  return series.describe(look, values.runs, report.folder) | {
    'mark': 'line',
    'markers': False,
    'x': series.numbers(centres),
    'y': series.numbers(counts / values.weight.sum()),
    'edges': series.numbers(edges),
    'num_seeds': values.num_seeds,
    'num': len(margin),
    'marker': '',
  }
