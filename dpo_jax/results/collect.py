"""Run directory -> runs: reads finished and unfinished runs as they are.

Comes in: run directories, or folders that hold some at any depth. Goes out:
`Run`s: the config, what was measured, and the sha256 of every file that was
read, then `Group`s of runs that differ in their seed only. Writes nothing and
leaves nothing out: a run without DONE, or with a torn last line, says so.
"""

import hashlib
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.types import InputError

# the measurements that tables and figures show; other entries of a line may
# be anything, these are numbers or null
SHOWN_METRICS = ('loss', 'rewards/accuracies', 'rewards/margins', 'kl')
# folders of a run that hold thousands of files and no runs
_NO_RUNS = ('checkpoints', 'cache', 'tensorboard', 'per_example')
_SCORES = (
  'policy_chosen',
  'policy_rejected',
  'reference_chosen',
  'reference_rejected',
)


class Examples(NamedTuple):
  """The scores of one evaluation, arrays [P]: one entry a comparison."""

  step: int
  uid: np.ndarray  # the record (prompt) of each comparison
  chosen_log_ratio: np.ndarray  # log policy - log reference, nats
  rejected_log_ratio: np.ndarray  # likewise
  loss: np.ndarray | None  # the loss of each, where the run saved it


class Run(NamedTuple):
  """One run directory, read."""

  path: pathlib.Path  # resolved
  order: int  # index of the argument that led to it
  config: dict[str, Any]  # config.json
  done: bool  # the run has its DONE mark
  torn_lines: int  # last line of metrics.jsonl cut short: 0 or 1
  records: dict[str, dict[int, dict[str, float]]]  # split -> step -> metrics
  examples: Examples | None  # of the last evaluation
  digests: dict[str, str]  # file name -> sha256 hex of what was read


class Group(NamedTuple):
  """Runs whose configs differ in `seed` only, in order of seed."""

  runs: tuple[Run, ...]

  @property
  def seeds(self) -> tuple[Any, ...]:
    """The distinct seeds, in order."""
    return tuple(dict.fromkeys(run.config.get('seed') for run in self.runs))

  def by_seed(self) -> list[tuple[Run, ...]]:
    """The runs of each seed: more than one where a run was repeated."""
    return [
      tuple(run for run in self.runs if run.config.get('seed') == seed)
      for seed in self.seeds
    ]


def collect(paths: Iterable[str | os.PathLike]) -> list[Run]:
  """Reads the runs at and below `paths`, each once, in order of `paths`.

  A run is a folder with config.json and metrics.jsonl, or with config.json
  and env.json (started, nothing measured yet).

  Raises:
    InputError: a path is missing or holds no run, or a run is not readable.
  """
  runs, seen = [], set()
  for order, path in enumerate(paths):
    path = pathlib.Path(path)
    found = find_runs(path)
    if not found:
      raise errors.refuse(
        path,
        'no runs found',
        'name a folder that holds config.json and metrics.jsonl, or a folder '
        'above such folders',
      )
    for folder in found:
      if folder not in seen:
        seen.add(folder)
        runs.append(read_run(folder, order))
  return runs


def find_runs(path: str | os.PathLike) -> list[pathlib.Path]:
  """The run directories at or below `path`, resolved and sorted.

  Raises:
    InputError: no such folder, or one that may not be listed.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    raise InputError(f'{path}: {_why_no_folder(path)}')
  return sorted(_walk(path.resolve(), set()))


def _why_no_folder(path: pathlib.Path) -> str:
  if path.exists():
    return 'not a folder; fix: name the run directory'
  siblings = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
  near = errors.nearest(path.name, siblings)
  hint = f'did you mean {str(path.parent / near)!r}? ' if near else ''
  return f'no such folder; fix: {hint}name a run or a folder of runs'


def _walk(folder: pathlib.Path, seen: set) -> Iterable[pathlib.Path]:
  """Folders that are runs; follows links, each real folder once."""
  if folder in seen:
    return
  seen.add(folder)
  try:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
  except OSError as error:
    raise errors.refuse(
      folder, f'cannot be listed ({error.strerror})', 'its permissions'
    ) from error
  names = {entry.name for entry in entries}
  is_run = 'config.json' in names and names & {'metrics.jsonl', 'env.json'}
  if is_run:
    yield folder
  for entry in entries:
    if entry.is_dir() and not (is_run and entry.name in _NO_RUNS):
      yield from _walk(pathlib.Path(entry.path).resolve(), seen)


def read_run(path: pathlib.Path, order: int = 0) -> Run:
  """Reads one run directory.

  Raises:
    InputError: `config.json` or a complete line of `metrics.jsonl` is not a
      JSON object of the right form, or the per-example file is damaged.
  """
  path = pathlib.Path(path).resolve()
  config_bytes = _read(path / 'config.json')
  digests = {'config.json': _digest(config_bytes)}
  config = _json_object(config_bytes, f'{path / "config.json"}')
  if isinstance(config.get('seed'), (list, dict)):
    raise errors.refuse(path / 'config.json', 'seed is a list', 'a number')
  records, torn = {}, 0
  if (path / 'metrics.jsonl').exists():
    metrics_bytes = _read(path / 'metrics.jsonl')
    digests['metrics.jsonl'] = _digest(metrics_bytes)
    records, torn = parse_metrics(metrics_bytes, str(path / 'metrics.jsonl'))
  step = max(records.get('eval', {0: {}}))
  name = f'per_example/eval_{step}.npz'
  examples = None
  if (path / name).exists():
    example_bytes = _read(path / name)
    digests[name] = _digest(example_bytes)
    examples = parse_examples(example_bytes, step, str(path / name))
  done = (path / 'DONE').exists() and _ended(path / 'DONE', config_bytes)
  return Run(path, order, config, done, torn, records, examples, digests)


def _ended(path: pathlib.Path, config_bytes: bytes) -> bool:
  """Whether DONE is of this config: a prolonged run keeps its old one.

  DONE may name the sha256 of the config as sorted JSON (storage/run_dir.py).
  """
  try:
    facts = json.loads(_read(path))
  except ValueError:
    return True  # a mark without facts
  if not isinstance(facts, dict) or 'config' not in facts:
    return True
  text = json.dumps(json.loads(config_bytes), sort_keys=True)
  return facts['config'] == _digest(text.encode())


def parse_metrics(data: bytes, where: str) -> tuple[dict, int]:
  """metrics.jsonl -> (split -> step -> metrics, number of torn last lines).

  The last line may be cut short (the run was killed, or is writing): it is
  left out and counted. Where a step of a split is there twice, the later line
  counts. Nulls are left out.

  Args:
    data: the file's bytes.
    where: its path, for messages.

  Raises:
    InputError: another line is not of the form, naming it.
  """
  lines = data.split(b'\n')
  torn = 0
  if lines[-1].strip():  # no newline at the end
    try:
      json.loads(lines[-1])
    except (ValueError, RecursionError):
      torn = 1
      lines.pop()
  records = {}
  for number, line in enumerate(lines, 1):
    if line.strip():
      step, split, metrics = _parse_line(line, f'{where}:{number}')
      records.setdefault(split, {})[step] = metrics
  for split, steps in records.items():
    records[split] = dict(sorted(steps.items()))
  return records, torn


def _parse_line(line: bytes, where: str) -> tuple[int, str, dict[str, float]]:
  entry = _json_object(line, where)
  step, split = entry.pop('step', None), entry.pop('split', None)
  if type(step) is not int or step < 0:
    raise errors.refuse(where, f'step is {step!r}', 'an integer from 0')
  if not isinstance(split, str):
    raise errors.refuse(where, f'split is {split!r}', "'train' or 'eval'")
  metrics = {}
  for name, value in entry.items():
    if type(value) in (int, float):
      metrics[name] = float(value)
    elif name in SHOWN_METRICS and value is not None:
      raise errors.refuse(where, f'{name} is {value!r}', 'a number or null')
  # JSON has no NaN: "nonfinite": "loss=nan, kl=inf" beside nulls
  for item in str(entry.get('nonfinite', '')).split(', '):
    name, _, value = item.partition('=')
    if value in ('nan', 'inf', '-inf'):
      metrics[name] = float(value)
  return step, split, metrics


def parse_examples(data: bytes, step: int, where: str) -> Examples | None:
  """per_example/eval_<step>.npz -> Examples; None where it has no scores.

  Raises:
    InputError: not an npz of numbers, or its arrays differ in length.
  """
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
      if not {'uid', *_SCORES} <= set(arrays.files):
        return None
      uid = arrays['uid']
      scores = [arrays[name].astype(np.float64) for name in _SCORES]
      loss = arrays['loss'] if 'loss' in arrays.files else None
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    problem = str(error).splitlines()[0]
    raise errors.refuse(
      where, f'not a readable npz ({problem})', 'evaluate the run again'
    ) from error
  if {score.shape for score in scores} != {(len(uid),)}:
    shapes = ', '.join(str(score.shape) for score in scores)
    raise errors.refuse(
      where,
      f'{len(uid)} uids but scores of shapes {shapes}',
      'evaluate the run again',
    )
  chosen, rejected, reference_chosen, reference_rejected = scores
  if len(uid) == 0:
    return None
  if loss is not None and loss.shape != uid.shape:
    loss = None
  return Examples(
    step, uid, chosen - reference_chosen, rejected - reference_rejected, loss
  )


def group_runs(runs: Iterable[Run]) -> list[Group]:
  """Groups runs that differ in the top-level config key `seed` only.

  Groups come in order of their first run's argument, then as found; runs in
  order of seed.
  """
  groups = {}
  for run in sorted(runs, key=lambda run: run.order):
    rest = {key: value for key, value in run.config.items() if key != 'seed'}
    groups.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
  return [
    Group(tuple(sorted(members, key=_seed_order)))
    for members in groups.values()
  ]


def _seed_order(run: Run) -> tuple:
  seed = run.config.get('seed')
  return (not isinstance(seed, int), seed if isinstance(seed, int) else 0)


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise errors.refuse(
      path, f'cannot be read ({error.strerror})', 'its permissions'
    ) from error


def _json_object(data: bytes, where: str) -> dict[str, Any]:
  try:
    value = json.loads(data, parse_float=_number, parse_int=_number)
  except (ValueError, RecursionError) as error:  # not UTF-8: a ValueError
    raise errors.refuse(
      where,
      f'not JSON ({str(error).splitlines()[0]})',
      'restore the file, or leave the run out',
    ) from error
  if not isinstance(value, dict):
    raise errors.refuse(
      where,
      f'a JSON {type(value).__name__}, not an object',
      'restore the file, or leave the run out',
    )
  return value


def _number(text: str) -> float | int:
  """A JSON number; 1.0 becomes 1, so that both say the same config."""
  if len(text) < 20 and text.lstrip('-').isdigit():
    return int(text)
  value = float(text)
  return int(value) if value.is_integer() and abs(value) < 1e15 else value


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
