"""Differences from the baseline with their intervals, a line per row.

Comes in: a report. Goes out: the data of the figure `differences`, from the
table's differences, largest first, and its drawing. None if no row is compared.
A full marker is a difference that stays significant after Holm.
"""

import textwrap
from typing import Any

from matplotlib import figure, ticker

from dpo_jax.results import measures
from dpo_jax.results.figures import looks, series, style, units
from dpo_jax.results.figures.report import Report

LEVEL = 0.05
_ROW = 0.135  # inches
_CHARACTER = 0.058  # inches of a mean letter at 7 points


def data(report: Report) -> dict[str, Any] | None:
  """A panel: of accuracy, or of the first measure that has differences."""
  table = report.table
  wanted = [measures.ACCURACY.label, *(m.label for m in table.measures)]
  if report.named:
    wanted = [measure.label for measure in table.measures]
  by_metric: dict[str, list] = {}
  for each in table.differences:
    by_metric.setdefault(each.metric, []).append(each)
  metric = next((label for label in wanted if label in by_metric), None)
  if metric is None:
    return None
  chosen = sorted(by_metric[metric], key=lambda d: -d.interval.mean)
  name = next(m.name for m in table.measures if m.label == metric)
  base = _label(table, chosen[0].baseline)
  overs = sorted({each.over for each in chosen})
  note = (
    f'Bar: 95 % interval over {", or ".join(overs)}. Full marker: significant '
    f'after Holm over {len(chosen)} rows (level {LEVEL:g}).'
  )
  return {
    'caption': f'Held-out {metric} after training, minus that of {base}. '
    f'{note}',
    'note': note,
    'panels': [
      {
        'title': f'{metric}, minus {base}',
        'metric': name,
        'x_label': units.unit(name),
        'y_label': '',
        'series': [
          _series(report, place, each) for place, each in enumerate(chosen)
        ],
      }
    ],
  }


def draw(data: dict[str, Any], width: float) -> figure.Figure:
  """Rows from top to bottom, with a line at 0.

  Args:
    data: as `data` returns it.
    width: in inches.
  """
  (panel,) = data['panels']
  rows = panel['series']
  lines = textwrap.wrap(data['note'], int((width - 0.2) / _CHARACTER))
  height = _ROW * len(rows) + 0.7 + 0.13 * len(lines)
  drawing = figure.Figure(figsize=(width, height), layout='constrained')
  axis = drawing.subplots()
  axis.axvline(0, color=style.GREY, linewidth=0.7, zorder=1)
  for row in rows:
    ((x, y, low, high),) = zip(row['x'], row['y'], row['low'], row['high'])
    if None not in (low, high):
      axis.hlines(y, low, high, color=row['colour'], linewidth=0.9, zorder=2)
    face = row['colour'] if row['significant'] else 'white'
    axis.plot(
      [x],
      [y],
      'o',
      color=row['colour'],
      markerfacecolor=face,
      markersize=3.5,
      zorder=3,
    )
  axis.set_ylim(len(rows) - 0.4, -0.6)
  axis.set_yticks(range(len(rows)), [row['label'] for row in rows])
  axis.grid(False, axis='y')
  axis.tick_params(axis='y', length=0)
  axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
  axis.set_title(panel['title'])
  axis.set_xlabel(panel['x_label'])
  # The note lies below the axes, from the left edge.
  share = (0.13 * len(lines) + 0.05) / height
  drawing.get_layout_engine().set(rect=(0, share, 1, 1 - share))
  drawing.text(0.06 / width, 0.04 / height, '\n'.join(lines), va='bottom')
  return drawing


def _series(report: Report, place: int, each) -> dict[str, Any]:
  """One difference."""
  table = report.table
  config = table.rows[each.row].group.runs[0].config
  look = looks.Look(
    each.row,
    _label(table, each.row),
    looks.loss_label(config),
    '',
    looks.beta_of(config),
    style.COLOURS[0],
  )
  runs = [
    run
    for row in (each.row, each.baseline)
    for run in table.rows[row].group.runs
  ]
  interval = each.interval
  p_holm = series.numbers([each.p_holm])[0]
  return series.describe(look, runs, report.folder) | {
    'x': series.numbers([interval.mean]),
    'y': [place],
    'low': series.numbers([interval.low]),
    'high': series.numbers([interval.high]),
    'p_holm': p_holm,
    'significant': p_holm is not None and p_holm < LEVEL,
  }


def _label(table, row: int) -> str:
  """A row's loss, with what else differs."""
  config = table.rows[row].group.runs[0].config
  rest = looks.rest_of(table, row, looks.TERMS).split(', ')
  parts = [part for part in rest if part and not part.endswith(' = none')]
  if looks.TERMS in table.labels.keys or not parts:
    parts.insert(0, looks.loss_label(config))
  return ', '.join(parts)
