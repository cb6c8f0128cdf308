"""R13 honest reproducibility: a run goes on where something else is installed.

Comes in: a run that was cut, and one change of what its bits depend on. Goes
out: whether the run that goes on says that it is not bitwise the same any more,
and names what changed.
"""

import os
import re
from collections.abc import Callable
from typing import Any

import machine
import suites
from score import Line

_SAID = 'not bitwise the same run any more: '


def is_said(line: Line) -> None:
  """R13: tests of the suite, and 12 changes between two processes."""
  suites.of('R13')(line)
  if line.size == 'small':
    return
  unchanged, text = _go_on(line, None)
  # A tree that is edited meanwhile, as --page does, is another commit.
  if unchanged or re.search(f'{_SAID}(?!git_)', text):
    line.violations.append(f'nothing changed: {unchanged} {text[-300:]}')
  for key, plant in _CHANGES.items():
    problem, text = _go_on(line, plant)
    if not problem and f'{_SAID}{key}: ' not in text:
      problem = f'it is not said: {text[-300:]}'
    line.fault(key, problem)
  problem, text = _go_on(line, None, devices=2)
  is_named = f'{_SAID}num_devices: 1 then, 2 now' in text
  line.fault('num_devices', problem or ('' if is_named else text[-300:]))


def _go_on(line: Line, plant, **options: Any) -> tuple[str, str]:
  """(what is wrong, what it said) of a run that goes on after step 4."""
  workdir = machine.copy(line.baseline(), line.place('changed'), at=4)
  child = line.train(workdir, inject=plant, **options)
  code, text = child.wait(), child.text()
  return (f'exit {code}: {text[-300:]}' if code else ''), text


def _jax(name: str, value: Any) -> Callable[[], None]:
  """Plants a setting of jax."""

  def plant():
    import jax

    jax.config.update(name, value)

  return plant


def _variable(name: str, value: str) -> Callable[[], None]:
  """Plants a variable; it adds to what is there."""

  def plant():
    os.environ[name] = os.environ.get(name, '') + value

  return plant


def _version(package: str) -> Callable[[], None]:
  """Plants another version of a package."""

  def plant():
    from dpo_jax.storage import environment

    version = environment._version
    environment._version = lambda name: (
      '0.0.1' if name == package else version(name)
    )

  return plant


def _entry(**values: Any) -> Callable[[], None]:
  """Plants entries that the machine or the code would have."""

  def plant():
    from dpo_jax.storage import environment

    describe = environment.describe
    environment.describe = lambda *args: describe(*args) | values

  return plant


_CHANGES = {
  'XLA_FLAGS': _variable('XLA_FLAGS', ' --xla_cpu_enable_fast_math=false'),
  'jax_config.jax_enable_x64': _jax('jax_enable_x64', True),
  'jax_config.jax_default_matmul_precision': _jax(
    'jax_default_matmul_precision', 'highest'
  ),
  'jax_variables.JAX_DISABLE_MOST_OPTIMIZATIONS': _variable(
    'JAX_DISABLE_MOST_OPTIMIZATIONS', '1'
  ),
  'jax': _version('jax'),
  'jaxlib': _version('jaxlib'),
  'optax': _version('optax'),
  'python': _entry(python='3.0.0'),
  'cpu': _entry(cpu='another'),
  'device_kind': _entry(device_kind='another'),
  'git_commit': _entry(git_commit='0' * 40),
}
