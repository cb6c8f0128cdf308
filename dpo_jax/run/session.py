"""workdir -> a session: its directory, its job, its policy.

Comes in: a validated config and a workdir. Goes out: a Session, opened the same
way for training and for every other command: mesh checked, inputs read and held
against the run's own, job built, signals caught. Trains nothing.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors, optim
from dpo_jax.config import stored
from dpo_jax.models import decoder_config
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.run import (
  best,
  memory,
  preemption,
  processes,
  updates,
  watchdog,
  weights,
)
from dpo_jax.run import identity as identities
from dpo_jax.run import inputs as inputs_lib
from dpo_jax.run import job as job_lib
from dpo_jax.run.job import Job
from dpo_jax.run.preemption import Signals
from dpo_jax.run.shared import Shared
from dpo_jax.storage import (
  caches,
  checkpoints,
  files,
  handover,
  initial_weights,
  places,
  state_items,
  trackers,
  writers,
)
from dpo_jax.storage.checkpoint_record import Restored
from dpo_jax.storage.run_dir import RunDir
from dpo_jax.types import Params


class Session(NamedTuple):
  """An open workdir with the job of its config."""

  directory: RunDir
  job: Job
  poll: Callable[..., None]  # raises Preempted after a signal
  identity: identities.Identity  # fingerprints of what this command reads
  cache_dir: files.AnyPath  # of tokens and of the reference's scores


class Policy(NamedTuple):
  """The parameters of a step of a workdir."""

  params: Params  # the trained parameters, on the mesh
  step: int  # updates done; 0 = the initial model
  items: Mapping[str, Any]  # further items of the same checkpoint, by name


def run_directory(workdir: str, config: ConfigDict | None = None) -> RunDir:
  """The directory of a run, as this config may continue it.

  Args:
    workdir: its path.
    config: of a command that trains; None for a command that reads the run.
  """
  may_change = stored.READERS if config is None else stored.NO_NUMBERS
  before = config and RunDir(workdir).config_or_none()
  if before and _may_grow(before, config):
    may_change += ('train.num_steps',)
  return RunDir(
    workdir,
    may_change=may_change,
    complete=stored.complete,
    writes=processes.is_first(),
  )


@contextlib.contextmanager
def open_workdir(
  config: ConfigDict,
  workdir: str,
  *,
  trains: bool = False,
  parts: Collection[str] = ('train', 'eval'),
  origin: RunDir | None = None,
  shared: Shared | None = None,
) -> Iterator[Session]:
  """Opens a workdir for one command.

  A command that is refused leaves the workdir as it was: one that trains
  calls `begin` once all that it was given is known to be good.

  Args:
    config: validated.
    workdir: the run directory; made and locked if the command trains.
    trains: whether the command trains. Others read the run and add files.
    parts: those of the data that the command reads, of 'train' and 'eval'.
    origin: the run that a new fork starts from. The fork rests on what that
      run was started with.
    shared: what the runs of a sweep have in common; None = of this run alone.

  Raises:
    InputError: an input cannot be used, or is not the one that the run was
      started with.
  """
  directory = run_directory(workdir, config if trains else None)
  shared = shared or Shared()
  cache_dir = caches.place(
    config.data.cache_dir, directory.path, shared.cache_dir
  )
  if trains:
    directory.check(config_lib.resolve(config))
  else:
    places.refuse_strange(directory.path)
  if shared.mesh is None:
    job_lib.check_mesh(config)
  # From here on a signal waits for the next poll, except where files are read.
  dog = _watchdog(config if trains else None, directory)
  with Signals() as signals, dog, directory.as_it_was():
    if trains:
      # All have read the folder before the first one writes into it.
      processes.together(directory.lock)
    try:
      first = origin or directory
      identity = identities.Identity(
        config,
        first.env(),
        first.config_or_none(),
        trains and origin is None,
      )
      # A fraction of a source is drawn by the seed.
      is_drawn = any(share % 1 for share in config_lib.proportions(config))
      with preemption.at_once():
        inputs = shared.get(
          config,
          'inputs',
          (tuple(parts), config.seed if is_drawn else None),
          lambda: processes.first_then_all(
            lambda: inputs_lib.read(
              config, cache_dir, print, signals.poll, parts
            )
          ),
        )
      if cache_dir == caches.folder() and processes.is_first():
        caches.trim(cache_dir, caches.limit())
      identity.take(inputs.fingerprints)
      _check_model(first, inputs.model, config.model.init_from)
      job = job_lib.build(config, inputs, shared=shared)
      if trains and (line := memory.check(job)):
        print(line)
      handover.connect(job.mesh, lambda: processes.all_true(True))
      job = job._replace(take_weights=identity.take_weights)
      yield Session(directory, job, signals.poll, identity, cache_dir)
    finally:
      directory.close()


def _watchdog(
  config: ConfigDict | None, directory: RunDir
) -> watchdog.Watchdog:
  """The watchdog of a command that trains; for others one that never ends."""

  def saved() -> list[int]:
    folder = epath.Path(str(directory.checkpoints))
    return [path.step for path in checkpoints.STEP_NAMES.find_all(folder)]

  minutes = config.train.watchdog_minutes if config else 0.0
  return watchdog.Watchdog(minutes, saved, watchdog.command())


def begin(session: Session) -> None:
  """Writes what makes the workdir a run, or the run's next session."""
  directory, job = session.directory, session.job
  directory.create_or_continue(config_lib.resolve(job.config))
  for line in directory.write_env(session.identity.fingerprints()):
    print(f'not bitwise the same run any more: {line}')
  if processes.is_first():
    initial_weights.record(directory.path, job.inputs.model)


def writer(
  session: Session, start: int
) -> writers.MetricWriter | writers.SilentWriter:
  """The writer of a run's metrics: of several processes, the first one's.

  Args:
    session: an opened workdir that trains.
    start: updates done.
  """
  if not processes.is_first():
    return writers.SilentWriter()
  job = session.job
  return writers.MetricWriter(
    session.directory.path,
    total_steps=job.num_steps,
    start_step=start,
    comparisons_per_step=job.train_plan.num_comparisons,
    tracker=_tracker(session),
    confirm=session.directory.confirm,
  )


def _tracker(session: Session) -> trackers.Tracker:
  """The tracker of the config's log section; a sweep is a group of it."""
  config = session.job.config
  return trackers.Tracker(
    config.log.tracker,
    session.directory.path,
    project=config.log.project,
    group=config.log.group or session.job.shared.group,
    config=config_lib.resolve(config),
  )


def has_evaluated(session: Session, writer: Any, step: int) -> bool:
  """Whether metrics and samples of an evaluation are on disk.

  Args:
    session: an opened workdir that trains.
    writer: of its metrics.
    step: updates done.
  """
  samples = (session.directory.path / 'samples').glob(f'eval_{step}_*.jsonl')
  is_sampled = not session.job.config.eval.num_samples or any(samples)
  return processes.of_first(writer.has(step, 'eval') and is_sampled)


def is_overdue(session: Session, saved: checkpoints.Checkpoints) -> bool:
  """Whether train.save_every_minutes have gone by since the last save."""
  minutes = session.job.config.train.save_every_minutes
  # All processes save, or none: the clock of the first one decides.
  return minutes > 0 and processes.of_first(saved.is_overdue(minutes))


def checkpoint_meta(
  session: Session, num_tokens: int, skipped: int = 0
) -> dict[str, Any]:
  """What every checkpoint says of the run that made it."""
  return {
    'num_tokens': num_tokens,
    **({'skipped': skipped} if skipped else {}),
    'config': config_lib.resolve(session.job.config),
    'fingerprints': session.identity.fingerprints(),
  }


def look_at_weights(session: Session) -> None:
  """Loads the weights that a continued run rests on and would not load.

  A policy that comes from a checkpoint hides that the weights it started from
  are others now. Called while no state is on the devices yet.

  Raises:
    InputError: they are not those of the start.
  """
  job = session.job
  is_moved = bool(job.reference_every)
  is_read = job.inputs.adapter is not None or (
    job.scored.needs_reference
    and not is_moved
    and not job.config.reference.init_from
  )
  if job.inputs.weights and not is_read:
    weights.load(job, job.inputs.weights)
  if is_moved and job.config.reference.init_from:
    weights.load(job, job.config.reference.init_from, 'reference.init_from')
  if job.config.adapter.init_from:
    weights.initial(job)


def check_maker(
  session: Session, restored: Restored, origin: RunDir | None = None
) -> None:
  """Refuses a checkpoint that another config, data or weights made.

  Args:
    session: the opened workdir.
    restored: a step of its checkpoints.
    origin: the run that the step is of; None = the workdir's own.
  """
  directory = origin or session.directory
  where = directory.checkpoints / str(restored.step)
  made_by = restored.meta.get('config')
  if made_by is None:
    print(f'{where}: of an older version, it does not say which run made it')
    return
  own = directory.config_or_none()
  if own is None:
    own = config_lib.resolve(session.job.config)
  grows = _may_grow(made_by, session.job.config)
  directory.refuse_differences(
    made_by,
    own,
    'a checkpoint of another run',
    "put back this run's own, or move it elsewhere",
    where,
    ('train.num_steps',) if grows else (),
  )
  session.identity.expect(restored.meta.get('fingerprints', {}))


def policy(
  session: Session, more: Mapping[str, Any] | None = None, step: str = ''
) -> Policy:
  """Returns the policy of a checkpoint, or the initial model.

  Args:
    session: the open workdir.
    more: further items to read, {name: abstract pytree}.
    step: a number of updates, 'best', or '' for the newest sound step.

  Returns:
    Policy; its items are empty if it is of no checkpoint.

  Raises:
    InputError: there is no such step, or it is not sound.
  """
  job = session.job
  number = best.parse_step(step, session.directory, job.config)
  # `partial`: the optimizer's moments are not read.
  wanted = {state_items.POLICY: job.abstract.params, **(more or {})}
  with checkpoints.Checkpoints(session.directory.checkpoints) as saved:
    # The initial model is step 0, saved or not.
    if number is None or (number == 0 and 0 not in saved.steps()):
      restored = (
        None if number == 0 else saved.restore_latest(wanted, partial=True)
      )
    else:
      restored = saved.restore(number, wanted, partial=True)
  if restored is None:
    return Policy(weights.initial(job), 0, {})
  check_maker(session, restored)
  return Policy(
    restored.items[state_items.POLICY], restored.step, restored.items
  )


def _check_model(directory: RunDir, model: DecoderConfig, source: str) -> None:
  """Refuses a model of another config than the run's model.json.

  Args:
    directory: of the run.
    model: the config in use.
    source: model.init_from, '' for a preset.
  """
  recorded = initial_weights.recorded(directory.path)
  if recorded is None or recorded == model:
    return
  lines = decoder_config.differences(recorded, model)
  raise errors.refuse(
    'config.model',
    f'another model config than this run was started with: {"; ".join(lines)}'
    + (f' in {source}' if source else ''),
    'put back what was there, or give a new --workdir',
  )


def _may_grow(before: Mapping[str, Any], config: ConfigDict) -> bool:
  """Whether a run may go on to more updates with the same ones so far."""
  # The file may have been edited: its differences are named elsewhere.
  train = before.get('train')
  steps = train.get('num_steps') if isinstance(train, Mapping) else None
  now = config.train.num_steps
  if type(steps) is not int or not 0 < steps < now:
    return False
  return optim.same_start(
    config.optim.schedule,
    steps,
    now,
    warmups=[updates.warmup_steps(config, n) for n in (steps, now)],
    **config_lib.schedule_options(config),
  )
