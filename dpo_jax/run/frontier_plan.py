"""workdirs and --steps -> what --mode=frontier has to do, checked.

Comes in: the flags. Goes out: a Task per run, with the steps that have no file
of the same settings yet, or one line that says what cannot be used. Samples
nothing and touches no device.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.config import paths, stored
from dpo_jax.run import best
from dpo_jax.run import session as sessions
from dpo_jax.storage import buckets, checkpoints, files, places
from dpo_jax.storage.run_dir import RunDir

_STEPS = '--steps'
_WORDS = ('all', 'best', 'last')


class Task(NamedTuple):
  """A run, and the steps of it that are to be measured."""

  path: files.AnyPath
  name: str  # for a line of progress
  config: ConfigDict  # of the run, with the command's own keys
  parts: tuple[str, ...]  # of the data that are read
  steps: list[int]
  settings: dict[str, Any]  # a file of other settings is made again


def tasks(
  workdir: str,
  overrides: Sequence[tuple[str, Any]],
  steps: str,
  rewards: Sequence[str],
  num_samples: int,
) -> list[Task]:
  """Returns the tasks of a command; arguments as in frontier.main.

  Raises:
    InputError: no run, no such step, or a key that may not change.
  """
  words = _read_steps(steps)
  out = []
  for path, is_named in _runs(workdir):
    directory = sessions.run_directory(str(path))
    config = _config(directory, overrides)
    settings = _settings(config, rewards, num_samples)
    wanted = _steps(directory, config, words, is_named)
    left = [n for n in wanted if not _is_done(path, n, settings)]
    skipped = len(wanted) - len(left)
    if skipped:
      print(f'{path.name}: {skipped} of {len(wanted)} steps are there already')
    parts = config_lib.parts_read(config, 'frontier')
    out.append(Task(path, path.name, config, parts, left, settings))
  return out


def path(workdir: files.AnyPath, step: int) -> files.AnyPath:
  """The file of a step."""
  return workdir / 'frontier' / f'step_{step}.json'


def _runs(workdir: str) -> list[tuple[files.AnyPath, bool]]:
  """(run directory, whether it was named itself), in their order."""
  # Names of runs have commas in them.
  names = [workdir] if _exists(workdir) else workdir.split(';')
  out: list[tuple[files.AnyPath, bool]] = []
  for name in filter(None, names):
    folder = files.absolute(name)
    if (folder / 'config.json').is_file():
      out.append((folder, True))
      continue
    inside = sorted(file.parent for file in folder.glob('*/config.json'))
    if not inside:
      raise errors.refuse(
        name,
        'neither a run nor a folder of runs',
        'give a run directory, the folder of a sweep, or several with '
        'semicolons between them',
      )
    out += [(run, False) for run in inside]
  return list(dict.fromkeys(out))


def _exists(workdir: str) -> bool:
  """Whether it is one path, with semicolons in its name or none."""
  if ';' in workdir and buckets.is_url(workdir):
    return False  # URLs of several runs
  return places.exists(workdir)


def _config(directory: RunDir, overrides) -> ConfigDict:
  """The config of a run with the keys of the command line."""
  before = directory.config()
  config = stored.read(before, directory.path / 'config.json', overrides)
  config_lib.validate(config)
  directory.refuse_differences(
    before,
    config_lib.resolve(config),
    'this run was trained with another config',
    'leave the flag out',
  )
  paths.check_paths(config, config_lib.parts_read(config, 'frontier'))
  return config


def _settings(config, rewards, num_samples: int) -> dict[str, Any]:
  """All that the numbers of a step depend on, besides the run itself."""
  options = config.sample
  prompts = options.prompts and files.file_digest(options.prompts)
  return files.as_json(
    {
      'rewards': list(rewards),
      'num_samples': num_samples,
      'prompts': prompts or config.data.eval,
      **{
        key: options[key]
        for key in ('num_prompts', 'max_new_tokens', 'seed', 'temperature')
        + ('top_k', 'top_p', 'min_p', 'stop')
      },
      'precision': config.precision.to_dict(),
    }
  )


def _read_steps(text: str) -> list[str]:
  """The words of --steps."""
  words = [word.strip() for word in text.split(',')]
  for word in words:
    if word not in _WORDS and not re.fullmatch('[0-9]{1,9}', word):
      raise errors.refuse(
        _STEPS,
        f'{word!r} is not allowed',
        f'{errors.did_you_mean(word, _WORDS)}use numbers of updates, '
        f'{", ".join(_WORDS)}, with commas between them',
      )
  return words


def _steps(directory: RunDir, config, words, is_named: bool) -> list[int]:
  """The steps of a run that the words name, ascending."""
  with checkpoints.Checkpoints(directory.checkpoints) as saved:
    # The initial model is step 0, saved or not.
    known = sorted({0, *saved.steps()})
  steps: set[int] = set()
  for word in words:
    if word == 'all':
      steps |= set(known)
    elif word == 'last':
      steps.add(known[-1])
    elif word == 'best':
      steps.add(best.parse_step(word, directory, config))
    else:
      steps.add(int(word))
  missing = sorted(steps - set(known))
  if not missing:
    return sorted(steps)
  if not is_named and not directory.is_done():
    print(
      f'{directory.path.name}: left out, step {missing[0]} is not there yet'
    )
    return []
  raise errors.refuse(
    _STEPS,
    f'step {missing[0]} is not saved in {directory.path}',
    f'use some of {", ".join(map(str, known))}, or train with '
    'train.save_every and train.keep_checkpoints',
  )


def _is_done(workdir: files.AnyPath, step: int, settings) -> bool:
  """Whether a step has a file of these settings."""
  file = path(workdir, step)
  before = files.read_json_or_none(file, fix='remove it')
  if before is None:
    return False
  if before.get('settings') == settings:
    return True
  print(f'{file}: of other settings, made again')
  return False
