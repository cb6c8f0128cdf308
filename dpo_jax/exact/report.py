"""rows of a study -> tables: Markdown, CSV and JSON.

Comes in: `Settings` and `Row`s. Goes out: the bytes of exact.md, exact.csv and
exact.json. A number is a mean over seeds, with half of its 95 % interval.
Trains and writes nothing.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.exact import optimum, study
from dpo_jax.results import statistics

AXIS_LABELS = {
  'beta': 'beta',
  'size': 'comparisons',
  'noise': 'flipped labels',
  'sampling': 'pairs drawn from',
  'steps': 'updates',
}


class Cell(NamedTuple):
  """A measure at a point: its mean over the seeds that have one."""

  mean: float  # NaN if no seed has one
  low: float  # ends of the 95 % interval; NaN for less than two seeds
  high: float
  num: int  # seeds


def files(
  settings: study.Settings, rows: Sequence[study.Row], measures: Sequence[str]
) -> dict[str, bytes]:
  """The three files.

  Args:
    settings: the study.
    rows: its rows.
    measures: of study.MEASURES, one group of tables each.
  """
  return {
    'exact.md': markdown(settings, rows, measures).encode(),
    'exact.csv': comma_separated(rows).encode(),
    'exact.json': document(settings, rows).encode(),
  }


def markdown(settings, rows, measures) -> str:
  """The tables of the varied axes, one group per measure, and the optima."""
  base = study.points(settings)[0]
  num = settings.num_seeds
  seeds = f'{num} seed{"s" if num > 1 else ""}'
  text = [
    f'# Exact case `{settings.case}`\n',
    f'Means over {seeds}, each with its own rewards, reference and data, ± '
    f'half of their 95 % interval. All comparisons are one batch. One axis is '
    'varied at a time; the others are at '
    f'{_place(base)}.\n',
  ]
  for measure in measures:
    for axis in study.AXES:
      values = axis_values(settings, axis)
      if len(values) > 1 or (axis == 'beta' and not _varies(settings)):
        title = f'{study.MEASURES[measure]}, by {AXIS_LABELS[axis]}'
        text.append(f'## {title[0].upper()}{title[1:]}\n')
        text.append(_table(settings, rows, measure, axis))
  text += ["## Distance to each loss's own optimum\n", _own(settings, rows)]
  return '\n'.join(text)


def comma_separated(rows: Sequence[study.Row]) -> str:
  """All rows, one line each; an absent number is empty."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator='\n')
  writer.writerow(study.Row._fields)
  for row in rows:
    writer.writerow(['' if _is_nan(value) else value for value in row])
  return file.getvalue()


def document(settings: study.Settings, rows: Sequence[study.Row]) -> str:
  """Settings and rows as JSON; null is an absent number, 'inf' infinite."""
  said = settings._asdict() | {
    'losses': {choice.word: choice.label for choice in settings.losses}
  }
  whole = {'settings': said, 'rows': [row._asdict() for row in rows]}
  return json.dumps(_plain(whole), indent=1, allow_nan=False) + '\n'


def axis_values(settings: study.Settings, axis: str) -> list:
  """The values of an axis in the order of a table: sorted, infinity last."""
  values = study.values(settings)[axis]
  return list(values) if axis == 'sampling' else sorted(set(values))


def cell(
  rows: Sequence[study.Row], word: str, point: study.Point, measure: str
) -> Cell:
  """The mean of a measure over the seeds of a loss at a point."""
  values = [
    getattr(row, measure)
    for row in rows
    if row.loss == word and study.Point(*row[1:6]) == point
  ]
  values = [value for value in values if not math.isnan(value)]
  if not values:
    return Cell(math.nan, math.nan, math.nan, 0)
  mean, _, low, high, num = statistics.mean_ci_t(values)
  return Cell(mean, low, high, num)


def _table(settings, rows, measure: str, axis: str) -> str:
  """A table: one line per loss, one column per value of the axis."""
  base, values = study.points(settings)[0], axis_values(settings, axis)
  lines = [['loss', *(_show(value) for value in values)]]
  for choice in settings.losses:
    cells = [
      cell(rows, choice.word, base._replace(**{axis: value}), measure)
      for value in values
    ]
    shown = [_shown(each, settings.num_seeds) for each in cells]
    lines.append([choice.label, *shown])
  return _grid(lines)


def _own(settings, rows) -> str:
  """The largest distance to the own optimum, over seeds and axes."""
  lines = [['loss', 'optimum', 'cells that have one', 'median', 'largest']]
  for choice in settings.losses:
    values = np.array([row.own for row in rows if row.loss == choice.word])
    finite = values[~np.isnan(values)]
    ends = ['–', '–']
    if len(finite):
      ends = [f'{np.median(finite):.1e}', f'{finite.max():.1e}']
    kind = 'solved' if optimum.is_known(choice.name) else 'not known'
    lines.append([choice.label, kind, f'{len(finite)}/{len(values)}', *ends])
  return _grid(lines)


def _grid(lines: Sequence[Sequence[str]]) -> str:
  """Lines of a Markdown table; the first is its head."""
  head, *body = (f'| {" | ".join(line)} |' for line in lines)
  rule = '|---' + '|---:' * (len(lines[0]) - 1) + '|'
  return '\n'.join([head, rule, *body, ''])


def _shown(each: Cell, num_seeds: int) -> str:
  if not each.num:
    return '–'
  text = f'{each.mean:.3f}'
  if 0 < abs(each.mean) < 5e-4:
    text = f'{each.mean:.0e}'
  elif each.num > 1:
    text += f' ± {(each.high - each.low) / 2:.3f}'
  return text if each.num == num_seeds else f'{text} ({each.num} seeds)'


def _varies(settings: study.Settings) -> bool:
  return any(len(axis_values(settings, axis)) > 1 for axis in study.AXES)


def _place(point: study.Point) -> str:
  """A point in words."""
  return ', '.join(
    f'{AXIS_LABELS[axis]} {_show(value)}'
    for axis, value in zip(study.AXES, point)
  )


def _show(value) -> str:
  if isinstance(value, str):
    return value
  return '∞' if math.isinf(value) else f'{value:g}'


def _is_nan(value) -> bool:
  return isinstance(value, float) and math.isnan(value)


def _plain(value):
  """A value as JSON has it."""
  if isinstance(value, Mapping):
    return {key: _plain(each) for key, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(each) for each in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None if math.isnan(value) else 'inf'
  return value
