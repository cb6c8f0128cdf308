"""Heat map of a metric over two swept keys.

Comes in: a report. Goes out: the data of the figure `heat`, a grid per
measure, and its drawing. None unless two keys tell the rows apart.
"""

import itertools
import math
from typing import Any

import matplotlib
from matplotlib import figure

from dpo_jax.results import measures
from dpo_jax.results.figures import looks, series, style, units
from dpo_jax.results.figures.report import Report

# Without --metrics. Losses of different betas do not compare.
_DEFAULT = (measures.ACCURACY.name, 'rewards/margins')
_CELL_TEXT = 0.062  # inches of a digit
_CHARACTER = 0.058  # inches of a letter on an axis


def data(report: Report) -> dict[str, Any] | None:
  """Grids of the table's cells: rows are one key, columns the other."""
  keys = _keys(report)
  if keys is None:
    return None
  places = [_place(report, row, keys) for row in range(len(report.table.rows))]
  down, across = (_ordered(each) for each in zip(*places))
  grids = []
  for measure in _measures(report):
    cells = {
      place: row.cells.get((measure.label, 'after'))
      for place, row in zip(places, report.table.rows)
    }
    values = [[_value(cells.get((one, two))) for two in across] for one in down]
    if any(value is not None for line in values for value in line):
      grids.append(
        {
          'title': units.axis(measure.label, measure.name),
          'metric': measure.name,
          'values': [series.numbers(line) for line in values],
        }
      )
  if not grids:
    return None
  names = [
    report.table.labels.names[report.table.labels.keys.index(key)]
    for key in keys
  ]
  row_of = dict(zip(places, report.table.rows))
  return {
    'caption': 'Held-out metrics after training, mean over seeds. White: no '
    'run.',
    'note': '',
    'y_label': _axis_name(names[0], keys[0]),
    'x_label': _axis_name(names[1], keys[1]),
    'rows': list(down),
    'columns_of': list(across),
    'grids': grids,
    'runs': [
      [
        [report.name(run) for run in row_of[one, two].group.runs]
        if (one, two) in row_of
        else []
        for two in across
      ]
      for one in down
    ],
  }


def _measures(report: Report):
  if report.named:
    return report.table.measures
  return [
    measure for measure in report.table.measures if measure.name in _DEFAULT
  ] or [measures.LOSS]


def _axis_name(name: str, key: str) -> str:
  return {looks.BETA: 'β', looks.TERMS: 'loss'}.get(key, name)


def _keys(report: Report) -> tuple[str, str] | None:
  """Two keys of several values that no two rows share, longest list down."""
  table = report.table
  implied = looks.implied(table) - {looks.TERMS}
  own = [i for i, key in enumerate(table.labels.keys) if key not in implied]
  for pair in itertools.combinations(own, 2):
    texts = [tuple(row.label[index] for index in pair) for row in table.rows]
    nums = [len({text[side] for text in texts}) for side in (0, 1)]
    if len(set(texts)) == len(texts) and min(nums) > 1:
      one, two = (table.labels.keys[index] for index in pair)
      # Names of losses are long: they go down the side, where they fit.
      if two == looks.TERMS or (one != looks.TERMS and nums[1] > nums[0]):
        return two, one
      return one, two
  return None


def _place(report: Report, row: int, keys) -> tuple[str, str]:
  table = report.table
  config = table.rows[row].group.runs[0].config
  texts = dict(zip(table.labels.keys, table.rows[row].label))
  texts[looks.TERMS] = looks.loss_label(config)
  return tuple(texts[key] for key in keys)


def _ordered(texts) -> list[str]:
  """The distinct texts: numbers ascending, others as in the table."""
  distinct = list(dict.fromkeys(texts))
  try:
    return sorted(distinct, key=float)
  except ValueError:
    return distinct


def _value(cell) -> float | None:
  return None if cell is None else cell.value


def draw(data: dict[str, Any], width: float) -> figure.Figure:
  """Grids side by side, or below each other in one column.

  Args:
    data: as `data` returns it.
    width: in inches.
  """
  grids, down, across = data['grids'], data['rows'], data['columns_of']
  num_across = min(len(grids), 2 if width > 5 else 1)
  num_down = -(-len(grids) // num_across)
  longest = max(len(text) for text in down)
  # Widths of a cell and of the side, in inches.
  side = min(longest, 22) * _CHARACTER + 0.3
  cell = (width / num_across - side - 0.5) / len(across)
  # Many rows are lower, so that the figure fits its page.
  tall = max(0.15, min(0.28, 1.9 / len(down)))
  height = tall * len(down) + 0.6
  drawing = figure.Figure(
    figsize=(width, height * num_down), layout='constrained'
  )
  axes = drawing.subplots(num_down, num_across, squeeze=False).ravel()
  for axis, grid in zip(axes, grids):
    _draw_grid(drawing, axis, data, grid, cell)
  for axis in axes[len(grids) :]:
    axis.remove()
  return drawing


def _draw_grid(drawing, axis, data, grid, cell: float) -> None:
  down, across = data['rows'], data['columns_of']
  values = [
    [float('nan') if value is None else value for value in line]
    for line in grid['values']
  ]
  image = axis.imshow(values, cmap='cividis', aspect='auto')
  axis.grid(False)
  longest = max(len(text) for text in across)
  turned = longest * _CHARACTER > cell
  axis.set_xticks(range(len(across)), across, rotation=90 if turned else 0)
  axis.set_yticks(range(len(down)), [_short(text) for text in down])
  axis.tick_params(length=0)
  axis.spines[:].set_visible(False)
  axis.set_title(grid['title'])
  axis.set_xlabel(data['x_label'])
  axis.set_ylabel(data['y_label'])
  bar = drawing.colorbar(image, ax=axis, fraction=0.05, pad=0.02, aspect=60)
  bar.outline.set_visible(False)
  bar.locator = matplotlib.ticker.MaxNLocator(4)
  bar.update_ticks()
  texts = as_texts(grid['values'])
  most = max(len(text) for line in texts for text in line)
  if most * _CELL_TEXT > cell:
    return
  for y, line in enumerate(texts):
    for x, text in enumerate(line):
      if text:
        # Cividis is dark below its middle.
        dark = image.norm(grid['values'][y][x]) < 0.5
        axis.text(
          x,
          y,
          text,
          ha='center',
          va='center',
          fontsize=style.SMALLEST,
          color='white' if dark else 'black',
        )


def as_texts(values: list[list[float | None]]) -> list[list[str]]:
  """Numbers with as many decimals as give the largest three digits."""
  largest = max(abs(v) for line in values for v in line if v is not None)
  digits = math.floor(math.log10(largest)) if largest > 0 else 0
  decimals = min(max(2 - digits, 0), 4)
  return [
    ['' if value is None else f'{value:.{decimals}f}' for value in line]
    for line in values
  ]


def _short(text: str) -> str:
  return text if len(text) <= 22 else f'{text[:21]}…'
