"""Folder of a sweep -> a table of where its points stand.

Comes in: runs. Goes out: per sweep that holds some of them, a table with every
point: done, running, failed with its line, waiting. Runs nothing.
"""

import os
from collections.abc import Iterable, Sequence

from dpo_jax.results import collect
from dpo_jax.results.page import grids, markup
from dpo_jax.storage import files, places
from dpo_jax.sweeps import folder as sweep_folder
from dpo_jax.types import InputError

_METRICS = ('loss', 'rewards/accuracies', 'rewards/margins', 'kl')


def sections(
  runs: Sequence[collect.Run], folder: str | os.PathLike
) -> list[markup.Html]:
  """A heading, the counts and a table per sweep; [] without sweeps."""
  parts = []
  for path in _sweeps(runs):
    name = places.relative(path, folder)
    parts.append(markup.element('h3', 'Sweep ', markup.label(name)))
    try:
      states = _states(path)
    except InputError as error:
      parts.append(markup.element('p', str(error), class_='absent'))
      continue
    summary = sweep_folder.summary(states)
    parts.append(
      markup.element(
        'details',
        markup.element('summary', summary),
        _table(states, f'Points of {name}'),
        data_at=f'sweep {name}',
        # A sweep that is done is read in the tables.
        open=any(state.state != 'done' for state in states),
      )
    )
  return parts


def _sweeps(runs: Iterable[collect.Run]) -> list[files.AnyPath]:
  """The folders of sweeps that hold these runs, each once."""
  return [
    parent
    for parent in dict.fromkeys(run.path.parent for run in runs)
    if (parent / 'sweep.json').is_file()
  ]


def _states(path: files.AnyPath) -> list[sweep_folder.State]:
  sweep = sweep_folder.Folder(path)
  states = [sweep.state(name) for name in sweep.known()]
  # Which commit is today's is no property of the runs: the tables name theirs.
  return [s._replace(note='') if s.state == 'done' else s for s in states]


def _table(states: Sequence[sweep_folder.State], caption: str) -> markup.Html:
  shown = [m for m in _METRICS if any(m in s.metrics for s in states)]
  rows = []
  for state in states:
    at = f'{caption}: {state.name!r}'
    step = f'{state.step}/{state.num_steps}' if state.num_steps else state.step
    values = [state.metrics.get(metric) for metric in shown]
    rows.append(
      [
        grids.text_cell(state.name, at),
        markup.element('td', state.state, class_=f'state {state.state}'),
        step,
        *(
          grids.number_cell('' if v is None else f'{v:.4f}', v) for v in values
        ),
        markup.element('td', markup.label(state.note), class_='note'),
      ]
    )
  return grids.grid(['point', 'state', 'step', *shown, 'note'], rows, caption)
