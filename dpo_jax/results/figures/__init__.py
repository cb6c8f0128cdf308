"""Runs -> figures for print: PDF, SVG and PNG, with the numbers in them.

Comes in: a table, the runs behind it and the options of a report. Goes out:
the files' bytes at both print widths, captions.md, and per figure the plotted
numbers as plain JSON. A kind of figure is one file with a function `data`;
panels.py draws the data. Writes no files and needs no display.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib import figure

from dpo_jax import errors
from dpo_jax.results import cells, collect
from dpo_jax.results.figures import (
  beta,
  calibration,
  curves,
  differences,
  displacement,
  frontier,
  heat,
  length,
  margins,
  panels,
  style,
  swept,
)
from dpo_jax.results.figures.report import Report


class Kind(NamedTuple):
  """A kind of figure."""

  data: Callable[[Report], dict[str, Any] | None]  # None: nothing to draw
  draw: Callable[[dict[str, Any], float], figure.Figure]  # data, inches


KINDS = {
  'curves': Kind(curves.data, panels.draw),
  'beta': Kind(beta.data, panels.draw),
  'swept': Kind(swept.data, panels.draw),
  'differences': Kind(differences.data, differences.draw),
  'frontier': Kind(frontier.data, panels.draw),
  'displacement': Kind(displacement.data, panels.draw),
  'margins': Kind(margins.data, panels.draw),
  'length': Kind(length.data, panels.draw),
  'calibration': Kind(calibration.data, panels.draw),
  'heat': Kind(heat.data, heat.draw),
}
NAMES = tuple(KINDS)
DEFAULT = ('curves', 'beta', 'frontier', 'displacement')
CAPTIONS = 'figures/captions.md'


def draw(
  runs: Sequence[collect.Run],
  table: cells.Table,
  options: Any,
  folder: str | os.PathLike = '.',
) -> tuple[dict[str, bytes], dict[str, Any]]:
  """Draws the figures that --figures chooses.

  A figure whose numbers no run has is not drawn.

  Args:
    runs: those behind the table.
    table: the rows, with their cells.
    options: of the report; reads `figures` and `metrics`.
    folder: the output folder; paths of runs in the data start there.

  Returns:
    {'figures/curves.pdf': bytes, ...} and `figures_data` of the same.

  Raises:
    InputError: no figure has that name.
  """
  made = figures_data(runs, table, options, folder)
  files = {}
  for name, one in made.items():
    files |= style.render(name, functools.partial(KINDS[name].draw, one))
  if made:
    files[CAPTIONS] = _captions(made).encode()
  return files, made


def figures_data(
  runs: Sequence[collect.Run],
  table: cells.Table,
  options: Any,
  folder: str | os.PathLike = '.',
) -> dict[str, Any]:
  """The plotted numbers per figure, without drawing any; args as `draw`.

  Returns:
    {name: {'caption', 'panels': [{'series': [{'label', 'runs', 'x', 'y',
    'low', 'high', ...}], ...}], ...}}; series.py has the fields.
  """
  del runs  # those of the table's rows
  report = Report(table, folder, options.metrics is not None)
  made = {}
  for name in choose(options.figures):
    one = KINDS[name].data(report)
    if one is not None:
      made[name] = one
  return made


def choose(names: Sequence[str] | None) -> tuple[str, ...]:
  """Names of the figures to draw, in their own order.

  Args:
    names: of --figures; None = the default ones, ('all',) = all.

  Raises:
    InputError: no figure has that name.
  """
  if names is None:
    return DEFAULT
  for name in names:
    if name not in (*NAMES, 'all'):
      raise errors.refuse(
        '--figures',
        f'no figure is called {name!r}',
        f'{errors.did_you_mean(name, NAMES)}use any of {", ".join(NAMES)}, '
        'all or none',
      )
  return tuple(name for name in NAMES if name in names or 'all' in names)


def _captions(made: dict[str, Any]) -> str:
  """captions.md: a heading and a paragraph per figure."""
  parts = [
    f'## {name}\n\n{" ".join(one["caption"].split())}\n'
    for name, one in made.items()
  ]
  return '\n'.join(parts)
