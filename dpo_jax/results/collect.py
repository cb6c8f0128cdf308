"""Run directory -> runs: reads finished and unfinished runs as they are.

Comes in: run directories, or folders that hold some at any depth. Goes out:
`Run`s: the config, what was measured, and the sha256 of every file that was
read, then `Group`s of runs that differ in their seed only. Writes nothing and
leaves nothing out: a run without DONE, or with a torn last line, says so.
"""

import json
import os
import pathlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.config import stored
from dpo_jax.results import options, run_files, steps
from dpo_jax.storage import files, places, run_dir
from dpo_jax.types import InputError

# Folders of a run that hold thousands of files and no runs.
_NO_RUNS = (
  'checkpoints',
  'cache',
  'tensorboard',
  'per_example',
  'evaluate',
  'frontier',
)
LAST = options.At()
_DEEPEST = 8  # runs that start from runs


class Run(NamedTuple):
  """One run directory, read."""

  path: files.AnyPath  # resolved
  order: int  # index of the argument that led to it
  config: dict[str, Any]  # config.json
  done: bool  # the run has its DONE mark
  torn_lines: int  # last lines of metrics.jsonl that are cut short: 0 or 1
  records: dict[str, dict[int, dict[str, float]]]  # split -> step -> metrics
  examples: run_files.Examples | None  # of the evaluation at `step`
  digests: dict[str, str]  # file name -> sha256 hex of what was read
  evaluations: dict[str, run_files.Evaluation] = {}  # on other data, by name
  # step -> frontier/step_N.json: {'reward', 'num_samples', 'metrics', ...}
  frontier: dict[int, dict[str, Any]] = {}
  step: int = 0  # of the cells, see --at; 0 = none after the start
  first: run_files.Examples | None = None  # of the start; None if step is 0


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


def collect(
  paths: Iterable[str | os.PathLike], at: options.At = LAST
) -> list[Run]:
  """Reads the runs at and below `paths`, each once, in order of `paths`.

  A run is a folder with config.json and metrics.jsonl, or with config.json
  and env.json (started, nothing measured yet).

  Args:
    paths: of runs, or of folders of them.
    at: the evaluation that cells are of.

  Raises:
    InputError: a path is missing or holds no run, or a run is not readable.
  """
  runs, seen = [], set()
  for order, path in enumerate(paths):
    path = files.at(path)
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
        runs.append(read_run(folder, order, at))
  return runs


def find_runs(path: str | os.PathLike) -> list[files.AnyPath]:
  """The run directories at or below `path`, resolved and sorted.

  Raises:
    InputError: no such folder, or one that may not be listed.
  """
  path = files.at(path)
  if not path.is_dir():
    raise _no_folder(path)
  return sorted(_walk(path.resolve(), set()))


def _no_folder(path: files.AnyPath) -> InputError:
  if path.exists():
    return errors.refuse(path, 'not a folder', 'name the run directory')
  parent = path.parent
  siblings = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
  near = errors.nearest(path.name, siblings)
  hint = f'did you mean {str(path.parent / near)!r}? ' if near else ''
  return errors.refuse(
    path, 'no such folder', f'{hint}name a run or a folder of runs'
  )


def _walk(folder: files.AnyPath, seen: set) -> Iterable[files.AnyPath]:
  """Yields the folders that are runs; follows links, each folder once."""
  if folder in seen:
    return
  seen.add(folder)  # a link may lead back up
  try:
    entries = places.entries(folder)
  except OSError as error:
    raise errors.refuse(
      folder, f'cannot be listed ({error.strerror})', 'mend its permissions'
    ) from error
  names = {path.name for path, _ in entries}
  is_run = 'config.json' in names and names & {'metrics.jsonl', 'env.json'}
  if is_run:
    yield folder
  for path, is_folder in entries:
    if is_folder and not (is_run and path.name in _NO_RUNS):
      yield from _walk(path.resolve(), seen)


def read_run(
  path: files.AnyPath,
  order: int = 0,
  at: options.At = LAST,
  known: Collection[str] | None = None,
) -> Run:
  """Reads one run directory.

  Args:
    path: of the run.
    order: see Run.
    at: the evaluation that cells are of.
    known: files of frontier/ that count, by their names in `digests`; None =
      all.

  Raises:
    InputError: `config.json` or a complete line of `metrics.jsonl` is not a
      JSON object of the right form, or the per-example file is damaged.
  """
  path = files.at(path).resolve()
  config_path, metrics_path = path / 'config.json', path / 'metrics.jsonl'
  # Bytes are read once: what is parsed is what the digest is of, even if the
  # run goes on writing.
  data = {config_path.name: run_files.read(config_path)}
  config = files.parse_json(
    data[config_path.name],
    config_path,
    fix='restore the file, or leave the run out',
    number=run_files.number,
  )
  if isinstance(config.get('seed'), list | dict):
    raise errors.refuse(config_path, 'seed is a list', 'make it a number')
  records, torn = {}, 0
  if metrics_path.exists():
    data[metrics_path.name] = run_files.read(metrics_path)
    records, torn = run_files.parse_metrics(
      data[metrics_path.name], metrics_path
    )
  # Intervals are of one evaluation: the files of others are not read.
  step = steps.choose(records, config, at, path)
  name = f'per_example/eval_{step}.npz'
  examples = None
  if (path / name).exists():
    data[name] = run_files.read(path / name)
    examples = run_files.parse_examples(data[name], step, path / name)
  first, name = None, 'per_example/eval_0.npz'
  if step and (path / name).exists():
    data[name] = run_files.read(path / name)
    first = run_files.parse_examples(data[name], 0, path / name)
  frontier, digests = run_files.read_frontier(path, known)
  return Run(
    path,
    order,
    config,
    _is_done(path),
    torn,
    records,
    examples,
    run_files.digests(data) | digests,
    run_files.read_evaluations(path),
    frontier,
    step,
    first,
  )


def with_evaluation(run: Run, name: str) -> Run:
  """The run as if an evaluation on other data were its only one."""
  one = run.evaluations[name]
  return run._replace(
    records={'eval': {one.step: one.metrics}},
    examples=one.examples,
    step=one.step,
  )


def _is_done(path: files.AnyPath) -> bool:
  """Whether DONE is of this very config: a prolonged run keeps its old one."""
  try:
    return run_dir.RunDir(path).is_done()
  except InputError:
    return False  # a mark that no run wrote


def group_runs(runs: Iterable[Run]) -> list[Group]:
  """Groups runs that differ in the top-level config key `seed` only.

  Keys that no number depends on do not count and a missing key has its default.
  A run that starts from another run counts as one that starts from this very
  run, or, if the other has the same seed, from that run's group: by whichever
  joins more seeds. Groups come in order of their first run; runs in order of
  seed.
  """
  runs = sorted(runs, key=lambda run: run.order)
  # Beyond the last depth a start is its path.
  keys = [
    (_group_key(r.path, r.config), _group_key(r.path, r.config, _DEEPEST))
    for r in runs
  ]
  seeds: dict[str, set] = {}
  for run, both in zip(runs, keys):
    for key in both:
      seeds.setdefault(key, set()).add(repr(run.config.get('seed')))
  groups = {}
  for run, both in zip(runs, keys):
    # The first of equals: that of groups.
    key = max(both, key=lambda key: len(seeds[key]))
    groups.setdefault(key, []).append(run)
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
  full = files.parse_json(text, 'config.json', fix='', number=run_files.number)
  flat = files.flatten(full, keep=['loss.terms'])
  return {
    key: value
    for key, value in flat.items()
    if not any(f'{key}.'.startswith(f'{no}.') for no in stored.NO_NUMBERS)
  }


def _group_key(
  path: files.AnyPath, config: dict[str, Any], depth: int = 0
) -> str:
  """The text that is equal for runs of one group."""
  values = counted(config)
  seed = values.pop('seed', None)
  for key in ('model.init_from', 'reference.init_from'):
    start = _run_of(values.get(key), path)
    # A run may start from a run, but not for ever: links may go in circles.
    if start and start[1].get('seed') == seed and depth < _DEEPEST:
      values[key] = ['the group of', _group_key(*start, depth + 1)]
  return json.dumps(values, sort_keys=True)


def _run_of(
  name: Any, path: files.AnyPath
) -> tuple[files.AnyPath, dict[str, Any]] | None:
  """(path, config) of the run that an init_from names; None if it is none.

  A relative name is looked for from here, then from the folders above the run.
  """
  if not isinstance(name, str) or not name:
    return None
  for folder in (pathlib.Path(), *path.parents):
    try:
      start = places.join(folder, name)
      if (start / 'model.json').is_file():
        return start.resolve(), run_dir.RunDir(start).config()
    except InputError:  # also a store that cannot be used here
      return None
  return None


def _seed_order(run: Run) -> tuple:
  seed = run.config.get('seed')
  # Seeds that are no integer come last, as they were found.
  return (not isinstance(seed, int), seed if isinstance(seed, int) else 0)
