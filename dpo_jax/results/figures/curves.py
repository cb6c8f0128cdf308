"""Learning curves: metrics against the step, held-out and training.

Comes in: a report. Goes out: the data of the figure `curves`: two panels per
measure, a line per row, the mean over its seeds. Draws nothing.
"""

from typing import Any

from dpo_jax.results import cells, collect, measures
from dpo_jax.results.figures import looks, series, units
from dpo_jax.results.figures.report import Report

_SPLITS = {'eval': 'held-out', 'train': 'training'}
_IN_ONE_LINE = 4  # panels of the wide figure


def data(report: Report) -> dict[str, Any]:
  """One panel per measure and split; those that no run reports are absent."""
  table = report.table
  runs = [run for row in table.rows for run in row.group.runs]
  reported = cells.reported(runs, *_SPLITS) | {measures.LOSS.name}
  drawn = [
    measure
    for measure in table.measures
    if measure.plotted and measure.name in reported
  ] or list(table.measures[:1])
  splits = [s for s in _SPLITS if any(run.records.get(s) for run in runs)]
  splits = splits or ['eval']
  plan = looks.make_plan(table)
  panels = [
    _panel(report, plan, measure, split)
    for measure in drawn
    for split in splits
  ]
  shown = [each for panel in panels for each in panel['series']]
  is_relative = any(panel['relative'] for panel in panels)
  note = f'{plan.note} {series.interval_note(shown)}'.strip()
  num = len(splits)
  by_split = [
    measure * num + split
    for split in range(num)
    for measure in range(len(drawn))
  ]
  in_one = len(drawn) <= _IN_ONE_LINE
  return {
    'caption': f'Metrics against the number of updates. {note} Training is '
    'averaged in bins of equally many updates.'
    + (' Losses are shares of the held-out loss at step 0.' * is_relative),
    'note': note,
    'panels': panels,
    'columns': {'narrow': 2, 'wide': len(drawn) if in_one else _IN_ONE_LINE},
    'order_wide': by_split if in_one else None,
    **report.legend(plan),
  }


def _panel(report: Report, plan: looks.Plan, measure, split: str):
  drawn, relative = [], _is_relative(report.table, measure.name)
  # Pale lines of small batches would be a grey area.
  context = plan.context if split == 'eval' else ()
  for look in (*context, *plan.looks):
    group = report.table.rows[look.row].group
    lines = series.by_seed(
      group, lambda run: _read(run, split, measure.name, relative)
    )
    if lines:
      made = series.over_seeds(lines, plan.thin and split == 'eval')
      if split == 'train':
        # A batch is small: its band hides the held-out panels' message.
        num = len(made['x'])
        made |= {'low': [None] * num, 'high': [None] * num, 'over': ''}
      drawn.append(
        series.describe(look, group.runs, report.folder)
        | made
        | {'context': look in plan.context, 'markers': split == 'eval'}
      )
  return {
    'title': f'{measure.label}, {_SPLITS[split]}',
    'metric': measure.name,
    'relative': relative,
    'x_label': units.UPDATES,
    'x_whole': True,
    'y_label': 'of its start' if relative else units.unit(measure.name),
    'series': drawn,
  }


def _is_relative(table: cells.Table, name: str) -> bool:
  """Whether losses of several kinds are drawn as shares of their start.

  Their units differ: DPO starts at 0.69, IPO at 1 / (4 beta^2).
  """
  runs = [run for row in table.rows for run in row.group.runs]
  starts = [_start(run, name) for run in runs]
  if name != measures.LOSS.name or not starts or min(starts) <= 0:
    return False
  return max(starts) > 1.01 * min(starts)


def _start(run: collect.Run, name: str) -> float:
  return run.records.get('eval', {}).get(0, {}).get(name, 0.0)


def _read(run: collect.Run, split: str, name: str, relative: bool):
  points = series.read(run, split, name)
  return points._replace(y=points.y / _start(run, name)) if relative else points
