"""Run directory -> runs: reads finished and unfinished runs as they are.

Comes in: run directories, or folders that hold some at any depth. Goes out:
`Run`s: the config, what was measured, and the sha256 of every file that was
read, then `Group`s of runs that differ in their seed only. Writes nothing and
leaves nothing out: a run without DONE, or with a torn last line, says so.
"""

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.config import stored
from dpo_jax.results import measures
from dpo_jax.storage import example_file, files, metrics_file, run_dir
from dpo_jax.types import InputError

# Folders of a run that hold thousands of files and no runs.
_NO_RUNS = ('checkpoints', 'cache', 'tensorboard', 'per_example', 'evaluate')


class Examples(NamedTuple):
  """What one evaluation saved of each comparison, or of each completion."""

  step: int
  uid: np.ndarray  # [P], the record of each
  prompt: np.ndarray  # [P], its prompt; `uid` itself if none were saved
  arrays: dict[str, np.ndarray]  # field -> [P], float64 or bool


class Evaluation(NamedTuple):
  """What --mode=evaluate wrote beside a run's own evaluations."""

  step: int  # of the policy
  data: str  # config.data.eval
  metrics: dict[str, float]
  examples: Examples | None
  digests: dict[str, str]  # as Run.digests


class Run(NamedTuple):
  """One run directory, read."""

  path: pathlib.Path  # resolved
  order: int  # index of the argument that led to it
  config: dict[str, Any]  # config.json
  done: bool  # the run has its DONE mark
  torn_lines: int  # last lines of metrics.jsonl that are cut short: 0 or 1
  records: dict[str, dict[int, dict[str, float]]]  # split -> step -> metrics
  examples: Examples | None  # of the last evaluation
  digests: dict[str, str]  # file name -> sha256 hex of what was read
  evaluations: dict[str, Evaluation] = {}  # on other data, by name


class Group(NamedTuple):
  """Runs whose configs differ in `seed` only, in order of seed."""

  runs: tuple[Run, ...]

  @property
  def seeds(self) -> tuple[Any, ...]:
    """The distinct seeds, in order."""
    return tuple(dict.fromkeys(run.config.get('seed') for run in self.runs))

  def by_seed(self) -> list[tuple[Run, ...]]:
    """The runs of each seed: more than one if a run was repeated."""
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
    folders = find_runs(path)
    if not folders:
      raise errors.refuse(
        path,
        'no runs found',
        'name a folder that holds config.json and metrics.jsonl, or a folder '
        'above such folders',
      )
    for folder in folders:
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
    raise _no_folder(path)
  return sorted(_walk(path.resolve(), set()))


def _no_folder(path: pathlib.Path) -> InputError:
  if path.exists():
    return errors.refuse(path, 'not a folder', 'name the run directory')
  siblings = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
  near = errors.nearest(path.name, siblings)
  hint = f'did you mean {str(path.parent / near)!r}? ' if near else ''
  return errors.refuse(
    path, 'no such folder', f'{hint}name a run or a folder of runs'
  )


def _walk(folder: pathlib.Path, seen: set) -> Iterable[pathlib.Path]:
  """Yields the folders that are runs; follows links, each folder once."""
  if folder in seen:
    return
  seen.add(folder)  # a link may lead back up
  try:
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
  except OSError as error:
    raise errors.refuse(
      folder, f'cannot be listed ({error.strerror})', 'mend its permissions'
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
  config_path, metrics_path = path / 'config.json', path / 'metrics.jsonl'
  # Bytes are read once: what is parsed is what the digest is of, even if the
  # run goes on writing.
  data = {config_path.name: _read(config_path)}
  config = files.parse_json(
    data[config_path.name],
    config_path,
    fix='restore the file, or leave the run out',
    number=_number,
  )
  if isinstance(config.get('seed'), list | dict):
    raise errors.refuse(config_path, 'seed is a list', 'make it a number')
  records, torn = {}, 0
  if metrics_path.exists():
    data[metrics_path.name] = _read(metrics_path)
    records, torn = parse_metrics(data[metrics_path.name], metrics_path)
  # Intervals are of the last evaluation: earlier files are not read.
  step = max(records.get('eval', {0: {}}))
  name = f'per_example/eval_{step}.npz'
  examples = None
  if (path / name).exists():
    data[name] = _read(path / name)
    examples = parse_examples(data[name], step, path / name)
  return Run(
    path,
    order,
    config,
    _is_done(path),
    torn,
    records,
    examples,
    _digests(data),
    _read_evaluations(path),
  )


def with_evaluation(run: Run, name: str) -> Run:
  """The run as if an evaluation on other data were its only one."""
  one = run.evaluations[name]
  return run._replace(
    records={'eval': {one.step: one.metrics}}, examples=one.examples
  )


def _digests(data: dict[str, bytes]) -> dict[str, str]:
  return {name: files.bytes_digest([read]) for name, read in data.items()}


def _read_evaluations(path: pathlib.Path) -> dict[str, Evaluation]:
  """evaluate/*.json of a run, with the values in per_example/."""
  evaluations = {}
  for file in sorted((path / 'evaluate').glob('*.json')):
    name, fix = file.stem, 'evaluate the run again, or remove the file'
    values = f'per_example/{name}.npz'
    data = {f'evaluate/{file.name}': _read(file)}
    facts = files.parse_json(data[f'evaluate/{file.name}'], file, fix=fix)
    step, metrics = facts.get('step'), facts.get('metrics')
    if type(step) is not int or not isinstance(metrics, dict):
      raise errors.refuse(file, 'has no step or no metrics', fix)
    examples = None
    if (path / values).exists():
      data[values] = _read(path / values)
      examples = parse_examples(data[values], step, path / values)
    evaluations[name] = Evaluation(
      step,
      str(facts.get('data', '')),
      metrics_file.values(metrics),
      examples,
      _digests(data),
    )
  return evaluations


def _is_done(path: pathlib.Path) -> bool:
  """Whether DONE is of this very config: a prolonged run keeps its old one."""
  try:
    return run_dir.RunDir(path).is_done()
  except InputError:
    return True  # a mark that is not JSON counts


def parse_metrics(data: bytes, where: Any) -> tuple[dict, int]:
  """metrics.jsonl -> (split -> step -> metrics, number of torn last lines).

  If a step of a split is there twice, the later line counts. Nulls are left
  out.

  Args:
    data: the file's bytes.
    where: its path, for messages.

  Raises:
    InputError: as `metrics_file.parse`.
  """
  entries, torn = metrics_file.parse(data, where, numbers=measures.MEASURES)
  records = {}
  for entry in entries:
    steps = records.setdefault(entry['split'], {})
    steps[entry['step']] = metrics_file.values(entry)
  for split, steps in records.items():
    records[split] = dict(sorted(steps.items()))
  return records, torn


def parse_examples(data: bytes, step: int, where: Any) -> Examples | None:
  """per_example/eval_<step>.npz -> Examples; None if it holds no examples.

  Raises:
    InputError: not an npz of numbers, or its arrays differ in length.
  """
  arrays = read_arrays(data, where)
  if 'uid' not in arrays:
    return None
  uid = arrays.pop('uid')
  if any(array.shape[:1] != uid.shape for array in arrays.values()):
    shapes = ', '.join(str(array.shape) for array in arrays.values())
    raise errors.refuse(
      where,
      f'{uid.size} uids but scores of shapes {shapes}',
      'evaluate the run again',
    )
  prompt = arrays.pop('prompt_id', uid)
  return Examples(step, uid, prompt, _as_numbers(arrays)) if uid.size else None


def read_arrays(data: bytes, where: Any) -> dict[str, np.ndarray]:
  """The arrays of an npz file, {} if it holds no values of its uids.

  Raises:
    InputError: not an npz, or one of objects.
  """
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
      if set(archive.files) <= {'uid'}:
        return {}
      names = [n for n in archive.files if not example_file.is_whole(n)]
      return {name: archive[name] for name in names}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    problem = str(error).splitlines()[0]
    raise errors.refuse(
      where, f'not a readable npz ({problem})', 'evaluate the run again'
    ) from error


def _as_numbers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of one number per example; float64, so that means are exact."""
  return {
    name: array if array.dtype == bool else array.astype(np.float64)
    for name, array in arrays.items()
    if array.ndim == 1 and array.dtype.kind in 'biuf'
  }


def group_runs(runs: Iterable[Run]) -> list[Group]:
  """Groups runs that differ in the top-level config key `seed` only.

  Keys that no number depends on do not count, a missing key has its default,
  and a run that starts from another run of the same seed counts as one that
  starts from that run's group. Groups come in order of their first run; runs
  in order of seed.
  """
  groups = {}
  for run in sorted(runs, key=lambda run: run.order):
    groups.setdefault(_group_key(run.path, run.config), []).append(run)
  return [
    Group(tuple(sorted(members, key=_seed_order)))
    for members in groups.values()
  ]


def counted(config: dict[str, Any]) -> dict[str, Any]:
  """{dotted key: value} of all keys of a config that numbers depend on.

  Args:
    config: as read; keys that it lacks get their defaults.
  """
  # As it is read from a file: lists for tuples, 1 for 1.0.
  text = json.dumps(stored.complete(config))
  full = files.parse_json(text, 'config.json', fix='', number=_number)
  flat = files.flatten(full, keep=['loss.terms'])
  return {
    key: value
    for key, value in flat.items()
    if not any(f'{key}.'.startswith(f'{no}.') for no in stored.NO_NUMBERS)
  }


def _group_key(
  path: pathlib.Path, config: dict[str, Any], depth: int = 0
) -> str:
  """The text that is equal for runs of one group."""
  values = counted(config)
  seed = values.pop('seed', None)
  for key in ('model.init_from', 'reference.init_from'):
    start = _run_of(values.get(key), path)
    # A run may start from a run, but not for ever: links may go in circles.
    if start and start[1].get('seed') == seed and depth < 8:
      values[key] = ['the group of', _group_key(*start, depth + 1)]
  return json.dumps(values, sort_keys=True)


def _run_of(
  name: Any, path: pathlib.Path
) -> tuple[pathlib.Path, dict[str, Any]] | None:
  """(path, config) of the run that an init_from names; None if it is none.

  A relative name is looked for from here, then from the folders above the run.
  """
  if not isinstance(name, str) or not name:
    return None
  for folder in (pathlib.Path(), *path.parents):
    start = folder / name
    if (start / 'model.json').is_file():
      try:
        return start.resolve(), run_dir.RunDir(start).config()
      except InputError:
        return None
  return None


def _seed_order(run: Run) -> tuple:
  seed = run.config.get('seed')
  # Seeds that are no integer come last, as they were found.
  return (not isinstance(seed, int), seed if isinstance(seed, int) else 0)


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise errors.refuse(
      path, f'cannot be read ({error.strerror})', 'mend its permissions'
    ) from error


def _number(text: str) -> float | int:
  """A JSON number; 1.0 becomes 1, so that both say the same config."""
  if len(text) < 20 and text.lstrip('-').isdigit():
    return int(text)
  value = float(text)
  return int(value) if value.is_integer() and abs(value) < 1e15 else value
