"""rows of a study -> figures: a measure against each axis, one line per loss.

Comes in: `Settings` and `Row`s. Goes out: the bytes of figures/NAME.pdf, .svg
and .png for every measure that was asked for. Lines are means over seeds, bands
their 95 % intervals. Writes no files.
"""

import math
from collections.abc import Sequence
from typing import Any

from dpo_jax.exact import choices, report, study
from dpo_jax.results.figures import panels, style

_TITLES = {
  'tv': 'Total variation to π*',
  'kl': 'KL to π*',
  'regret': 'Regret to π*',
  'reward': 'Expected reward',
  'reward_gap': 'Reward short of π*',
  'drift': 'KL to the reference',
  'best': 'Chance of the best answer',
  'own': 'Total variation to own optimum',
}
_AXES = {
  'beta': 'β',
  'size': 'comparisons',
  'noise': 'share of flipped labels',
  'steps': 'updates',
}  # the distribution of pairs is no number: the tables have it


def draw(
  settings: study.Settings, rows: Sequence[study.Row], measures: Sequence[str]
) -> dict[str, bytes]:
  """Draws a figure per measure.

  Args:
    settings: the study.
    rows: its rows.
    measures: of study.MEASURES.

  Returns:
    {'figures/tv.pdf': bytes, ...}; a measure without two numbers on any axis
    has no figure.
  """
  files = {}
  for measure in measures:
    data = make_data(settings, rows, measure)
    if data['panels']:
      files |= style.render(
        measure, lambda width, data=data: panels.draw(data, width)
      )
  return files


def make_data(
  settings: study.Settings, rows: Sequence[study.Row], measure: str
) -> dict[str, Any]:
  """The numbers of a figure, in the form that panels.draw takes."""
  drawn = _drawn(settings.losses)
  made = []
  for axis, label in _AXES.items():
    # An infinite number of comparisons has no place on a logarithmic axis.
    xs = [x for x in report.axis_values(settings, axis) if math.isfinite(x)]
    series = [
      {**_series(settings, rows, measure, axis, xs, choice), **_look(index)}
      for index, choice in enumerate(drawn)
    ]
    series = [each for each in series if len(each['x']) > 1]
    if series:
      made.append(
        {
          'title': _TITLES[measure],
          'x_label': label,
          'x_scale': 'linear' if axis == 'noise' else 'log',
          'y_label': '',
          'series': series,
        }
      )
  num = len(settings.losses)
  note = f'Shown: {len(drawn)} of {num} losses. ' if len(drawn) < num else ''
  return {
    'panels': made,
    'columns': {'narrow': 2, 'wide': 4},
    'legend': [
      {'label': choice.label, **_look(index)}
      for index, choice in enumerate(drawn)
    ],
    'note': note + _bands(settings.num_seeds),
  }


def _bands(num_seeds: int) -> str:
  if num_seeds == 1:
    return 'One seed.'
  return f'Bands: 95 % intervals over {num_seeds} seeds.'


def _drawn(losses: Sequence[choices.Choice]) -> list[choices.Choice]:
  """As many losses as there are colours, those of choices.DEFAULT first."""
  order = {word: index for index, word in enumerate(choices.DEFAULT)}
  ranked = sorted(losses, key=lambda each: order.get(each.word, len(order)))
  return ranked[: len(style.COLOURS)]


def _series(settings, rows, measure, axis, xs, choice) -> dict[str, Any]:
  """The points of a loss along an axis, those without a number left out."""
  base = study.points(settings)[0]
  points = [
    (x, report.cell(rows, choice.word, base._replace(**{axis: x}), measure))
    for x in xs
  ]
  points = [(x, cell) for x, cell in points if cell.num]
  series = {'label': choice.label, 'x': [x for x, _ in points]}
  series['y'] = [cell.mean for _, cell in points]
  for end in ('low', 'high'):
    ends = [getattr(cell, end) for _, cell in points]
    series[end] = [None if math.isnan(value) else value for value in ends]
  return series


def _look(index: int) -> dict[str, str]:
  """Colour, dashes and marker of the line of that place."""
  return {
    'colour': style.COLOURS[index],
    'dashes': list(style.DASHES)[index % len(style.DASHES)],
    'marker': style.MARKERS[index],
  }
