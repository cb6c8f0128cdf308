"""points -> a folder of finished runs: the loop of a sweep.

Comes in: an experiment, its overrides and the flags of a sweep. Goes out: a run
directory per point, trained by the same code as a run of its own. Points of one
graph share what does not depend on traced numbers: the compiled programs, the
records, the reference. Knows no step and no loss.
"""

import contextlib
import functools
import importlib
import itertools
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TextIO

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.run.preemption import Diverged, Preempted
from dpo_jax.storage import append, readable
from dpo_jax.sweeps import claims, devices, points
from dpo_jax.sweeps import folder as folders
from dpo_jax.sweeps.points import Point
from dpo_jax.types import InputError

# Metrics of the line that ends a point and of --status, as far as it has them.
_SHOWN = ('loss', 'rewards/accuracies', 'rewards/margins', 'kl')
_POLL_SECONDS = 2.0  # between two looks at points that other processes have
_CODE_FAILED = 1
_NAMED = 5  # points in a line that names some
# One point after another; many in one program, see stacked.py.
MODES = ('loop', 'map', 'vmap', 'auto')


class Options(NamedTuple):
  """The flags of a sweep that are no keys of the config."""

  shard: tuple[int, int] = (0, 1)  # this one of so many
  devices_per_point: int = 0  # 0 = all devices for every point
  cores_per_point: int = 0  # of a host without accelerators; 0 = all
  name: str = ''  # of a sub-sweep
  mode: str = 'loop'  # one after another, or many in one program


def main(
  config: ConfigDict | None,
  workdir: str = '',
  *,
  experiment: str = '',
  overrides: Sequence[tuple[str, Any]] = (),
  sweep: Sequence[tuple[str, str]] = (),
  dry_run: bool = False,
  retry: bool = False,
  status: bool = False,
) -> int:
  """--mode=sweep: trains every point of a sweep, each in its own directory.

  Args:
    config: not read: every point has its own.
    workdir: the folder of the sweep.
    experiment: `path.py` or `path.py:arg`.
    overrides: (dotted key, value) for every point.
    sweep: (key, values) of the flags `--sweep.KEY=VALUES`.
    dry_run: whether to print the points, their groups and their cost only.
    retry: whether to try failed points again.
    status: whether to print where the points stand only.

  Returns:
    0 if every point of this command is done, 1 if one failed.

  Raises:
    InputError: a flag or a point cannot be used; nothing was started.
    Preempted: a signal came; the point of that moment saved its state.
  """
  del config
  options, swept = _options(sweep)
  folder = folders.Folder(workdir) if workdir else None
  if status:
    return _status(folder, experiment, overrides, swept, options)
  listed = points.read(experiment, overrides, swept, options.name)
  if dry_run:
    cost = importlib.import_module('dpo_jax.sweeps.cost')
    print(cost.describe(listed, folder))
    return 0
  listed = _shard(folder.open(experiment, listed), options.shard)
  if options.devices_per_point:
    backend, count = devices.ask()
    if count > options.devices_per_point:
      return devices.split(backend, count, options.devices_per_point)
  cores = sorted(os.sched_getaffinity(0))
  if 0 < options.cores_per_point < len(cores):
    return devices.split_cores(
      cores, options.cores_per_point, lambda: folder.has_begun(listed)
    )
  return Loop(folder, listed, retry, options.mode).run()


class Loop:
  """The points of one process, and what is known of them.

  Args:
    folder: of the sweep.
    listed: the points, those of one graph together.
    retry: whether to try points again that failed before.
    mode: one of MODES.
    say: takes one line.
  """

  def __init__(
    self,
    folder: folders.Folder,
    listed: list[Point],
    retry: bool = False,
    mode: str = 'loop',
    say: Callable[[str], None] = print,
  ):
    """Starts nothing yet."""
    self._folder, self._points, self._mode = folder, listed, mode
    self._say = say
    self._retry = retry
    self._tried: set[str] = set()  # by this process
    # When its first point was done, and how many points had ended then.
    self._first: tuple[float, int] | None = None
    self._graph = ''
    self._shared = None

  def run(self) -> int:
    """Runs all points; 0 if each is done, 1 if one failed."""
    num_points = len(self._points)
    self._say(f'sweep of {num_points} points in {self._folder.path}')
    if any(p.config.reference.mode == 'cache' for p in self._points):
      self._say(
        'the reference runs once for all points (reference.mode=cache); '
        '--config.reference.mode=params keeps it in the step'
      )
    self.train(self._points)
    states = [self._folder.state(p.name, p) for p in self._points]
    self._say(folders.summary(states))
    for note in sorted({s.note for s in states if s.state == 'done'} - {''}):
      made = [s.name for s in states if s.state == 'done' and s.note == note]
      self._say(f'{len(made)} points {note}, not by this code: {_some(made)}')
    bad = [s for s in states if s.state in ('failed', 'foreign')]
    for state in bad:
      self._say(f'{state.name}: {state.state}, {state.note}')
    if bad:
      self._say(f'--retry tries failed points again; {len(bad)} are not done')
    return _CODE_FAILED if bad else 0

  def train(self, listed: Sequence[Point]) -> None:
    """Runs points until each is done or has failed, here or elsewhere."""
    remaining = list(listed)
    if self._mode != 'loop':
      for _, group in itertools.groupby(remaining, lambda p: p.graph):
        self._run_together(list(group))
    while remaining:
      left = [point for point in remaining if not self._settles(point)]
      # What is left is claimed by other processes: theirs to finish, or to be
      # taken over if they end without.
      if len(left) == len(remaining):
        time.sleep(_POLL_SECONDS)
      remaining = left

  def _settles(self, point: Point) -> bool:
    """Runs a point unless it is claimed; whether it is settled now."""
    with claims.claim(self._folder.claims, point.name) as other:
      if other:
        return False
      if self._is_due(point):
        self._tried.add(point.name)
        self._run(point)
      return True

  def _is_due(self, point: Point) -> bool:
    """Whether a claimed point is to be run by this process."""
    if self._folder.state(point.name, point).state in ('done', 'foreign'):
      return False
    may_try = self._retry and point.name not in self._tried
    return may_try or self._folder.failure(point.name) is None

  def _run_together(self, group: list[Point]) -> None:
    """Trains what is free of one graph in one program."""
    stacked = importlib.import_module('dpo_jax.sweeps.stacked')
    program = importlib.import_module('dpo_jax.sweeps.program')
    shared = importlib.import_module('dpo_jax.run.shared')
    with contextlib.ExitStack() as held:
      own = []
      for point in group:
        claim = claims.claim(self._folder.claims, point.name)
        if not held.enter_context(claim) and self._is_due(point):
          own.append(point)
      if not own:
        return
      for point in own:
        self._tried.add(point.name)
        self._folder.clear_failed(point.name)
      began = time.monotonic()
      failed = stacked.train_points(
        own,
        self._folder,
        shared.Shared(
          self._folder.cache_dir,
          self._folder.path.name,
          program.one_device(),
          shared.BATCH_BYTES,
        ),
        self._mode,
        self._say,
      )
      seconds = time.monotonic() - began
      for name, (line, code) in failed.items():
        self._folder.mark_failed(name, line, code)
      self._say(
        f'{len(own)} points in one program: {len(own) - len(failed)} done in '
        f'{seconds:.1f} s'
      )

  def _run(self, point: Point) -> None:
    """Trains a point; a failure is kept and ends nothing but the point."""
    self._folder.clear_failed(point.name)
    began = time.monotonic()
    output = self._folder.output(point.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    with append.open_log(output) as file:
      line, code = self._train(point, file)
    seconds = time.monotonic() - began
    if code:
      self._folder.mark_failed(point.name, line, code)
    # With those that other processes ended: they share the points.
    number, total = self._folder.num_ended(self._points), len(self._points)
    # A search says its points one by one: there is no total to count to.
    place = f'[{number}/{total}] {point.name}' if total else point.name
    if code:
      self._say(f'{place}: failed, {line}')
      return
    state = self._folder.state(point.name, point)
    metrics = ', '.join(
      f'{m} {state.metrics[m]:.4f}' for m in _SHOWN if m in state.metrics
    )
    left = f'; {self._time_left(number, seconds)} left' if total else ''
    self._say(f'{place}: done in {seconds:.1f} s, {metrics}{left}')

  def _train(self, point: Point, output: TextIO) -> tuple[str, int]:
    """Trains a point; ('', 0), or the line and the exit code of a failure."""
    train = importlib.import_module('dpo_jax.train')
    try:
      with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
      ):
        path = str(self._folder.path / point.name)
        code = train.main(point.config, path, shared=self._common(point))
      return (f'exit code {code}, see {output.name}' if code else ''), code
    except Preempted:
      raise
    except InputError as error:
      return str(error), error.exit_code
    except Diverged as error:
      return str(error), 1
    except Exception as error:
      # A bug in one loss must not cost the other fifty-nine points.
      traceback.print_exc(file=output)
      problem = f'{type(error).__name__}: {error}'.splitlines()[0]
      return f'{problem}, see {output.name}', _CODE_FAILED

  def _common(self, point: Point) -> Any:
    """What the points of this graph share, made for the first of them."""
    if point.graph != self._graph:
      shared = importlib.import_module('dpo_jax.run.shared')
      self._shared = shared.Shared(
        self._folder.cache_dir,
        self._folder.path.name,
        batch_bytes=shared.BATCH_BYTES,
      )
      self._graph = point.graph
    return self._shared

  def _time_left(self, number: int, seconds: float) -> str:
    """Hours, minutes and seconds for the points that are left, or less.

    Args:
      number: of points that have ended.
      seconds: that the newest of this process took.
    """
    now = time.monotonic()
    # The first one of a graph compiles: the later ones tell more.
    began, before = self._first = self._first or (now, number)
    if number > before:
      seconds = (now - began) / (number - before)
    return readable.clock(seconds * (len(self._points) - number))


def _some(names: Sequence[str]) -> str:
  """The first names, and how many are left out."""
  left = len(names) - _NAMED
  more = f' and {left} more' if left > 0 else ''
  return f'{"; ".join(names[:_NAMED])}{more}'


def _status(folder, experiment, overrides, swept, options) -> int:
  """Prints where the points stand; 1 if one failed."""
  listed = (
    points.read(experiment, overrides, swept, options.name)
    if experiment
    else []
  )
  by_digest = {point.digest: point for point in listed}
  known = folder.known()
  if not known:
    raise errors.refuse(
      folder.path, 'not a sweep (no sweep.json)', 'give the --workdir of one'
    )
  states = [
    folder.state(name, by_digest.get(facts.get('digest')))
    for name, facts in known.items()
  ]
  print(folders.describe(states, _SHOWN))
  return _CODE_FAILED if any(s.state == 'failed' for s in states) else 0


def _options(
  flags: Iterable[tuple[str, str]],
) -> tuple[Options, list[tuple[str, str]]]:
  """The flags that are no keys, and those that are."""
  readers: dict[str, Callable[[str], Any]] = {
    'shard': _read_shard,
    'devices_per_point': functools.partial(_read_count, 'devices_per_point'),
    'cores_per_point': functools.partial(_read_count, 'cores_per_point'),
    'name': str,
    'mode': _read_mode,
  }
  given: dict[str, Any] = {}
  swept = []
  for key, text in flags:
    if key not in readers:
      swept.append((key, text))
    elif key in given:
      raise errors.refuse(f'--sweep.{key}', 'is given twice', 'give it once')
    else:
      given[key] = readers[key](text)
  if swept and 'name' in given:
    raise errors.refuse(
      '--sweep.name',
      f'{given["name"]!r} is given beside --sweep.{swept[0][0]}',
      'give the name of a sub-sweep, or keys with values',
    )
  return Options(**given), swept


def _read_shard(text: str) -> tuple[int, int]:
  first, slash, total = text.partition('/')
  is_shard = slash and first.isdecimal() and total.isdecimal()
  if not is_shard or int(first) >= int(total):
    raise errors.refuse(
      '--sweep.shard',
      f'{text!r} is not allowed',
      'I/N with I from 0 to N - 1, e.g. $SLURM_ARRAY_TASK_ID/16 in a job of '
      '--array=0-15',
    )
  return int(first), int(total)


def _read_mode(text: str) -> str:
  if text not in MODES:
    raise errors.refuse(
      '--sweep.mode',
      f'{text!r} is not allowed',
      f'{errors.did_you_mean(text, MODES)}use one of {", ".join(MODES)}',
    )
  return text


def _read_count(key: str, text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise errors.refuse(
      f'--sweep.{key}',
      f'{text!r} is not allowed',
      'use a whole number >= 1',
    )
  return int(text)


def _shard(listed: list[Point], shard: tuple[int, int]) -> list[Point]:
  """A contiguous part of the points: neighbours share a compile."""
  index, total = shard
  size = len(listed)
  return listed[size * index // total : size * (index + 1) // total]
