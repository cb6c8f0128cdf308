"""saved scores -> losses and metrics that no run computed: `--recompute`.

    python -m dpo_jax.results RUNS --recompute loss=ipo,beta=.05:.1:.5

Comes in: run directories, and settings of the losses; ':' stands between the
values of a key, and every combination is computed. Goes out: one line per run,
evaluation and setting, with the metrics of measures.py. Needs jax, but no
model, no data and no accelerator: per_example/*.npz hold the scores of the
whole held-out set, and run/held_out.py does in an evaluation what it does here.
"""

import csv
import io
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.config import stored
from dpo_jax.losses import catalogue, records, rules
from dpo_jax.losses.objective import Objective
from dpo_jax.results import collect, measures
from dpo_jax.run import held_out as held_out_lib
from dpo_jax.run import loss_config
from dpo_jax.run.held_out import HeldOut
from dpo_jax.storage import buckets, example_file, files
from dpo_jax.types import InputError

_FLAG = '--recompute'
# {need of a loss: whether the scores of a set serve it}
_HAS = {
  'reference': lambda scored: scored.reference is not None,
  'mismatched': lambda scored: scored.batch.mismatched is not None,
  'heads': lambda scored: scored.policy.heads_2P is not None,
  'sum_sq_probs': lambda scored: scored.policy.log_sum_sq_probs is not None,
  'distributions': lambda scored: scored.policy.kl is not None,
  'tilted': lambda scored: scored.policy.away is not None,
}


class Line(NamedTuple):
  """One evaluation under one setting."""

  run: str  # path, from the current folder if it is inside
  evaluation: str  # name of the file in per_example/
  setting: dict[str, str]  # key of --recompute -> value, as text
  metrics: dict[str, float]  # all that metrics.jsonl would hold
  notes: tuple[str, ...]  # sentences on what the numbers rest on


def parse(text: str) -> list[dict[str, str]]:
  """Returns the settings: every combination of the values of the keys.

  Args:
    text: `key=value:value,...`. `loss` is a loss, a published mix or a sum such
      as `0.8*sigmoid+nll`; other keys are those of config.loss.

  Raises:
    InputError: a text of another form, or a key that config.loss has not.
  """
  known = ['loss', *(key for key in config_lib.base().loss if key != 'terms')]
  grid = {}
  for item in text.split(','):
    key, equals, values = (part.strip() for part in item.partition('='))
    if not equals or not all(values.split(':')):
      raise errors.refuse(
        _FLAG,
        f'{item!r} is not of the form key=value:value',
        'write e.g. loss=ipo,beta=.05:.5',
      )
    if key not in known or key in grid:
      raise errors.refuse(
        _FLAG,
        f'{key!r} is given twice' if key in grid else f'no key {key!r}',
        f'{errors.did_you_mean(key, known)}use loss and keys of config.loss',
      )
    grid[key] = [value.strip() for value in values.split(':')]
  combinations = itertools.product(*grid.values())
  return [dict(zip(grid, values)) for values in combinations]


def recompute(
  paths: Sequence[str], settings: Sequence[dict[str, str]]
) -> list[Line]:
  """Computes every evaluation of the runs under every setting.

  Args:
    paths: run directories, or folders that hold some at any depth.
    settings: from `parse`. Without `loss` they change the run's own losses;
      with it, keys that are not given have the defaults of that loss.

  Returns:
    The lines, in the order of the runs. An evaluation that did not compute what
    a loss needs is left out, with a note, if another one did.

  Raises:
    InputError: a run without scores, or a loss that needs what no evaluation
      computed.
  """
  lines, left_out = [], {}
  for run in collect.collect(paths):
    folder = run.path / 'per_example'
    names = sorted(folder.glob('*.npz'), key=_order)
    if not names:
      raise errors.refuse(
        run.path, 'saved no scores yet', 'let it evaluate once'
      )
    for path in names:
      arrays = example_file.read_whole(path)
      columns = arrays.pop('columns', np.zeros(0, 'U')).tolist()
      scored, state = held_out_lib.from_arrays(arrays, path)
      for setting in settings:
        config = _configure(run, setting)
        objective, hyper = loss_config.make(config)
        try:
          _check(objective, scored, columns, path)
          _check_epsilon(objective, hyper, run, path)
        except InputError as error:
          left_out.setdefault(json.dumps(setting), []).append(error)
          continue
        numbers, notes = _state(objective, state)
        metrics, _ = held_out_lib.measure(
          objective, jax.device_get(hyper), scored, numbers
        )
        lines.append(Line(_name(run), path.stem, setting, metrics, notes))
  done = {json.dumps(line.setting) for line in lines}
  for setting, problems in left_out.items():
    if setting not in done:
      raise problems[0]
    notes = lines[0].notes + tuple(f'left out: {each}' for each in problems)
    lines[0] = lines[0]._replace(notes=notes)
  return lines


def markdown(lines: Sequence[Line], chosen: Sequence[measures.Measure]) -> str:
  """The lines as a Markdown table, with their notes."""
  rows = _rows(lines, chosen, '{:.6g}')
  widths = [max(map(len, column)) for column in zip(*rows)]
  rows.insert(1, ['-' * width for width in widths])
  text = ''.join(
    f'| {" | ".join(c.ljust(w) for c, w in zip(row, widths))} |\n'
    for row in rows
  )
  notes = dict.fromkeys(note for line in lines for note in line.notes)
  return text + ''.join(f'\n- {note}' for note in notes) + '\n' * bool(notes)


def comma_separated(
  lines: Sequence[Line], chosen: Sequence[measures.Measure]
) -> str:
  """The lines as CSV; numbers have nine significant digits."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerows(_rows(lines, chosen, '{:.9g}'))
  return text.getvalue()


def choose(
  names: Sequence[str] | None, lines: Sequence[Line]
) -> tuple[measures.Measure, ...]:
  """The metrics to show, see measures.choose."""
  return measures.choose(
    names or measures.BASIC, {name for line in lines for name in line.metrics}
  )


def _rows(lines, chosen, form: str) -> list[list[str]]:
  """The table as texts, its head first; '-' where a metric is absent."""
  keys = list(lines[0].setting)
  # The name of a loss and its value would be columns of one name.
  head = ['terms' if key == 'loss' else key for key in keys]
  rows = [['run', 'evaluation', *head, *(measure.label for measure in chosen)]]
  for line in lines:
    values = (line.metrics.get(measure.name) for measure in chosen)
    texts = ['-' if value is None else form.format(value) for value in values]
    setting = [line.setting[key] for key in keys]
    rows.append([line.run, line.evaluation, *setting, *texts])
  return rows


def _name(run: collect.Run) -> str:
  """The run's path, from the current folder if it is inside."""
  if isinstance(run.path, buckets.Path):
    return str(run.path)
  here = pathlib.Path.cwd()
  is_inside = run.path.is_relative_to(here)
  return (run.path.relative_to(here) if is_inside else run.path).as_posix()


def _order(path: files.AnyPath) -> tuple:
  """A run's own evaluations by step, then those on other data by name."""
  step = path.stem.removeprefix('eval_')
  is_own = step != path.stem and step.isdigit()
  return not is_own, int(step) if is_own else 0, path.stem


def _configure(run: collect.Run, setting: dict[str, str]) -> ConfigDict:
  """The config of the run with the losses of a setting, checked."""
  values, overrides = dict(run.config), []
  if 'loss' in setting:
    # Nothing of the run's losses stays, nor the stage that allows only some.
    values['loss'] = {'terms': _terms(setting['loss'])}
    values['stage'] = 'dpo'
  for key, value in setting.items():
    if key != 'loss':
      overrides.append((f'loss.{key}', value))
  config = stored.read(values, run.path / 'config.json', overrides)
  config_lib.check_losses(config)
  return config


def _terms(text: str) -> dict[str, float]:
  """`0.8*sigmoid+nll` -> {loss: weight}; a published mix by its name."""
  if text in rules.MIXES and text not in catalogue.read():
    return dict(rules.MIXES[text][0])
  terms = {}
  for term in text.split('+'):
    weight, times, name = term.rpartition('*')
    try:
      terms[name.strip()] = float(weight) if times else 1.0
    except ValueError:
      raise errors.refuse(
        _FLAG,
        f'{weight!r} is not the weight of {name!r}',
        'write e.g. loss=0.8*sigmoid+nll',
      ) from None
  for name in terms:
    if name not in catalogue.read():
      raise rules.unknown_loss(name, catalogue.read())
  return terms


def _check(
  objective: Objective, scored: HeldOut, columns: Sequence[str], path: Any
) -> None:
  """Refuses a loss that needs more than this evaluation computed."""
  for entry in (*objective.losses, *objective.transforms):
    for need in sorted(entry.needs & _HAS.keys()):
      if not _HAS[need](scored):
        raise errors.refuse(
          path,
          f'{entry.name} needs {records.NEEDS[need]}, which the evaluation of '
          "this run's losses did not compute",
          f'evaluate with --config.eval.score_for={entry.name}',
        )
  chosen = {loss.name: loss for loss in objective.losses}
  rules.check_data(chosen, columns, str(path))


def _check_epsilon(
  objective: Objective, hyper: Mapping[str, Any], run: collect.Run, path: Any
) -> None:
  """Refuses another epsilon than that of the saved tilted sums."""
  wanted = loss_config.epsilon(objective, hyper)
  _, own = loss_config.make(_configure(run, {}))
  if wanted is not None and wanted != loss_config.epsilon(objective, own):
    raise errors.refuse(
      path,
      f'epsilon {wanted:g} needs sums that were computed with '
      f'{loss_config.epsilon(objective, own):g}',
      'leave epsilon out, or train with the other one',
    )


def _state(
  objective: Objective, saved: dict[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The running numbers to use, and a note on each that the run has not."""
  numbers, notes = held_out_lib.initial_state(objective), []
  for name, initial in numbers.items():
    if saved.get(name, {}).keys() == initial.keys():
      numbers[name] = saved[name]
    else:
      notes.append(
        f'{name}: no run trained with it, so its running numbers are those '
        'before a first update.'
      )
  return numbers, tuple(notes)
