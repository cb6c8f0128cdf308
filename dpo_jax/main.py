"""The command line: `python -m dpo_jax.main --config=FILE --workdir=DIR`.

  --config=FILE.py[:ARG]     an experiment, and its argument string
  --workdir=DIR              the run directory; a run there is continued, and
                             read without --config by the modes that only read
  --config.KEY=VALUE         sets one key of the experiment, any number of times
  --mode=MODE                what to do; train is the default
  --sweep.KEY=VALUE,VALUE    with --mode=sweep: the values of one key, 0:5 for
                             0 to 4; several keys give every combination

Comes in: arguments. Goes out: an exit code. 0: success. 1: a metric was not
finite, or the ledger does not balance. 2: bad input, one line on stderr; wrong
flags and keys are refused before a device is touched or a file is written.
3: another process of the run is gone or stuck. 128 + n: stopped by signal n.
Holds no logic of its own: MODES names the functions that do the work.
"""

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.config import paths as config_paths
from dpo_jax.config import rules as config_rules
from dpo_jax.config import stored
from dpo_jax.config.modes import (
  MODE_FLAGS,
  MODES,
  NUMBERS,
  PROCESS_FLAGS,
  SWITCHES,
)
from dpo_jax.run import best, host_memory, output, processes, slices
from dpo_jax.run import preemption as stops
from dpo_jax.run.preemption import Diverged, Lost, Preempted, Signals
from dpo_jax.storage import buckets, caches, files
from dpo_jax.storage.run_dir import RunDir
from dpo_jax.types import InputError

_FLAGS = ('config', 'workdir', 'mode', *MODE_FLAGS, *PROCESS_FLAGS, 'help')


class Command(NamedTuple):
  """A command line after all checks."""

  mode: str  # one of MODES
  config: ConfigDict | None  # locked and validated; None if the mode has none
  workdir: str  # '' only if the mode needs none
  flags: dict[str, Any]  # the mode's own, by name


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: arguments without the program's name; None = the process's own.

  Returns:
    The exit code.
  """
  argv = sys.argv[1:] if argv is None else argv
  with Signals(), output.guarded():
    code = _run(argv)
    sys.stdout.flush()
    lost = stops.take_asked()
    # The command did its work, and nobody saw all of it.
    if lost and not code:
      print(errors.printable(lost.line()), file=sys.stderr)
      code = lost.exit_code
  return code


def _run(argv: Sequence[str]) -> int:
  """The command's exit code; says how it ended."""
  # Only the expected ends of a command are caught: a bug keeps its traceback.
  try:
    if '--help' in argv or '-h' in argv:
      print(_help())
      return 0
    for word in argv:
      if word.startswith('--help='):
        print(config_lib.help_text(word.removeprefix('--help=')))
        return 0
    # A mode that writes listens by itself.
    with stops.at_once():
      command = _start(argv)
      function = _function(command.mode)
      code = function(command.config, command.workdir, **command.flags)
    return processes.leave(code)
  except (InputError, Lost) as error:
    processes.fail(error)  # of several processes, none comes back
    print(errors.printable(str(error)), file=sys.stderr)
    return error.exit_code
  except Diverged as error:
    return processes.leave(1, errors.printable(str(error)))
  except Preempted as stop:
    return processes.leave(stop.exit_code, errors.printable(stop.line()))
  except KeyboardInterrupt:
    print(f'stopped by SIGINT; {stops.CONTINUE}', file=sys.stderr)
    return 130
  except Exception as error:
    processes.fail(error)
    line = host_memory.line_of(error)
    if not line:
      raise
    print(errors.printable(line), file=sys.stderr)
    return 1


def _start(argv: Sequence[str]) -> Command:
  """The command, after this process joined the others, if there are any."""
  given = {}
  with contextlib.suppress(InputError):  # a word that is no flag: parse says so
    for name, value in _pairs(argv):
      given[name] = value
  processes.check_flags(given)
  mode = MODES.get(given.get('mode', 'train'))
  cluster = processes.find(given) if mode and mode.joins else None
  # Both before jax is imported, which reads the settings and starts threads.
  if cluster is None:
    command = parse(argv)
  os.environ.update(caches.compile_settings() | host_memory.gpu_settings())
  host_memory.keep_freed()
  if cluster is None:
    return command
  # Joined first: what one process refuses, all refuse with one line.
  processes.join(cluster)
  return processes.together(lambda: parse(argv))


def parse(argv: Sequence[str]) -> Command:
  """Reads and checks a command line; raises InputError for any mistake."""
  given, overrides, sweep = {}, [], []
  for name, value in _pairs(argv):
    if name.replace('-', '_') in SWITCHES and value is None:
      given[name.replace('-', '_')] = True
    elif name.startswith('sweep.'):
      sweep.append((name.removeprefix('sweep.'), value or ''))
    elif name.startswith('config.'):
      overrides.append((name.removeprefix('config.'), value))
    elif name.startswith('noconfig.') and value is None:
      overrides.append((name.removeprefix('noconfig.'), 'false'))
    elif name not in _FLAGS:
      hint = errors.did_you_mean(name, _FLAGS)
      raise errors.refuse(
        f'--{name}',
        'there is no such flag',
        f'{hint}flags are {", ".join(f"--{flag}" for flag in _FLAGS)}, '
        '--config.KEY',
      )
    elif name in given:
      raise errors.refuse(f'--{name}', 'is given twice', 'give it once')
    elif not value:
      raise errors.refuse(f'--{name}', 'has no value', f'--{name}=VALUE')
    else:
      given[name] = value
  mode = given.get('mode', 'train')
  # Flags are checked before the code of the experiment file runs.
  _check_flags(mode, given, sweep)
  overrides = list(_with_values(overrides))
  if not MODES[mode].configured:
    return _parse_other(mode, given, overrides, sweep)
  config = _read_config(mode, given, overrides)
  for key, value, fix in MODES[mode].excludes:
    if config_rules.flatten(config)[key] == value:
      raise errors.refuse(
        f'config.{key}',
        f'{value!r} leaves nothing for --mode={mode}',
        f'use {fix}',
      )
  flags = {name: given[name] for name in MODES[mode].flags if name in given}
  for name in NUMBERS & flags.keys():
    flags[name] = int(flags[name])
  return Command(mode, config, given.get('workdir', ''), flags)


def _parse_other(mode, given, overrides, sweep) -> Command:
  """The command of a mode whose function takes no config."""
  flags = {name: given[name] for name in MODES[mode].flags if name in given}
  for name in NUMBERS & flags.keys():
    flags[name] = int(flags[name])
  if mode == 'frontier':
    if 'config' in given:
      raise errors.refuse(
        '--config',
        f'{given["config"]!r} is not used by --mode=frontier',
        'leave it out: every run has its own',
      )
    flags |= {'overrides': overrides}
  if mode == 'sweep':
    for flag in ('config', 'workdir'):
      # The points are listed in the folder, and printed without one.
      is_needed = ('status' if flag == 'config' else 'dry_run') not in flags
      if flag not in given and is_needed:
        raise _missing(flag, mode)
    flags |= {'experiment': given.get('config', ''), 'overrides': overrides}
    flags |= {'sweep': sweep}
  return Command(mode, None, given.get('workdir', ''), flags)


def _read_config(
  mode: str, given: dict[str, str], overrides: list[tuple[str, Any]]
) -> ConfigDict:
  """The config of a command: of --config, or of the run in --workdir."""
  run = _run_of(mode, given)
  if 'config' in given:
    config = config_lib.load(given['config'], overrides)
  else:
    read = run or RunDir(re.sub(r'@[0-9]{1,9}$', '', given['fork']))
    config = stored.read(read.config(), read.path / 'config.json', overrides)
  config_lib.validate(config)
  if run:
    run.refuse_differences(
      run.config(),
      config_lib.resolve(config),
      'this run was trained with another config',
      'leave the flag out: --workdir alone opens the run as it was trained',
    )
  config_paths.check_paths(config, config_lib.parts_read(config, mode))
  return config


def _run_of(mode: str, given: dict[str, str]) -> RunDir | None:
  """The run that a command reads, if its --workdir holds one."""
  if not MODES[mode].reads_run or 'workdir' not in given:
    return None
  run = RunDir(
    given['workdir'], may_change=stored.READERS, complete=stored.complete
  )
  return run if (run.path / 'config.json').exists() else None


def _function(mode: str):
  """The function of a mode."""
  return importlib.import_module(MODES[mode].module).main


def _help() -> str:
  """The head of this module's docstring, the modes and their flags."""
  lines = [__doc__.partition('\n\nComes in: ')[0], '']
  for name, mode in MODES.items():
    lines.append(f'  --mode={name:<22}{mode.what}')
    for flag in mode.flags:
      lines.append(f'      --{flag:<25}{MODE_FLAGS[flag]}')
  for flag, what in PROCESS_FLAGS.items():
    lines.append(f'  --{flag:<29}{what}')
  return '\n'.join([*lines, '', config_lib.help_text()])


def _pairs(argv: Sequence[str]):
  """Yields (name, value) of `--name=value`, `--name value` and `--name`.

  The value of a bare `--name` is None.
  """
  words = list(argv)
  while words:
    word = words.pop(0)
    match = re.fullmatch(r'--?([A-Za-z_][^=]*)(?:=(.*))?', word, re.DOTALL)
    if not match:
      raise errors.refuse(
        f'{word!r}',
        'is not a flag',
        'write --name=value, quoted as a whole if the value has spaces',
      )
    name, value = match.groups()
    if any('\ud800' <= char <= '\udfff' for char in word):
      raise errors.refuse(
        f'--{name}', f'{word!r} is not UTF-8', 'rename the file or folder'
      )
    # A word after a bare flag is its value, unless it is a flag too. A negative
    # number is a value: no letter follows its dash.
    if value is None and words and not re.match(r'--?[A-Za-z_]', words[0]):
      value = words.pop(0)
    yield name, value


def _missing(flag: str, mode: str) -> InputError:
  example = 'experiments/quickstart.py' if flag == 'config' else 'runs/NAME'
  return errors.refuse(
    f'--{flag}',
    f'is missing, --mode={mode} needs it',
    f'e.g. --{flag}={example}',
  )


def _check_flags(
  mode: str, given: dict[str, Any], sweep: Sequence[tuple[str, str]]
) -> None:
  if mode not in MODES:
    raise errors.refuse(
      '--mode',
      f'{mode!r} is not allowed',
      f'{errors.did_you_mean(mode, MODES)}use one of {", ".join(MODES)}',
    )
  for flag in MODES[mode].needs:
    has_own = 'fork' in given or _run_of(mode, given)
    if flag not in given and not (flag == 'config' and has_own):
      raise _missing(flag, mode)
  if sweep and mode != 'sweep':
    raise errors.refuse(
      f'--sweep.{sweep[0][0]}',
      f'{sweep[0][1]!r} is not used by --mode={mode}',
      'leave it out, or use --mode=sweep',
    )
  for flag in MODE_FLAGS:
    if flag in given and flag not in MODES[mode].flags:
      users = [name for name in MODES if flag in MODES[name].flags]
      raise errors.refuse(
        f'--{flag}',
        f'{given[flag]!r} is not used by --mode={mode}',
        f'leave it out, or use --mode={" or ".join(users)}',
      )
  for flag in [] if MODES[mode].joins else PROCESS_FLAGS:
    if flag in given and given[flag] != 'off':
      raise errors.refuse(
        f'--{flag}',
        f'{given[flag]!r} is not used by --mode={mode}',
        'leave it out: each process works by itself',
      )
  for flag in NUMBERS & given.keys():
    _check_number(flag, given[flag])
  if 'plan_devices' in given:
    slices.parse(given['plan_devices'])
  if 'step' in given:
    best.check_flag(given['step'])
  for flag in ('workdir', 'export_to'):
    if flag in given:
      _check_folder(flag, given[flag], mode)


def _check_number(flag: str, text: str) -> None:
  if not re.fullmatch('[1-9][0-9]{0,8}', text):
    raise errors.refuse(
      f'--{flag}',
      f'{text!r} is not allowed',
      'use a whole number >= 1, e.g. 256',
    )


def _check_folder(flag: str, folder: str, mode: str) -> None:
  """Refuses a folder that cannot be made or written to."""
  # A frontier takes several runs, with semicolons between.
  names = folder.split(';') if mode == 'frontier' else [folder]
  for name in names:
    if isinstance(files.at(name), buckets.Path):
      if flag == 'workdir':
        buckets.check_checkpoints(files.at(name))
      return buckets.check_writes(files.at(name))
  if flag == 'workdir':
    _check_name(flag, folder)
  nearest = os.path.abspath(folder)  # then its nearest parent that exists
  while not os.path.lexists(nearest):
    nearest = os.path.dirname(nearest)
  if not os.path.isdir(nearest):
    problem = f'{nearest!r} is not a folder'
  elif not os.access(nearest, os.W_OK | os.X_OK):
    problem = f'{nearest!r} cannot be written to'
  else:
    return
  raise errors.refuse(
    f'--{flag}', f'{folder!r} is not allowed, {problem}', 'use another folder'
  )


def _check_name(flag: str, folder: str) -> None:
  """Refuses a name of this machine under which no checkpoint can be read."""
  path = os.path.abspath(folder)
  bad = [char for char in '[]\\*?' if char in path]
  bad += [part for part in path.split(os.sep) if part.endswith(':')]
  if bad:
    raise errors.refuse(
      f'--{flag}',
      f'{folder!r} is not allowed, checkpoints cannot be read under a name '
      f'with {bad[0]!r}',
      'use a folder without [ ] \\ * and ?, of which no part ends in a colon',
    )


def _with_values(overrides):
  """Yields overrides: a bare bool key is True, any other needs a value."""
  known = config_rules.flatten(config_lib.base())
  for key, value in overrides:
    if value is None and isinstance(known.get(key), bool):
      value = 'true'
    if value is None and key in known:
      raise errors.refuse(
        f'config.{key}', 'has no value', f'--config.{key}=VALUE'
      )
    yield key, value or ''


if __name__ == '__main__':
  sys.exit(main())
