"""Runs -> what their numbers mean: the frontier, and the end-of-run diagnosis.

Comes in: runs. Goes out: HTML: a table of rewards against KL for runs that
--mode=frontier measured, and three lines per run at most. Measures nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.results import collect
from dpo_jax.results.page import grids, markup
from dpo_jax.run import diagnose
from dpo_jax.types import InputError

_FEW = 4  # runs whose lines are open at once
_COLUMNS = ('reward', 'kl', 'kl_mc', 'length')


def frontier(
  runs: Sequence[collect.Run], names: Mapping[Any, str]
) -> list[markup.Html]:
  """A table of the measured steps of all runs; [] if none was measured."""
  rows = []
  for run in runs:
    for step, entry in sorted((getattr(run, 'frontier', None) or {}).items()):
      at = f'Frontier: {names[run.path]}, step {step}'
      metrics = entry['metrics']
      rows.append(
        [
          grids.text_cell(names[run.path], at),
          step,
          entry.get('reward', '-'),
          *(_estimate(metrics.get(name), at, name) for name in _COLUMNS),
          entry.get('num_samples', '-'),
        ]
      )
  if not rows:
    return []
  head = ['run', 'step', 'scored by', 'reward', 'KL', 'KL, Monte Carlo']
  head += ['length', 'samples']
  note = 'Samples of held-out prompts; ± is one standard error. KL in nats.'
  return [
    grids.grid(head, rows, 'Sampled reward against KL to the reference'),
    markup.element('p', note, class_='pale'),
  ]


def _estimate(value: Any, at: str, name: str) -> markup.Html:
  """A mean and its standard error."""
  if not isinstance(value, Mapping) or value.get('mean') is None:
    return grids.text_cell('-')
  mean, error = value['mean'], value.get('se')
  text = f'{mean:.3f}' if error is None else f'{mean:.3f} ± {error:.3f}'
  return grids.number_cell(text, mean, f'{at}, {name}')


def diagnosis(
  runs: Sequence[collect.Run], names: Mapping[Any, str]
) -> list[markup.Html]:
  """The lines that end a run, of the evaluation that cells are of; [] if none.

  A damaged file of a run gives its message in place of the lines.
  """
  parts = []
  for run in runs:
    last = run.records.get('eval', {}).get(run.step)
    if last is None:
      continue
    try:
      arrays = run.examples.arrays if run.examples else {}
      lines = diagnose.of_run(run.path, last, arrays)
    except InputError as error:
      lines = [str(error)]
    name = names[run.path]
    items = [
      markup.element('li', line.removeprefix(diagnose.PREFIX)) for line in lines
    ]
    parts.append(
      markup.element(
        'details',
        markup.element('summary', markup.label(name)),
        markup.element('ul', *items, class_='notes'),
        data_at=f'Diagnosis: {name}',
        open=len(runs) <= _FEW,
      )
    )
  return parts
