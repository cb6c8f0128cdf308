"""experiment file -> what its get_config returns, and how its argument reads.

Comes in: a path and an argument string. Goes out: a ConfigDict or the value of
one argument, or InputError naming file and line. Knows no knob.
"""

import pathlib
import traceback
import types
from typing import Any

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.types import InputError


def get_config(path: str, arg: str) -> ConfigDict:
  """Runs get_config(arg) of a file, without leaving a .pyc beside it."""
  source = _read_experiment(path)
  module = types.ModuleType('experiment')
  module.__file__ = path
  try:
    exec(compile(source, path, 'exec'), vars(module))
    config = vars(module)['get_config'](arg)
  except InputError:
    raise
  except SyntaxError as error:
    where = f'{path}:{error.lineno}'
    raise errors.refuse(where, error.msg, 'the Python there') from error
  except Exception as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    raise errors.refuse(
      f'{path}:{lines[-1] if lines else 1}',
      f'{type(error).__name__}: {_one_line(error)}',
      f'the experiment must run get_config({arg!r})',
    ) from error
  if not isinstance(config, ConfigDict) or 'loss' not in config:
    raise errors.refuse(
      path,
      f'get_config returned {type(config).__name__}',
      'start from dpo_jax.config.base() and return it',
    )
  return config


def parse_value(part: str, text: str | None, default: Any) -> Any:
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
  try:
    return file.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.refuse(
      path, f'cannot be read ({_one_line(error)})', 'give a Python file'
    ) from error


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())
