"""Comparison of run directories, bit by bit."""

import json
import pathlib

import numpy as np

_RATES = '_per_second'  # the only metrics that a clock decides


def metrics(run: pathlib.Path) -> list[dict]:
  """The lines of metrics.jsonl without rates."""
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.endswith(_RATES)}
    for line in lines
  ]


def values(run: pathlib.Path) -> dict[str, bytes]:
  """Every array of per_example/, as bytes."""
  found = {}
  for path in sorted((run / 'per_example').glob('*.npz')):
    with np.load(path) as arrays:
      for name, array in arrays.items():
        found[f'{path.name} {name}'] = array.tobytes()
  return found


def checkpoints(run: pathlib.Path) -> dict[str, dict]:
  """{step: the fingerprints of all its leaves}."""
  found = {}
  for path in sorted((run / 'checkpoints').iterdir()):
    if path.name.isdigit():
      record = json.loads((path / 'meta' / 'metadata').read_text())
      found[path.name] = record['leaves']
  assert found, run
  return found


def contents(run: pathlib.Path) -> tuple:
  """All that a run's numbers are."""
  return metrics(run), values(run), checkpoints(run)


def same(first: pathlib.Path, second: pathlib.Path, names) -> None:
  """Asserts that runs of these names are equal in two folders."""
  for name in names:
    assert contents(first / name) == contents(second / name), name
