"""The command line: `python -m dpo_jax.main --config=FILE --workdir=DIR`.

  --config=FILE.py[:ARG]     an experiment, and its argument string
  --workdir=DIR              the run directory; a run there is continued
  --config.KEY=VALUE         sets one key of the experiment, any number of times
  --mode=train               (the default) SFT or preference training
         evaluate            scores the held-out comparisons once more
         plan                what training would do: shapes, steps, memory;
                             --plan_devices=N for N devices, not these
         sample              texts of the newest policy, to WORKDIR/samples
         precompute_reference  fills the cache for reference.mode='cache'
         export              writes --export_to=DIR in Hugging Face layout

Comes in: arguments. Goes out: an exit code: 0; 2 and one line on stderr for
bad input, before any device is touched and with nothing written; 1 where a
metric was not finite; 128 plus its number after a signal. Holds no logic of
its own: train.py and verbs.py do the work.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.config import check as config_check
from dpo_jax.config import rules as config_rules
from dpo_jax.run import preemption
from dpo_jax.types import InputError

MODES = (
  'train',
  'evaluate',
  'plan',
  'sample',
  'precompute_reference',
  'export',
)

_FLAGS = ('config', 'workdir', 'mode', 'export_to', 'plan_devices', 'help')
_WITHOUT_WORKDIR = ('plan',)
_CONTINUE = 'the same command, given again, continues the run'


class Command(NamedTuple):
  """A command line that has been read and found possible."""

  mode: str  # one of MODES
  config: ConfigDict  # locked and validated
  workdir: str  # '' only where the mode needs none
  export_to: str  # '' for every mode but export
  plan_devices: int | None = None  # None = this machine's


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command.

  Args:
    argv: arguments without the program's name; None = the process's own.

  Returns:
    The exit code.
  """
  argv = sys.argv[1:] if argv is None else argv
  try:
    if '--help' in argv or '-h' in argv:
      print(f'{__doc__}\n{config_lib.help_text()}')
      return 0
    for word in argv:
      if word.startswith('--help='):
        print(config_lib.help_text(word.removeprefix('--help=')))
        return 0
    return _dispatch(parse(argv)) or 0
  except InputError as error:
    print(_printable(str(error)), file=sys.stderr)
    return 2
  except preemption.Preempted as stop:
    print(f'stopped by {stop}; {_CONTINUE}', file=sys.stderr)
    return stop.exit_code
  except KeyboardInterrupt:
    print(f'stopped by SIGINT; {_CONTINUE}', file=sys.stderr)
    return 130


def parse(argv: Sequence[str]) -> Command:
  """Reads and checks a command line; InputError for anything wrong in it."""
  given, overrides = {}, []
  for name, value in _pairs(argv):
    if name.startswith('config.'):
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
  _check_flags(mode, given)
  config = config_lib.load(given['config'], _with_values(overrides))
  config_lib.validate(config)
  config_check.check_paths(config)
  if mode == 'precompute_reference' and config.reference.mode == 'none':
    raise errors.refuse(
      'config.reference.mode',
      "'none' leaves nothing for --mode=precompute_reference",
      'use cache',
    )
  return Command(
    mode,
    config,
    given.get('workdir', ''),
    given.get('export_to', ''),
    int(given['plan_devices']) if 'plan_devices' in given else None,
  )


def _dispatch(command: Command) -> int | None:
  """Calls the mode's function; its exit code, where it has one."""
  # Imported here: jax takes seconds, and a refusal must not wait for it.
  from dpo_jax import train
  from dpo_jax.run import verbs

  mode, config, workdir, export_to, num_devices = command
  try:
    if mode == 'train':
      return train.run(config, workdir)
    if mode == 'evaluate':
      return verbs.evaluate(config, workdir)
    if mode == 'plan':
      return verbs.plan(config, num_devices)
    if mode == 'sample':
      return verbs.sample(config, workdir)
    if mode == 'precompute_reference':
      return verbs.precompute_reference(config, workdir)
    return verbs.export(config, workdir, export_to)
  except train.Diverged as error:
    print(_printable(str(error)), file=sys.stderr)
    return 1


def _pairs(argv: Sequence[str]):
  """Yields (name, value) of `--name=value`, `--name value` and `--name`."""
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
    if value is None and words and not re.match(r'--?[A-Za-z_]', words[0]):
      value = words.pop(0)
    yield name, value


def _check_flags(mode: str, given: dict[str, str]) -> None:
  if mode not in MODES:
    raise errors.refuse(
      '--mode',
      f'{mode!r} is not allowed',
      f'{errors.did_you_mean(mode, MODES)}use one of {", ".join(MODES)}',
    )
  needed = ['config']
  needed += [] if mode in _WITHOUT_WORKDIR else ['workdir']
  needed += ['export_to'] if mode == 'export' else []
  for flag in needed:
    if flag not in given:
      example = 'experiments/quickstart.py' if flag == 'config' else 'runs/NAME'
      raise errors.refuse(
        f'--{flag}',
        f'is missing, --mode={mode} needs it',
        f'e.g. --{flag}={example}',
      )
  if mode != 'export' and 'export_to' in given:
    raise errors.refuse(
      '--export_to',
      f'{given["export_to"]!r} is not used by --mode={mode}',
      'leave it out, or use --mode=export',
    )
  if 'plan_devices' in given:
    _check_plan_devices(mode, given['plan_devices'])
  for flag in ('workdir', 'export_to'):
    if flag in given:
      _check_folder(flag, given[flag])


def _check_plan_devices(mode: str, text: str) -> None:
  if mode != 'plan':
    raise errors.refuse(
      '--plan_devices',
      f'{text!r} is not used by --mode={mode}',
      'leave it out, or use --mode=plan',
    )
  if not re.fullmatch('[1-9][0-9]{0,8}', text):
    raise errors.refuse(
      '--plan_devices',
      f'{text!r} is not allowed',
      'use a whole number >= 1, e.g. 256',
    )


def _check_folder(flag: str, folder: str) -> None:
  """Refuses a folder that is neither there to write in nor can be made."""
  there = os.path.abspath(folder)
  while not os.path.lexists(there):
    there = os.path.dirname(there)
  if not os.path.isdir(there):
    problem = f'{there!r} is not a folder'
  elif not os.access(there, os.W_OK | os.X_OK):
    problem = f'{there!r} cannot be written to'
  else:
    return
  raise errors.refuse(
    f'--{flag}', f'{folder!r} is not allowed, {problem}', 'use another folder'
  )


def _with_values(overrides):
  """A bool may be given as `--config.data.strict`; all else needs a value."""
  known = config_rules.flatten(config_lib.base())
  for key, value in overrides:
    if value is None and isinstance(known.get(key), bool):
      value = 'true'
    if value is None and key in known:
      raise errors.refuse(
        f'config.{key}', 'has no value', f'--config.{key}=VALUE'
      )
    yield key, value or ''


def _printable(text: str) -> str:
  """One line, whatever the arguments held."""
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


if __name__ == '__main__':
  sys.exit(main())
