"""run -> the start of another one: its whole state under a changed config.

Comes in: --fork=RUN[@STEP] and the config of the new run. Goes out: what
changed, in words, and the step to start from; or a refusal of what a fork
keeps. fork.json in the new workdir records it. Restores and trains nothing.
"""

from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.config import stored
from dpo_jax.run import processes
from dpo_jax.storage import checkpoints, files
from dpo_jax.storage.run_dir import RunDir

# What the state of a run means nothing without, by config key or section.
_KEEPS = {
  'stage': 'model.init_from=RUN starts another stage',
  'tokenizer': 'the parameters are of these tokens',
  'model.init_from': 'the reference stays that of the run',
  'model.preset': 'the reference stays that of the run',
  'model.vocab_size': 'the parameters are of this shape',
  'adapter': 'the parameters are those of this adapter',
  'reference.init_from': 'the reference stays that of the run',
  'loss.tr_dpo': 'the reference stays that of the run',
  'optim.name': 'the moments are of this optimizer',
  'optim.moments_dtype': 'the moments are of this dtype',
  'data.train': 'the data position is of these records',
  'data.proportions': 'the data position is of these records',
  'data.eval_pairs': 'trained records may not be held out',
}
# Keys that decide which records an update takes.
_ORDER = ('seed', 'train.batch_size', 'data.eval')


class Fork(NamedTuple):
  """The run and the step that another run starts from."""

  run: str  # its workdir
  step: int
  changed: tuple[str, ...]  # a line per key that the new config has otherwise
  same_order: bool  # whether updates take the records that the run would take
  num_prompts: int = 0  # that were trained on before

  @property
  def directory(self) -> RunDir:
    """The run's folder."""
    return RunDir(self.run, complete=stored.complete)


def open_fork(
  text: str, directory: RunDir, config: ConfigDict
) -> tuple[Fork | None, bool]:
  """What a command starts from, by --fork or by the fork.json of its workdir.

  Args:
    text: RUN or RUN@STEP; '' = no flag.
    directory: of the new run.
    config: of the new run, validated.

  Returns:
    (the fork, None if the run is none; whether it starts now).

  Raises:
    InputError: the workdir holds another run, the run has no such step, or
      the config changes what a fork keeps.
  """
  record = files.read_json_or_none(directory.path / 'fork.json')
  if directory.config_or_none() is not None:
    fork = _read(record)
    if text:
      _check_recorded(text, fork, directory)
    return fork, False
  if not text:
    return None, False
  run, step = split(text)
  changed = _check_changes(run, config)
  keys = [line.split(' ')[0].removeprefix('config.') for line in changed]
  same_order = not set(keys) & {*_ORDER}
  before = _read(files.read_json_or_none(run.path / 'fork.json'))
  same_order = same_order and (before is None or before.same_order)
  step = _check_step(run, step)
  return Fork(str(run.path), step, tuple(changed), same_order), True


def record(fork: Fork, directory: RunDir) -> None:
  """Writes fork.json into the new run."""
  if processes.is_first():
    files.write_json(directory.path / 'fork.json', fork._asdict())


def split(text: str) -> tuple[RunDir, int | None]:
  """(run, step) of RUN[@STEP]; None = the newest step."""
  name, at, step = text.rpartition('@')
  if at and step.isdecimal() and len(step) < 10:
    return RunDir(name, complete=stored.complete), int(step)
  return RunDir(text, complete=stored.complete), None


def planned(
  fork: Fork | None, num_steps: int, batch_size: int
) -> tuple[int, bool]:
  """(prompts that a run of so many steps trains on, whether in one order)."""
  if fork is None:
    return num_steps * batch_size, True
  own = (num_steps - fork.step) * batch_size
  return fork.num_prompts + own, fork.same_order


def describe(fork: Fork) -> str:
  """What the new run starts from and what it changes, in lines."""
  lines = [f'fork of {fork.run} at step {fork.step}; its config is changed in:']
  return '\n  '.join([*lines, *(fork.changed or ['nothing'])])


def _read(values: dict[str, Any] | None) -> Fork | None:
  if values is None:
    return None
  return Fork(**values)._replace(changed=tuple(values['changed']))


def _check_recorded(text: str, fork: Fork | None, directory: RunDir) -> None:
  """Refuses a workdir that holds a run of another origin."""
  run, step = split(text)
  given = str(run.path), fork.step if fork and step is None else step
  if fork is None or given != (fork.run, fork.step):
    holds = f'a fork of {fork.run} at step {fork.step}' if fork else 'no fork'
    raise errors.refuse(
      '--fork',
      f'{text!r} is not the origin of the run in {str(directory.path)!r}, '
      f'which is {holds}',
      'give a new --workdir, or leave the flag out to continue',
    )


def _check_changes(run: RunDir, config: ConfigDict) -> list[str]:
  """The lines of what changed; refuses what a fork keeps."""
  before, now = run.config(), config_lib.resolve(config)
  changed = run.differences(before, now, stored.NO_NUMBERS)
  for line in changed:
    key = line.split(' ')[0].removeprefix('config.')
    for kept, why in _KEEPS.items():
      if f'{key}.'.startswith(f'{kept}.'):
        raise errors.refuse(
          '--fork', f'{line}, but {why}', 'leave that key out'
        )
    is_split = 'split' in (before['data'].get('eval'), config.data.eval)
    if key == 'data.eval' and is_split:
      raise errors.refuse(
        '--fork',
        f'{line}, but trained records may not be held out',
        'leave that key out',
      )
  return changed


def _check_step(run: RunDir, step: int | None) -> int:
  """The step to start from, which the run has."""
  with checkpoints.Checkpoints(run.checkpoints) as saved:
    steps = saved.steps()
  if not steps:
    raise errors.refuse(
      '--fork', f'{str(run.path)!r} has no checkpoint', 'let that run save one'
    )
  step = steps[-1] if step is None else step
  if step not in steps:
    raise errors.refuse(
      '--fork',
      f'{str(files.at(run.path))!r} has no step {step}',
      f'use one of its steps {steps}',
    )
  return step
