"""experiment and flags -> the points of a sweep: named, checked configs.

Comes in: an experiment file with its overrides, and `--sweep.KEY=VALUES` flags.
Goes out: a Point per run, in the order in which they run, or one line that says
which flag or point cannot be used. Imports no jax and touches no run.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.config import grid, knobs, paths, rules
from dpo_jax.config.load import call, functions
from dpo_jax.losses import catalogue
from dpo_jax.storage import files
from dpo_jax.types import InputError

# Points that `runlocal` leaves of a sweep: enough to see that it works.
_FEW = 4
_LONGEST_NAME = 120  # characters; file systems take 255 bytes


class Point(NamedTuple):
  """One run of a sweep."""

  name: str  # of its run directory in the folder
  arg: str  # the argument of the experiment
  values: dict[str, Any]  # {dotted key: value}, over the experiment's
  config: ConfigDict  # locked and validated
  digest: str  # of all that the run's numbers depend on in its config
  graph: str  # digest of all but the traced numbers: equal = one compile


def read(
  experiment: str,
  overrides: Sequence[tuple[str, Any]] = (),
  swept: Sequence[tuple[str, str]] = (),
  name: str = '',
) -> list[Point]:
  """Reads and checks the points of a sweep.

  Args:
    experiment: `path.py` or `path.py:arg`; `arg` belongs to every point.
    overrides: (dotted key, value) for every point.
    swept: (dotted key or 'arg', values as text) of the command line; their
      product. None = the experiment's own `sweep()`.
    name: of a sub-sweep, the function `sweep_NAME` of the experiment; '' =
      `sweep`.

  Returns:
    Points of different names and digests; those that share a graph are
    together, in the order of their first.

  Raises:
    InputError: no sweep, an unknown key or value, or two equal points.
  """
  path, _, common = experiment.partition(':')
  fixed = dict(overrides)
  settings = _from_flags(swept) if swept else _own(path, name, common)
  points, by_digest = [], {}
  for arg, values in settings:
    clash = sorted(fixed.keys() & values.keys())
    if clash:
      raise errors.refuse(
        f'config.{clash[0]}',
        f'{fixed[clash[0]]!r} is given, and the sweep varies it',
        f'leave --config.{clash[0]} out, or sweep over other keys',
      )
    point = _point(path, [common, arg], overrides, values)
    if point.digest in by_digest:
      raise errors.refuse(
        f'sweep point {point.name}',
        f'the same run as {by_digest[point.digest]}',
        'give every point another value',
      )
    by_digest[point.digest] = point.name
    points.append(point)
  return _in_order(_with_names(points))


def make(
  experiment: str,
  overrides: Sequence[tuple[str, Any]],
  values: Mapping[str, Any],
  arg: str = '',
) -> Point:
  """The point of these values; arguments as in `read`."""
  path, _, common = experiment.partition(':')
  return _point(path, [common, arg], overrides, values)


def _point(path, arguments, overrides, values) -> Point:
  """The point of these settings; its config is loaded and checked."""
  arg = ','.join(filter(None, arguments))
  name = name_of(arguments[-1], values)
  source = f'{path}:{arg}' if arg else path
  settings = [*overrides, *values.items()]
  try:
    config = config_lib.load(source, settings)
    config_lib.validate(config)
    config = _with_shared_reference(config, settings)
    paths.check_paths(config)
  except InputError as error:
    # The key alone would not say which of sixty points it is about.
    raise errors.within(f'sweep point {name}', error) from None
  return Point(
    name,
    arg,
    dict(values),
    config,
    files.digest(config_lib.numbers(config)),
    config_lib.graph(config),
  )


def _with_shared_reference(config, settings) -> ConfigDict:
  """The config, with the reference's scores from the cache if they may be.

  Every point reads the same scores then, and the reference runs once. A mode
  that a flag gives stays, and so does that of a loss or an option which needs
  the reference's model.
  """
  mode, adapter = config.reference.mode, config.adapter
  is_given = any(key == 'reference.mode' for key, _ in settings)
  # The model of 'adapter_off' differs from that of 'cache' under a given
  # adapter; samples are scored by the reference's model.
  is_other = mode == 'adapter_off' and adapter.init_from
  if mode in ('none', 'cache') or is_given or is_other:
    return config
  if config.eval.num_samples:
    return config
  cached = copy.deepcopy(config)
  cached.reference.mode = 'cache'
  try:
    config_lib.validate(cached)
  except InputError:
    return config
  return cached


def name_of(arg: str, values: Mapping[str, Any]) -> str:
  """A name that a person reads and a file system takes: 'beta=0.05,seed=3'.

  Args:
    arg: of the experiment, as this point alone has it.
    values: {dotted key: value}.
  """
  lasts = [key.rpartition('.')[2] for key in values]
  parts = [arg] if arg else []
  for key, value in values.items():
    last = key.rpartition('.')[2]
    short = last if lasts.count(last) == 1 else key
    text = f'{value:g}' if isinstance(value, float) else str(value)
    parts.append(f'{short}={text}')
  name = re.sub(r'[^\w.,=+-]+', '_', ','.join(parts)).strip('._') or 'point'
  if len(name) > _LONGEST_NAME:
    name = f'{name[: _LONGEST_NAME - 9]}-{files.digest(name)[:8]}'
  return name


def _with_names(points: list[Point]) -> list[Point]:
  """The points; equal names get digits of their digests."""
  names = [point.name for point in points]
  return [
    point
    if names.count(point.name) == 1
    else point._replace(name=f'{point.name}-{point.digest[:8]}')
    for point in points
  ]


def _in_order(points: list[Point]) -> list[Point]:
  """The points, those of one graph together."""
  graphs = list(dict.fromkeys(point.graph for point in points))
  return sorted(points, key=lambda point: graphs.index(point.graph))


def _own(path: str, name: str, common: str) -> list[grid.Setting]:
  """The points of the experiment's own sweep."""
  wanted = f'sweep_{name}' if name else 'sweep'
  known = {
    f: function
    for f, function in functions(path).items()
    if re.fullmatch(r'sweep(_\w+)?', f)
  }
  if wanted not in known:
    named = [f.removeprefix('sweep_') for f in known if f != 'sweep']
    hint = errors.did_you_mean(name, named) if name else ''
    fix = f'--sweep.name={" or ".join(named)}, or ' if named else ''
    raise errors.refuse(
      path,
      f'has no function {wanted}()',
      f'{hint}{fix}--sweep.KEY=VALUES, e.g. --sweep.loss.beta=0.05,0.1',
    )
  settings = call(path, known[wanted])
  try:
    settings = [(str(arg), dict(values)) for arg, values in settings]
  except (TypeError, ValueError) as error:
    raise errors.refuse(
      path,
      f'{wanted}() must give (argument, {{key: value}}) for every point '
      f'({error})',
      'build it with config.product, zipped and chain',
    ) from None
  if not settings:
    raise errors.refuse(path, f'{wanted}() gives no point', 'give it one')
  if 'runlocal' in common.split(','):
    return settings[:_FEW]
  return settings


def _from_flags(swept: Iterable[tuple[str, str]]) -> list[grid.Setting]:
  """The product of the flags' values."""
  columns: dict[str, list[Any]] = {}
  for key, text in swept:
    if key in columns:
      raise errors.refuse(f'--sweep.{key}', 'is given twice', 'give it once')
    columns[key] = values_of(key, text)
  return grid.product(columns)


def values_of(key: str, text: str) -> list[Any]:
  """Reads the values of one flag: `a,b,c`, or `0:5` for whole numbers.

  Semicolons part values that have commas in them, as a list of sources does.

  Raises:
    InputError: an unknown key, no value, or a value twice.
  """
  parts = text.split(';') if ';' in text else text.split(',')
  parts = [part.strip() for part in parts]
  if not all(parts):
    raise errors.refuse(
      f'--sweep.{key}',
      f'{text!r} has an empty value',
      f'--sweep.{key}=VALUE,VALUE',
    )
  if key != 'arg' and knobs.find(key).kind is int:
    parts = [str(n) for part in parts for n in _range(key, part)]
  if len(set(parts)) < len(parts):
    twice = next(part for part in parts if parts.count(part) > 1)
    raise errors.refuse(
      f'--sweep.{key}', f'{twice!r} is there twice', 'give every value once'
    )
  return parts if key == 'arg' else [_typed(key, part) for part in parts]


def _typed(key: str, text: str) -> Any:
  """The text as the key's type, so that names and files show one spelling."""
  config = config_lib.base()
  with config.unlocked():
    config.loss.terms = ConfigDict(dict.fromkeys(catalogue.read(), 0.0))
  config_lib.override(config, key, text)
  return rules.flatten(config)[key]


def _range(key: str, part: str) -> Iterable[Any]:
  """The whole numbers of `0:5` or `0:20:5`, its end left out; else the part."""
  if ':' not in part:
    return [part]
  try:
    numbers = [int(n) for n in part.split(':')]
    values = list(range(*numbers))
  except (TypeError, ValueError):
    values = []
  if not values:
    raise errors.refuse(
      f'--sweep.{key}',
      f'{part!r} is no range',
      'FIRST:END or FIRST:END:STEP, e.g. 0:5 for 0, 1, 2, 3, 4',
    )
  return values
