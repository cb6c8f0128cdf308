"""Data of a figure -> drawing: panels of lines, points and histograms.

Comes in: the data of one figure, as in figures.json, and a width. Goes out: a
matplotlib figure, whose legend lies below the panels. Every number that is
drawn is in the data; this file computes none.
"""

import itertools
import math
import textwrap
from typing import Any

import matplotlib
from matplotlib import colors, figure, lines, ticker

from dpo_jax.results.figures import style

# Inches of the axes and their texts, by the number of panels below each other;
# a single panel is larger.
_PANEL_HEIGHT, _LINE_HEIGHT, _ALONE_HEIGHT = 1.25, 1.5, 1.9
_CHARACTER = 0.058  # inches of a mean letter at 7 points
_HANDLE = 0.48  # inches of a legend's sample and gaps
_ENTRY_HEIGHT = 0.15  # inches of a line of the legend
_MOST_BAND = 3.0  # a band beyond a line, in heights of all lines; then cut
_FEW = 4  # lines in a panel whose bands and thin lines do not clutter


def draw(data: dict[str, Any], width: float) -> figure.Figure:
  """Draws the panels of a figure, row by row.

  Args:
    data: panels, columns {'narrow', 'wide'}, order_wide, legend, scale, note.
    width: in inches.
  """
  is_wide = width > 5
  panels = data['panels']
  if is_wide and data.get('order_wide'):
    panels = [panels[index] for index in data['order_wide']]
  num = min(data['columns']['wide' if is_wide else 'narrow'], len(panels))
  num_lines = -(-len(panels) // num)
  legend = _Legend(data, width)
  height = num_lines * (_LINE_HEIGHT if num_lines == 1 else _PANEL_HEIGHT)
  height = height if len(panels) > 1 else _ALONE_HEIGHT
  bar = 0.45 if data.get('scale') else 0.0
  drawing = figure.Figure(
    figsize=(width, height + legend.height + bar), layout='constrained'
  )
  axes = drawing.subplots(num_lines, num, squeeze=False).ravel()
  for axis, panel in zip(axes, panels):
    draw_panel(axis, panel)
  for axis in axes[len(panels) :]:
    axis.remove()
  _share(axes, panels)
  if data.get('scale'):
    colour_bar(drawing, list(axes[: len(panels)]), data['scale'])
  legend.put(drawing)
  return drawing


def draw_panel(axis, panel: dict[str, Any]) -> None:
  """Draws one panel: guides, pale series, then the others."""
  for guide in panel.get('guides', ()):
    _draw_guide(axis, guide)
  ordered = sorted(panel['series'], key=lambda each: not each.get('context'))
  num = sum(not each.get('context') for each in ordered)
  for each in ordered:
    _DRAW[each.get('mark', 'line')](axis, each, num)
  axis.set_title(panel.get('title', ''))
  axis.set_xlabel(panel['x_label'])
  axis.set_ylabel(panel['y_label'])
  axis.margins(x=0.03, y=0.06)
  axis.yaxis.set_major_locator(ticker.MaxNLocator(4))
  _set_x(axis, panel)
  if panel.get('y_range'):
    axis.set_ylim(*panel['y_range'])
  else:
    _limit(axis, panel['series'])


def _draw_guide(axis, guide: dict[str, Any]) -> None:
  """A thin grey line: at one x, at one y, or from point to point."""
  look = {'color': style.GREY, 'linewidth': 0.7, 'zorder': 1}
  if 'x' in guide:
    axis.axvline(guide['x'], **look)
  elif 'y' in guide:
    axis.axhline(guide['y'], **look)
  else:
    axis.plot(*zip(*guide['points']), **look)


def _set_x(axis, panel: dict[str, Any]) -> None:
  """Scale and ticks of the x axis."""
  if panel.get('x_range'):
    axis.set_xlim(*panel['x_range'])
  if panel.get('x_scale') != 'log':
    whole = panel.get('x_whole', False)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=whole))
    return
  axis.set_xscale('log')
  values = sorted({x for each in panel['series'] for x in each['x']})
  axis.xaxis.set_major_locator(ticker.FixedLocator(_log_ticks(values)))
  axis.xaxis.set_minor_locator(ticker.NullLocator())
  axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))


def _log_ticks(values: list[float]) -> list[float]:
  """The ascending values if their labels fit, else round numbers."""
  least = (values[-1] / values[0]) ** 0.2  # five labels fit in a panel
  gaps = [two / one for one, two in itertools.pairwise(values)]
  if min(gaps, default=1.0) >= 0.999 * least:
    return values
  low, high = (math.floor(math.log10(v)) for v in (values[0], values[-1]))
  for factors in ((1,), (1, 3), (1, 2, 5)):
    ticks = [
      factor * 10.0**power
      for power in range(low, high + 1)
      for factor in factors
      if values[0] * 0.999 <= factor * 10.0**power <= values[-1] * 1.001
    ]
    if len(ticks) > 2:
      break
  return ticks


def _limit(axis, all_series: list[dict[str, Any]]) -> None:
  """Limits of y by the lines: a band may be wider than half a panel."""
  values = [y for each in all_series for y in each['y'] if y is not None]
  for each in all_series:
    for _, y in each.get('seeds', ()):
      values += [value for value in y if value is not None]
  if not values:
    return
  low, high = min(values), max(values)
  room = (high - low) or abs(high) or 1.0
  ends = [
    end
    for each in all_series
    for end in [*each.get('low', ()), *each.get('high', ())]
    if end is not None and not each.get('context')
  ]
  low_end = max(min([low, *ends]), low - _MOST_BAND * room)
  high_end = min(max([high, *ends]), high + _MOST_BAND * room)
  pad = 0.06 * (high_end - low_end or room)
  bottom = low_end - pad
  # Shares and counts begin at 0, and not below it.
  if low_end >= 0 and bottom < 0:
    bottom = 0.0
  axis.set_ylim(bottom, high_end + pad)


def _draw_line(axis, each: dict[str, Any], num: int) -> None:
  x, y = _present(each['x'], each['y'])
  if each.get('context'):
    axis.plot(x, y, color=each['colour'], linewidth=0.45, zorder=1.5)
    return
  for seed_x, seed_y in each.get('seeds', ()):
    axis.plot(
      *_present(seed_x, seed_y),
      color=each['colour'],
      linewidth=0.5,
      alpha=0.5,
      zorder=2,
    )
  band = [point for point in _band(each) if None not in point]
  if len(band) > 1:
    axis.fill_between(
      *zip(*band),
      color=each['colour'],
      alpha=0.2 if num == 1 else 0.14 if num <= _FEW else 0.07,
      linewidth=0,
      zorder=2,
    )
  # At most 12 markers: more would merge into a line.
  every = max(1, -(-len(x) // 12))
  marker = each['marker'] if each.get('markers', True) else ''
  axis.plot(
    x, y, markevery=every, zorder=3, **_look({**each, 'marker': marker})
  )


def _draw_points(axis, each: dict[str, Any], num: int) -> None:
  """Markers with error bars, joined by a thin line."""
  points = [p for p in zip(each['x'], each['y'], each['low'], each['high'])]
  points = [p for p in points if None not in p[:2]]
  x, y = [p[0] for p in points], [p[1] for p in points]
  look = _look(each)
  if not each.get('joined', True):
    look['linestyle'] = 'none'
  axis.plot(x, y, zorder=3, **{**look, 'linewidth': 0.9})
  bars = [p for p in points if None not in p]
  axis.vlines(
    [p[0] for p in bars],
    [p[2] for p in bars],
    [p[3] for p in bars],
    color=each['colour'],
    linewidth=0.7,
    alpha=0.9 if num <= _FEW else 0.5,
    zorder=2.5,
  )


def _draw_stairs(axis, each: dict[str, Any], num: int) -> None:
  """A filled histogram: `edges` has one number more than `y`."""
  del num
  axis.stairs(
    each['y'], each['edges'], color=each['colour'], fill=True, zorder=1.5
  )


_DRAW = {'line': _draw_line, 'points': _draw_points, 'stairs': _draw_stairs}


def _band(each: dict[str, Any]):
  low, high = each.get('low', ()), each.get('high', ())
  return zip(each['x'], low, high)


def _present(x, y):
  points = [(a, b) for a, b in zip(x, y) if a is not None and b is not None]
  return tuple(zip(*points)) or ((), ())


def _look(each: dict[str, Any]) -> dict[str, Any]:
  return {
    'color': each['colour'],
    'linestyle': style.LINES[each['dashes']],
    'marker': each['marker'],
    'markeredgecolor': 'white',
    'markeredgewidth': 0.4,
  }


def _share(axes, panels: list[dict[str, Any]]) -> None:
  """Panels with one `share_y` get the limits that hold them all."""
  groups = {}
  for axis, panel in zip(axes, panels):
    if panel.get('share_y'):
      groups.setdefault(panel['share_y'], []).append(axis)
  for group in groups.values():
    limits = [axis.get_ylim() for axis in group]
    for axis in group:
      axis.set_ylim(min(low for low, _ in limits), max(h for _, h in limits))


def colour_bar(drawing, axes, scale: dict[str, Any]) -> None:
  """A colour bar below the panels.

  Args:
    drawing: the figure.
    axes: the panels that it belongs to.
    scale: label, low, high; log: whether it is logarithmic.
  """
  norm = (colors.LogNorm if scale['log'] else colors.Normalize)(
    scale['low'], scale['high']
  )
  shades = matplotlib.colormaps[style.SCALE]
  part = colors.ListedColormap(
    [shades(style.SCALE_END * index / 255) for index in range(256)]
  )
  bar = drawing.colorbar(
    matplotlib.cm.ScalarMappable(norm, part),
    ax=axes,
    location='bottom',
    fraction=0.06,
    aspect=40,
    label=scale['label'],
  )
  bar.outline.set_linewidth(0.4)
  if scale['log']:
    ticks = _log_ticks(scale.get('values') or [scale['low'], scale['high']])
    bar.set_ticks(ticks, labels=[f'{tick:g}' for tick in ticks])
    bar.minorticks_off()


class _Legend:
  """The legend below the panels, with the note above its entries."""

  def __init__(self, data: dict[str, Any], width: float):
    # An entry as wide as the figure is broken into lines.
    most = int((width - _HANDLE - 0.15) / _CHARACTER)
    self.labels = [
      textwrap.fill(entry['label'], most) for entry in data['legend']
    ]
    self.entries = data['legend']
    self.note = textwrap.fill(
      data.get('note', ''), int((width - 0.15) / (_CHARACTER * 0.93))
    )
    longest = max(
      (len(line) for label in self.labels for line in label.split('\n')),
      default=0,
    )
    fitting = int((width - 0.1) / (longest * _CHARACTER + _HANDLE))
    self.columns = max(1, min(len(self.entries), fitting))
    num_lines = -(-len(self.entries) // self.columns)
    num_lines += sum(label.count('\n') for label in self.labels)
    num_lines += self.note.count('\n') + 1 if self.note else 0
    self.height = _ENTRY_HEIGHT * num_lines + 0.1

  def put(self, drawing: figure.Figure) -> None:
    if not self.entries and not self.note:
      return
    # matplotlib fills columns: this order reads along the lines.
    num, columns = len(self.entries), self.columns
    order = [i for j in range(columns) for i in range(j, num, columns)]
    drawing.legend(
      handles=[_handle(self.entries[i], self.labels[i]) for i in order],
      loc='outside lower left',
      ncols=self.columns,
      title=self.note or None,
      alignment='left',
    )


def _handle(entry: dict[str, Any], label: str):
  width = 0.6 if entry['colour'] == style.PALE else style_line_width()
  return lines.Line2D([], [], label=label, linewidth=width, **_look(entry))


def style_line_width() -> float:
  """Width of a line in points."""
  return matplotlib.rcParams['lines.linewidth']
