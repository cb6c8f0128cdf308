"""Runs -> what the page says is behind a number: commits, data, files.

Comes in: `Run`s. Goes out: per run, plain values for the details of a cell: the
folder, commit, command, devices, fingerprints of the data, digests of files.
Reads env.json only.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpo_jax.results import cells, collect, tables
from dpo_jax.results.page import markup
from dpo_jax.storage import files
from dpo_jax.types import InputError

_VERSIONS = ('jax', 'jaxlib', 'numpy', 'python')


def every_run(table: cells.Table) -> list[collect.Run]:
  """The runs of a table in its order."""
  return [run for row in table.rows for run in row.group.runs]


def describe(
  runs: Sequence[collect.Run], folder: str | os.PathLike
) -> list[dict[str, Any]]:
  """What is behind each run, as plain values.

  Args:
    runs: of the tables.
    folder: that the page will lie in.
  """
  return [_describe(run, folder) for run in runs]


def _describe(run: collect.Run, folder) -> dict[str, Any]:
  name = tables.run_name(run, folder)
  env, problem = _environment(run)
  prints = env.get('fingerprints')
  return {
    'name': markup.visible(name),
    'href': markup.href(name),
    'facts': _texts(
      {
        'seed': run.config.get('seed'),
        'state': 'done' if run.done else 'unfinished (no DONE)',
        'last evaluation': max(run.records.get('eval', {}), default='none'),
        'commit': _commit(env, problem),
        'command': ' '.join(map(str, env.get('command') or [])),
        'device': _device(env),
        'versions': ', '.join(f'{k} {env[k]}' for k in _VERSIONS if k in env),
        'torn lines': run.torn_lines or None,
      }
    ),
    'data': _texts(
      {
        'trained on': _data(run, 'train'),
        'evaluated on': _data(run, 'eval'),
        **(prints if isinstance(prints, Mapping) else {}),
      }
    ),
    'files': _texts(run.digests),
  }


def _environment(run: collect.Run) -> tuple[dict[str, Any], str]:
  """env.json, and why there is none."""
  try:
    env = files.read_json_or_none(run.path / 'env.json', fix='')
  except InputError:
    return {}, 'env.json is not readable'
  return (env, '') if env is not None else ({}, 'no env.json')


def _commit(env: Mapping[str, Any], problem: str) -> str:
  commit = env.get('git_commit')
  if not commit:
    return f'not known: {problem or "the code was in no git repository"}'
  return (
    f'{commit} (with uncommitted edits)' if env.get('git_dirty') else commit
  )


def _device(env: Mapping[str, Any]) -> str:
  kind = env.get('device_kind')
  return f'{env.get("num_devices", 1)} x {kind}' if kind else ''


def _data(run: collect.Run, use: str) -> str:
  data = run.config.get('data')
  return str(data.get(use, '')) if isinstance(data, Mapping) else ''


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
  """Values as text, those that say nothing left out."""
  return {
    markup.visible(str(key)): markup.visible(str(value), 2000)
    for key, value in values.items()
    if value is not None and value != ''
  }


def numbers(runs: Iterable[collect.Run]) -> dict[Any, int]:
  """The place of each run in the page's list, by its path."""
  return {run.path: index for index, run in enumerate(runs)}
