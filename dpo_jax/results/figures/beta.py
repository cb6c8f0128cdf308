"""Metric against beta: where the best beta of each loss lies.

Comes in: a report. Goes out: the data of the figure `beta`: a panel per
measure, a line per loss, the cells of the table with their intervals. None if
no loss has two values of beta. Draws nothing.
"""

import itertools
from typing import Any

from dpo_jax.results import measures
from dpo_jax.results.figures import looks, series, style, units
from dpo_jax.results.figures.report import Report

# Without --metrics. Losses of different betas do not compare.
_DEFAULT = ('rewards/accuracies', 'rewards/margins', 'kl', 'displacement')


def data(report: Report) -> dict[str, Any] | None:
  """A line per loss, or per loss and other keys that differ."""
  lines = _lines(report)
  if not any(len(each) > 1 for each in lines.values()):
    return None
  lines = {key: each for key, each in lines.items() if len(each) > 1}
  shown, context, note = _choose(report, lines)
  panels = []
  for measure in measures_of(report):
    drawn = [
      made
      for look in (*context, *shown)
      if (made := line(report, lines[look.label], look, measure))
    ]
    if drawn:
      for each in drawn:
        each['context'] = each['colour'] == style.PALE
      panels.append(
        {
          'title': measure.label,
          'metric': measure.name,
          'x_label': 'β',
          'x_scale': 'log',
          'y_label': units.unit(measure.name),
          'series': drawn,
        }
      )
  if not panels:
    return None
  drawn = [each for panel in panels for each in panel['series']]
  note = f'{note} {series.interval_note(drawn)}'.strip()
  entries = looks.entries(shown, context)
  return {
    'caption': f'Held-out metrics after training against β. {note}',
    'note': note,
    'panels': panels,
    'columns': {'narrow': 2, 'wide': 4},
    'legend': [series.entry(look) for look in entries],
    'scale': None,
  }


def _lines(report: Report) -> dict[str, list[looks.Look]]:
  """Label of a line -> its rows by beta, which is above 0."""
  lines = {}
  for row in range(len(report.table.rows)):
    config = report.table.rows[row].group.runs[0].config
    loss, beta = looks.loss_label(config), looks.beta_of(config)
    if beta is not None and beta > 0:
      rest = looks.rest_of(report.table, row, looks.TERMS, looks.BETA)
      label = ', '.join(part for part in (loss, rest) if part)
      look = looks.Look(row, label, loss, rest, beta, style.COLOURS[0])
      lines.setdefault(label, []).append(look)
  for line in lines.values():
    line.sort(key=lambda look: look.beta)
  return lines


def _choose(report: Report, lines):
  """(lines in full, pale ones, a sentence on the choice)."""
  kept = looks.best_losses(report.table)
  firsts = [line[0] for line in lines.values()]
  own = [look for look in firsts if look.loss in kept]
  shown = looks.styled(own, kept)
  context = [looks.pale(look) for look in firsts if look.loss not in kept]
  if len(shown) <= looks.MAX_ROWS:
    num = len({look.loss for look in firsts})
    best = looks.by_score(report.table, itertools.chain(*lines.values())).by
    note = f'Shown: the {len(kept)} of {num} losses with the {best}.'
    return shown, context, note if context else ''
  # Other keys differ too: the best line of each loss.
  order = looks.by_score(report.table, itertools.chain(*lines.values()))
  label_of = {look.row: label for label, line in lines.items() for look in line}
  loss_of = {look.label: look.loss for look in shown}
  best = {}
  for row in order.rows:
    if label_of[row] in loss_of:
      best.setdefault(loss_of[label_of[row]], label_of[row])
  note = f'Shown: of each loss the line with the {order.by}.'
  context += [
    looks.pale(look) for look in shown if look.label not in best.values()
  ]
  shown = [look for look in shown if look.label in best.values()]
  return looks.distinct(shown), context, note


def measures_of(report: Report):
  """The measures of the panels: those of --metrics, or a few."""
  if report.named:
    return report.table.measures
  return [
    measure for measure in report.table.measures if measure.name in _DEFAULT
  ] or [measures.LOSS]


def line(report: Report, own, look: looks.Look, measure):
  """The cells of one line; None if nothing was measured."""
  rows = [report.table.rows[each.row] for each in own]
  cells = [row.cells.get((measure.label, 'after')) for row in rows]
  points = [
    (each.beta, cell, row)
    for each, cell, row in zip(own, cells, rows)
    if cell is not None and cell.value is not None
  ]
  if not points:
    return None
  runs = [run for _, _, row in points for run in row.group.runs]
  # Two seeds have an interval that hides the panel.
  known = [
    cell.over == 'prompts' or cell.num_seeds >= series.MIN_BAND
    for _, cell, _ in points
  ]
  ends = [
    (cell.low, cell.high) if fine else (None, None)
    for fine, (_, cell, _) in zip(known, points)
  ]
  overs = [cell.over for fine, (_, cell, _) in zip(known, points) if fine]
  return series.describe(look, runs, report.folder) | {
    'beta': None,
    'x': series.numbers(beta for beta, _, _ in points),
    'y': series.numbers(cell.value for _, cell, _ in points),
    'low': series.numbers(low for low, _ in ends),
    'high': series.numbers(high for _, high in ends),
    # One of both if some betas have several seeds and others one.
    'over': ' or '.join(sorted(set(overs) - {''}, reverse=True)),
    'num_seeds': max(cell.num_seeds for _, cell, _ in points),
  }
