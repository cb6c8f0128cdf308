"""Runs -> figure: loss, accuracy and margin against the step, PDF and PNG.

Comes in: the rows of a `Table`. Goes out: the bytes of both files, without a
date, so that the same runs and libraries give the same bytes. A colour, a dash
pattern and a marker a row; thick lines are means over seeds, thin ones seeds.
Needs no display and writes no files.
"""

import io
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure, lines, ticker

from dpo_jax.results import cells, collect, tables

_METRICS = ('loss', 'accuracy', 'margin')
_SPLITS = {'eval': 'held-out', 'train': 'training'}
# Okabe and Ito's colours, told apart by colour-blind readers (jfly.uni-koeln.
# de/color), in an order whose neighbours differ in lightness too
_COLOURS = (
  '#0072B2',
  '#E69F00',
  '#000000',
  '#009E73',
  '#D55E00',
  '#56B4E9',
  '#CC79A7',
)
_DASHES = (
  (0, ()),
  (0, (5, 1.6)),
  (0, (1.2, 1.2)),
  (0, (6, 1.6, 1.2, 1.6)),
  (0, (10, 2)),
  (0, (6, 1.2, 1.2, 1.2, 1.2, 1.2)),
)
_MARKERS = 'osD^vph'
_GREY = '#6b6b6b'
_NUM_BINS = 30  # points of a training curve: more are averaged in bins
_STYLE = {
  'font.family': 'sans-serif',
  'font.sans-serif': ['DejaVu Sans'],  # comes with matplotlib
  'font.size': 8,
  'axes.edgecolor': _GREY,
  'axes.linewidth': 0.6,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.axisbelow': True,
  'axes.grid': True,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.6,
  'xtick.color': _GREY,
  'ytick.color': _GREY,
  'xtick.labelcolor': '#333333',
  'ytick.labelcolor': '#333333',
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'xtick.major.size': 2.5,
  'ytick.major.size': 2.5,
  'pdf.fonttype': 42,  # TrueType: journals refuse Type 3
  'svg.hashsalt': 'dpo_jax',
}


class _Look(NamedTuple):
  """How a row is drawn."""

  colour: str | tuple
  dashes: tuple
  marker: str


def curves(table: cells.Table) -> dict[str, bytes]:
  """Draws the figure.

  Args:
    table: its rows; splits and metrics that none of them has get no panel.

  Returns:
    {'curves.pdf': bytes, 'curves.png': bytes}, the PNG at 200 dots an inch.
  """
  runs = [run for row in table.rows for run in row.group.runs]
  metrics = [
    metric
    for metric in _METRICS
    if metric == 'loss' or any(cells.METRICS[metric] in _names(r) for r in runs)
  ]
  splits = [s for s in _SPLITS if any(run.records.get(s) for run in runs)]
  with matplotlib.rc_context({'text.usetex': False, **_STYLE}):
    drawing = _draw(table, splits or ['eval'], metrics)
    png, pdf = io.BytesIO(), io.BytesIO()
    drawing.savefig(png, format='png', dpi=200, metadata={'Software': None})
    dateless = {'CreationDate': None, 'Creator': None, 'Producer': None}
    drawing.savefig(pdf, format='pdf', metadata=dateless)
  return {'curves.pdf': pdf.getvalue(), 'curves.png': png.getvalue()}


def _names(run: collect.Run) -> set[str]:
  return {
    name
    for split in _SPLITS
    for entry in run.records.get(split, {}).values()
    for name in entry
  }


def _draw(table: cells.Table, splits, metrics) -> figure.Figure:
  looks = _looks(table)
  drawing = figure.Figure(
    figsize=(2.6 * len(metrics) + 0.6, 1.9 * len(splits) + 0.9),
    layout='constrained',
  )
  axes = drawing.subplots(len(splits), len(metrics), squeeze=False, sharex=True)
  for line, split in zip(axes, splits):
    for panel, metric in zip(line, metrics):
      for row, look in zip(table.rows, looks):
        _draw_row(panel, row, split, cells.METRICS[metric], look)
      panel.yaxis.set_major_locator(ticker.MaxNLocator(5))
      panel.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
      panel.margins(x=0.02, y=0.06)
    line[0].set_ylabel(_SPLITS[split], color='#333333', labelpad=6)
  for panel, metric in zip(axes[0], metrics):
    panel.set_title(metric, loc='left', fontsize=9, fontweight='bold')
  for panel in axes[-1]:
    panel.set_xlabel('step', color='#333333')
  handles = [
    lines.Line2D([], [], label=label, **_line(look), markersize=4)
    for label, look in zip(_legend(table), looks)
  ]
  longest = max(len(label) for label in _legend(table))
  drawing.legend(
    handles=handles,
    loc='outside upper left',
    ncols=max(1, min(len(handles), int(22 * len(metrics) / (longest / 2 + 6)))),
    frameon=False,
    handlelength=3.2,
  )
  return drawing


def _draw_row(panel, row: cells.Row, split: str, name: str, look: _Look):
  """Thin lines for seeds, a thick one for their mean."""
  seeds = [
    points
    for run in row.group.runs
    if (points := series(run, split, name))[0].size
  ]
  line = _line(look)
  if len(seeds) > 1:
    for steps, values in seeds:
      panel.plot(
        steps, values, color=look.colour, linewidth=0.6, alpha=0.45, zorder=2
      )
  if seeds:
    steps, values = mean_series(seeds)
    if split == 'train':
      line |= {'marker': ''}
    every = max(1, -(-len(steps) // 12))
    panel.plot(steps, values, markersize=3.6, markevery=every, zorder=3, **line)


def series(run: collect.Run, split: str, name: str):
  """Steps and values of one metric, rank 1; training averaged in bins.

  A bin holds equally many entries, and stands at the mean of their steps;
  there are `_NUM_BINS` at most. Entries without the metric are left out, and
  the accuracy of a policy that still equals its reference.
  """
  entries = run.records.get(split, {}).items()
  found = [
    (step, entry[name])
    for step, entry in entries
    if name in entry and not cells.is_tie(step, name, entry[name])
  ]
  if not found:
    return np.zeros(0), np.zeros(0)
  steps, values = np.array(found, np.float64).T
  if split == 'train' and len(steps) > _NUM_BINS:
    width = -(-len(steps) // _NUM_BINS)
    starts = np.arange(0, len(steps), width)
    counts = np.diff(np.append(starts, len(steps)))
    steps = np.add.reduceat(steps, starts) / counts
    values = np.add.reduceat(values, starts) / counts
  return steps, values


def mean_series(seeds):
  """The mean over seeds at the steps that all of them have; rank 1 each.

  Where they share none, the longest seed stands for them.
  """
  shared = seeds[0][0]
  for steps, _ in seeds[1:]:
    shared = np.intersect1d(shared, steps)
  if not shared.size:
    return max(seeds, key=lambda points: len(points[0]))
  values = [values[np.isin(steps, shared)] for steps, values in seeds]
  return shared, np.mean(values, axis=0)


def _looks(table: cells.Table) -> list[_Look]:
  """Ordered shades where the only label is a number, else fixed colours."""
  num, numbers = len(table.rows), table.labels.numbers
  colours = [_COLOURS[index % len(_COLOURS)] for index in range(num)]
  if num > len(_COLOURS) or (numbers and num > 2):
    # viridis without its yellow end, which vanishes on white
    shades = matplotlib.colormaps['viridis'](np.linspace(0.0, 0.82, num))
    order = np.argsort(np.argsort(numbers)) if numbers else np.arange(num)
    colours = [tuple(shades[rank]) for rank in order]
  return [
    _Look(
      colour,
      _DASHES[index % len(_DASHES)],
      _MARKERS[index % len(_MARKERS)],
    )
    for index, colour in enumerate(colours)
  ]


def _line(look: _Look) -> dict:
  return {
    'color': look.colour,
    'linestyle': look.dashes,
    'linewidth': 1.5,
    'marker': look.marker,
    'markeredgecolor': 'white',
    'markeredgewidth': 0.5,
  }


def _legend(table: cells.Table) -> list[str]:
  return [tables.row_name(table, index) for index in range(len(table.rows))]
