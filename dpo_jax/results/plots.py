"""Runs -> figure: loss, accuracy and margin against the step, PDF and PNG.

Comes in: the rows of a `Table`. Goes out: the bytes of both files, without a
date, so that the same runs and libraries give the same bytes. Each row has a
colour, a dash pattern and a marker; a thick line is the mean over seeds, a thin
one is a seed. Needs no display and writes no files.
"""

import io
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure, lines, ticker

from dpo_jax.results import cells, collect, measured, measures, tables

_SPLITS = {'eval': 'held-out', 'train': 'training'}
# Okabe and Ito's colours (jfly.uni-koeln.de/color), which colour-blind readers
# can tell apart. In this order, neighbours differ in lightness too.
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
_NUM_BINS = 30  # points of a training curve; more are averaged in bins
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
    table: a split or a measure that no row has gets no panel.

  Returns:
    {'curves.pdf': bytes, 'curves.png': bytes}, the PNG at 200 dots per inch.
  """
  runs = [run for row in table.rows for run in row.group.runs]
  reported = cells.reported(runs, *_SPLITS) | {measures.LOSS.name}
  drawn = [
    measure
    for measure in table.measures
    if measure.plotted and measure.name in reported
  ]
  splits = [s for s in _SPLITS if any(run.records.get(s) for run in runs)]
  # A user's matplotlibrc must not change the figure.
  with matplotlib.rc_context({'text.usetex': False, **_STYLE}):
    drawing = _draw(table, splits or ['eval'], drawn or table.measures[:1])
    png, pdf = io.BytesIO(), io.BytesIO()
    drawing.savefig(png, format='png', dpi=200, metadata={'Software': None})
    # A date, or a library's version, would change the bytes.
    dateless = {'CreationDate': None, 'Creator': None, 'Producer': None}
    drawing.savefig(pdf, format='pdf', metadata=dateless)
  return {'curves.pdf': pdf.getvalue(), 'curves.png': png.getvalue()}


def _draw(table: cells.Table, splits, drawn) -> figure.Figure:
  """One line of panels per split, one column per measure in `drawn`."""
  looks = _looks(table)
  drawing = figure.Figure(
    figsize=(2.6 * len(drawn) + 0.6, 1.9 * len(splits) + 0.9),
    layout='constrained',
  )
  axes = drawing.subplots(len(splits), len(drawn), squeeze=False, sharex=True)
  for line, split in zip(axes, splits):
    for panel, measure in zip(line, drawn):
      for row, look in zip(table.rows, looks):
        _draw_row(panel, row, split, measure.name, look)
      panel.yaxis.set_major_locator(ticker.MaxNLocator(5))
      panel.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
      panel.margins(x=0.02, y=0.06)
    # Only the leftmost panel names the split.
    line[0].set_ylabel(_SPLITS[split], color='#333333', labelpad=6)
  for panel, measure in zip(axes[0], drawn):
    panel.set_title(measure.label, loc='left', fontsize=9, fontweight='bold')
  for panel in axes[-1]:
    panel.set_xlabel('step', color='#333333')
  handles = [
    lines.Line2D([], [], label=label, **_line(look), markersize=4)
    for label, look in zip(_legend(table), looks)
  ]
  # About 22 half-size characters fit above one panel.
  longest = max(len(label) for label in _legend(table))
  drawing.legend(
    handles=handles,
    loc='outside upper left',
    ncols=max(1, min(len(handles), int(22 * len(drawn) / (longest / 2 + 6)))),
    frameon=False,
    handlelength=3.2,
  )
  return drawing


def _draw_row(panel, row: cells.Row, split: str, name: str, look: _Look):
  """Draws a thin line per seed and a thick one for their mean."""
  seeds = [
    points
    for run in row.group.runs
    if (points := series(run, split, name))[0].size
  ]
  line = _line(look)
  if len(seeds) > 1:
    for steps, values in seeds:
      # Behind the mean, and pale.
      panel.plot(
        steps, values, color=look.colour, linewidth=0.6, alpha=0.45, zorder=2
      )
  if seeds:
    steps, values = mean_series(seeds)
    if split == 'train':
      line |= {'marker': ''}
    # At most 12 markers: more would merge into a band.
    every = max(1, -(-len(steps) // 12))
    panel.plot(steps, values, markersize=3.6, markevery=every, zorder=3, **line)


def series(run: collect.Run, split: str, name: str):
  """Returns the steps and values of one metric, rank 1 each.

  Training is averaged in at most `_NUM_BINS` bins of equally many entries; a
  bin is drawn at the mean of its steps. Entries without the metric are left
  out, and so is the accuracy of a policy that still equals its reference.
  """
  entries = run.records.get(split, {}).items()
  points = [
    (step, entry[name])
    for step, entry in entries
    if name in entry and not measured.is_tie(step, name, entry[name])
  ]
  if not points:
    return np.zeros(0), np.zeros(0)
  steps, values = np.array(points, np.float64).T
  if split == 'train' and len(steps) > _NUM_BINS:
    width = -(-len(steps) // _NUM_BINS)  # rounded up
    starts = np.arange(0, len(steps), width)
    counts = np.diff(np.append(starts, len(steps)))
    steps = np.add.reduceat(steps, starts) / counts
    values = np.add.reduceat(values, starts) / counts
  return steps, values


def mean_series(seeds):
  """Returns the steps that all seeds have and the mean there; rank 1 each.

  If they share no step, the longest seed stands for all.
  """
  shared = seeds[0][0]
  for steps, _ in seeds[1:]:
    shared = np.intersect1d(shared, steps)
  if not shared.size:
    return max(seeds, key=lambda points: len(points[0]))
  values = [values[np.isin(steps, shared)] for steps, values in seeds]
  return shared, np.mean(values, axis=0)


def _looks(table: cells.Table) -> list[_Look]:
  """Ordered shades if the only label is a number, else fixed colours."""
  num, numbers = len(table.rows), table.labels.numbers
  colours = [_COLOURS[index % len(_COLOURS)] for index in range(num)]
  if num > len(_COLOURS) or (numbers and num > 2):
    # Viridis without its yellow end, which vanishes on white.
    shades = matplotlib.colormaps['viridis'](np.linspace(0.0, 0.82, num))
    # Ranks, so that unevenly spaced values still differ in shade.
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
