"""Metric against a swept number other than beta, such as label noise.

Comes in: a report. Goes out: the data of the figure `swept`: a panel per
measure, a line per loss and other keys that differ, the cells of the table with
their intervals. None if no other number has two values. Draws nothing.
"""

from typing import Any

from dpo_jax.results.figures import beta, looks, series, style, units
from dpo_jax.results.figures.report import Report


def data(report: Report) -> dict[str, Any] | None:
  """A line per row of the table without the swept key."""
  key = _key(report.table)
  if key is None:
    return None
  lines = _lines(report, key)
  firsts = [line[0] for line in lines.values()]
  best = looks.by_score(report.table, firsts)
  kept = best.rows[: len(style.COLOURS)]
  shown = looks.distinct(
    looks.coloured([look for look in firsts if look.row in kept])
  )
  context = [looks.pale(look) for look in firsts if look.row not in kept]
  name = report.table.labels.names[report.table.labels.keys.index(key)]
  panels = []
  for measure in beta.measures_of(report):
    drawn = [
      made
      for look in (*context, *shown)
      if (made := beta.line(report, lines[look.label], look, measure))
    ]
    for each in drawn:
      each['context'] = each['colour'] == style.PALE
    if drawn:
      panels.append(
        {
          'title': measure.label,
          'metric': measure.name,
          'x_label': name,
          'x_scale': _scale(lines.values()),
          'y_label': units.unit(measure.name),
          'series': drawn,
        }
      )
  if not panels:
    return None
  note = series.interval_note([s for p in panels for s in p['series']])
  if context:
    note = (
      f'Shown: the {len(shown)} of {len(firsts)} lines with the {best.by}. '
      f'{note}'
    )
  return {
    'caption': f'Held-out metrics after training against {key}. {note}',
    'note': note,
    'panels': panels,
    'columns': {'narrow': 2, 'wide': 4},
    'legend': [series.entry(x) for x in looks.entries(shown, context)],
    'scale': None,
  }


def _key(table) -> str | None:
  """The label column of numbers, beta left out, with most values."""
  most, chosen = 1, None
  left_out = {looks.BETA, looks.TERMS, *looks.implied(table)}
  for place, key in enumerate(table.labels.keys):
    values = {row.label[place] for row in table.rows}
    if key not in left_out and len(values) > most and all(map(_number, values)):
      most, chosen = len(values), key
  return chosen


def _lines(report: Report, key: str) -> dict[str, list[looks.Look]]:
  """Label of a line -> its rows by the number, which stands in for beta."""
  lines, place = {}, report.table.labels.keys.index(key)
  for row in range(len(report.table.rows)):
    entry = report.table.rows[row]
    loss = looks.loss_label(entry.group.runs[0].config)
    rest = looks.rest_of(report.table, row, looks.TERMS, key)
    # A key that the loss does not have says nothing of it.
    parts = [part for part in rest.split(', ') if not part.endswith(' = none')]
    label = ', '.join(part for part in (loss, *parts) if part)
    number = float(entry.label[place])
    look = looks.Look(row, label, loss, rest, number, style.COLOURS[0])
    lines.setdefault(label, []).append(look)
  for line in lines.values():
    line.sort(key=lambda look: look.beta)
  return lines


def _scale(lines) -> str:
  """'log' if the numbers are above 0 and span more than a decade."""
  values = [look.beta for line in lines for look in line]
  return 'log' if min(values) > 0 and max(values) > 10 * min(values) else ''


def _number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True
