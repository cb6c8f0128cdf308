"""Small plots as SVG text: panels of lines, side by side.

Comes in: titles and points. Goes out: the text of an SVG file, the same for
the same numbers on any machine. Draws with no library.
"""

import itertools
import math
from typing import NamedTuple

COLOURS = ('#1f77b4', '#d55e00', '#009e73', '#aa3377', '#777777')
WIDTH, HEIGHT = 330, 220  # of a panel, pixels
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 46, 36  # margins of its axes
DASHES = ('none', '7 3', '3 3', '8 3 2 3', '1 3')  # so that none hides another
NUM_TICKS = 5  # at most


class Line(NamedTuple):
  """One line of a panel; a point with NaN is left out."""

  label: str
  xs: list[float]
  ys: list[float]


class Panel(NamedTuple):
  """One pair of axes."""

  title: str
  x_label: str
  lines: list[Line]
  has_legend: bool = True  # one row, which may run into the next panel


def draw(panels: list[Panel]) -> str:
  """The text of an SVG file with the panels side by side."""
  width = WIDTH * len(panels)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
    f'height="{HEIGHT}" font-family="sans-serif" font-size="11">',
    f'<rect width="{width}" height="{HEIGHT}" fill="white"/>',
  ]
  for place, panel in enumerate(panels):
    parts += [f'<g transform="translate({WIDTH * place} 0)">']
    parts += [*_panel(panel), '</g>']
  return '\n'.join([*parts, '</svg>', ''])


def ticks(low: float, high: float) -> list[float]:
  """Round numbers from `low` or below to `high` or above, evenly spaced."""
  least = max(high - low, 1e-6) / (NUM_TICKS - 1)
  power = 10.0 ** math.floor(math.log10(least))
  step = next(m * power for m in (1, 2, 5, 10, 20) if m * power >= least * 0.99)
  first = math.floor(low / step + 0.01)
  last = math.ceil(high / step - 0.01)
  return [n * step for n in range(first, max(last, first + 1) + 1)]


def _panel(panel: Panel) -> list[str]:
  points = [
    (x, y)
    for line in panel.lines
    for x, y in zip(line.xs, line.ys)
    if math.isfinite(y)
  ]
  xs, ys = zip(*points)
  y_ticks = ticks(min(ys), max(ys))
  x_ticks = [x for x in ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs)]

  def x_of(x):
    share = (x - min(xs)) / (max(xs) - min(xs))
    return LEFT + share * (WIDTH - LEFT - RIGHT)

  def y_of(y):
    share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

  parts = [f'<text x="{LEFT}" y="15" font-weight="bold">{panel.title}</text>']
  for x in x_ticks:
    colour = '#999' if abs(x) < 1e-9 else '#e5e5e5'
    parts.append(
      f'<path d="M{x_of(x):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{colour}"/>'
      f'<text x="{x_of(x):.1f}" y="{HEIGHT - BOTTOM + 14}" '
      f'text-anchor="middle">{_number(x)}</text>'
    )
  for y in y_ticks:
    colour = '#999' if abs(y) < 1e-9 else '#e5e5e5'
    parts.append(
      f'<path d="M{LEFT} {y_of(y):.1f}H{WIDTH - RIGHT}" stroke="{colour}"/>'
      f'<text x="{LEFT - 5}" y="{y_of(y) + 4:.1f}" '
      f'text-anchor="end">{_number(y)}</text>'
    )
  parts.append(
    f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 5}" '
    f'text-anchor="middle">{panel.x_label}</text>'
  )
  at = LEFT
  styles = itertools.cycle(zip(COLOURS, DASHES))
  for line, (colour, dashes) in zip(panel.lines, styles):
    path = ' '.join(
      f'{x_of(x):.1f},{y_of(y):.1f}'
      for x, y in zip(line.xs, line.ys)
      if math.isfinite(y)
    )
    parts.append(
      f'<polyline points="{path}" fill="none" stroke="{colour}" '
      f'stroke-width="1.8" stroke-dasharray="{dashes}"/>'
    )
    if panel.has_legend:
      label = f'<text x="{at:g}" y="32" fill="{colour}">{line.label}</text>'
      parts.append(label)
      at += 6.5 * len(line.label) + 12
  return parts


def _number(value: float) -> str:
  return f'{value if abs(value) > 1e-9 else 0:.6g}'
