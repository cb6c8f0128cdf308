"""experiment file and overrides -> one locked config.

Comes in: `path.py[:arg]` and (key, value) pairs. Goes out: a ConfigDict, not
yet validated, or InputError naming the file and line, the argument or the key.
Knows no knob and imports no jax: a bad config is refused before any device is
touched.
"""

import datetime
import pathlib
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.config import chosen, knobs, rules
from dpo_jax.losses import catalogue
from dpo_jax.storage import files
from dpo_jax.types import InputError


def load(
  experiment: str, overrides: Iterable[tuple[str, Any]] = ()
) -> ConfigDict:
  """Reads an experiment file and applies overrides.

  Args:
    experiment: `path.py` or `path.py:arg`; the file has `get_config(arg)`.
    overrides: (dotted key, value) in order; a value that is text is read as
      the key's type, as from a command line.

  Returns:
    A locked ConfigDict, not yet validated; loss.terms holds the terms whose
    weight is not 0.

  Raises:
    InputError: no such file or key, a broken file, a value of another type.
  """
  path, colon, arg = experiment.partition(':')
  return finish(_get_config(path, arg if colon else ''), overrides)


def finish(
  config: ConfigDict, overrides: Iterable[tuple[str, Any]]
) -> ConfigDict:
  """Applies overrides, as in `load`, to a config that came from anywhere."""
  # Every loss can be named on the command line, whatever the file chose.
  terms = dict.fromkeys(catalogue.read(), 0.0)
  for name, weight in config.loss.terms.items():
    terms[name] = float(weight) if type(weight) is int else weight
  with config.unlocked():
    config.loss.terms = ConfigDict(terms)
  for key, value in overrides:
    override(config, key, value)
  # The day is part of the config: a run that goes on tomorrow keeps it.
  if config.data.template_date == 'today':
    config.data.template_date = datetime.date.today().isoformat()
  with config.unlocked():
    config.loss.terms = ConfigDict(chosen.loss_terms(config))
  return config.lock()


def override(config: ConfigDict, key: str, value: Any) -> None:
  """Sets one dotted key; InputError for an unknown key or a wrong type."""
  known = rules.flatten(config)
  if key not in known:
    raise rules.unknown_key(key, known)
  rule = knobs.find(key).rule
  if value == 'None' and rule.holds(None):
    value = None
  if not isinstance(value, str):
    try:
      config.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise rules.refused(key, value, rule) from error
    return
  # config_flags reads the text by the field's type and sets the field.
  command = ['', f'--config.{key}={value}']
  flag_values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=flag_values, sys_argv=command
    )
    flag_values(command)
  except (flags.Error, TypeError, ValueError) as error:
    raise rules.refused(key, value, rule) from error


def parse_arg(arg: str, **defaults: Any) -> types.SimpleNamespace:
  """Reads an experiment's argument string, as in `loss=ipo,runlocal`.

  Args:
    arg: comma-separated `name=value`; a bare `name` switches a bool on.
    **defaults: name -> default; bool, int, float or str, and so is the value.

  Returns:
    A namespace with a field for every default.

  Raises:
    InputError: unknown or malformed argument.
  """
  values = dict(defaults)
  for part in filter(None, arg.split(',')):
    name, equals, text = part.partition('=')
    if name not in defaults:
      hint = errors.did_you_mean(name, defaults)
      raise errors.refuse(
        f'config argument {part!r}',
        f'this experiment has no {name!r}',
        f'{hint}arguments: {", ".join(defaults)}',
      )
    values[name] = _parse_value(part, text if equals else None, defaults[name])
  return types.SimpleNamespace(**values)


def shrink(config: ConfigDict) -> None:
  """Sets two steps that run anywhere, in seconds: the meaning of `runlocal`.

  Synthetic data, byte tokens, random weights. Loss, optimizer and stage stay.
  """
  config.data.train = 'synthetic'
  config.data.eval = 'split'
  config.data.eval_pairs = 16
  config.data.use_token_ids = False
  config.data.max_length = 128
  config.data.prompt_max_length = 0
  config.data.row_length = 0
  config.data.max_shapes = 1
  config.tokenizer = 'byte'
  config.model.init_from = ''
  config.model.preset = 'tiny'
  config.optim.warmup_steps = 0
  config.train.num_steps = 2
  config.train.num_epochs = 0.0
  config.train.batch_size = 8


def functions(path: str) -> dict[str, Callable]:
  """The functions that an experiment file defines, by name; runs the file."""
  return {
    name: value
    for name, value in _run_file(path).items()
    if isinstance(value, types.FunctionType)
  }


def call(path: str, function: Callable, *args: Any) -> Any:
  """Calls a function of an experiment; InputError with its line if it fails.

  What a generator yields is returned as a list.
  """

  def run():
    value = function(*args)
    return list(value) if isinstance(value, Iterator) else value

  return _at_its_line(path, run, f'{function.__name__}{args!r}')


def _get_config(path: str, arg: str) -> ConfigDict:
  """Returns get_config(arg) of a file, without leaving a .pyc beside it."""
  config = _at_its_line(
    path, lambda: _run_file(path)['get_config'](arg), f'get_config({arg!r})'
  )
  if not isinstance(config, ConfigDict) or 'loss' not in config:
    raise errors.refuse(
      path,
      f'get_config returned {type(config).__name__}',
      'start from dpo_jax.config.base() and return it',
    )
  return config


def _run_file(path: str) -> dict[str, Any]:
  """Runs an experiment file; returns its names."""
  source = _read_experiment(path)
  module = types.ModuleType('experiment')
  module.__file__ = path
  # Not an import: the same path with another argument must run again.
  _at_its_line(
    path,
    lambda: exec(compile(source, path, 'exec'), vars(module)),
    'without an error',
  )
  return vars(module)


def _at_its_line(path: str, run: Callable[[], Any], what: str) -> Any:
  """Returns run(); an error becomes a refusal with the experiment's line."""
  try:
    return run()
  except InputError:
    raise
  except SyntaxError as error:
    where = f'{path}:{error.lineno}'
    raise errors.refuse(where, error.msg, 'correct that line') from error
  except Exception as error:
    # The line of the experiment, not of the package code that it called.
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    raise errors.refuse(
      f'{path}:{lines[-1] if lines else 1}',
      f'{type(error).__name__}: {_one_line(error)}',
      f'the experiment must run {what}',
    ) from error


def _parse_value(part: str, text: str | None, default: Any) -> Any:
  """Reads `name=value` as the type of its default; a bare name is True."""
  kind = type(default)
  if kind is bool:
    words = {None: True, 'true': True, 'false': False}
    if text in words:
      return words[text]
    raise errors.refuse(
      f'config argument {part!r}',
      f'{text!r} is not allowed',
      f'use {part.split("=")[0]}, or =true or =false',
    )
  problem = 'has no value'
  if text:
    try:
      return kind(text)
    except ValueError:
      problem = f'{text!r} is not allowed'
  name = part.split('=')[0]
  raise errors.refuse(
    f'config argument {part!r}',
    problem,
    f'use {name}={kind.__name__.upper()}, e.g. {name}={default}',
  )


def _read_experiment(path: str) -> str:
  file = pathlib.Path(path)
  if not file.is_file():
    others = [str(p) for p in sorted(file.parent.glob('*.py'))]
    hint = errors.did_you_mean(path, others)
    listed = f'; there are {", ".join(others)}' if others and not hint else ''
    raise errors.refuse(
      path,
      'no such experiment file',
      f'{hint}--config takes FILE.py or FILE.py:ARG{listed}',
    )
  return files.read_text(file, fix='give a Python file')


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())
