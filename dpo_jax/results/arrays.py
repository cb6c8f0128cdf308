"""Run directory -> its numbers as arrays, for notebooks.

Comes in: a run directory, finished or not. Goes out: a RunRecord: config,
metrics by split, and the values of each comparison by evaluation. Imports no
jax, computes and writes nothing.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.results import collect, run_files
from dpo_jax.storage import files, run_dir


class RunRecord(NamedTuple):
  """What a run directory holds."""

  path: files.AnyPath
  config: dict[str, Any]  # config.json
  done: bool  # the run has its DONE mark
  ledger: dict[str, Any]  # where each row of the data went; {} until DONE
  # split ('train', 'eval') -> name -> float64 [n], ascending in 'step' (int64
  # [n]); NaN where a line has no such metric
  metrics: dict[str, dict[str, np.ndarray]]
  # name of a file of per_example/ ('eval_0', ...) -> field -> [P]; `uid` and
  # `prompt_id` are texts
  examples: dict[str, dict[str, np.ndarray]]
  # name of a file of evaluate/ -> what it says: step, data, metrics
  evaluations: dict[str, dict[str, Any]]


def read_run(path: str | os.PathLike) -> RunRecord:
  """Reads a run's metrics and per-example scores.

  Raises:
    InputError: the folder is no run, or one of its files is damaged.
  """
  folder = run_dir.RunDir(path)
  folder.config()  # InputError where the folder is no run
  run = collect.read_run(folder.path)
  return RunRecord(
    path=run.path,
    config=run.config,
    done=run.done,
    ledger=folder.done_facts().get('ledger', {}) if run.done else {},
    metrics={split: _columns(steps) for split, steps in run.records.items()},
    examples={
      file.stem: _texts(run_files.read_arrays(file.read_bytes(), file))
      for file in sorted((run.path / 'per_example').glob('*.npz'))
    },
    evaluations={
      file.stem: files.read_json(file)
      for file in sorted((run.path / 'evaluate').glob('*.json'))
    },
  )


def _columns(steps: dict[int, dict[str, float]]) -> dict[str, np.ndarray]:
  """Lines by step -> an array per metric."""
  names = dict.fromkeys(name for line in steps.values() for name in line)
  columns = {
    name: np.array([line.get(name, np.nan) for line in steps.values()])
    for name in names
  }
  return {'step': np.array(list(steps), np.int64)} | columns


def _texts(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays, with bytes as texts."""
  return {
    name: array.astype(str) if array.dtype.kind == 'S' else array
    for name, array in arrays.items()
  }
