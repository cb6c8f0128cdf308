"""workdir -> a session: its directory, its job, its newest policy.

Comes in: a validated config and a workdir. Goes out: a Session, opened the same
way for training and for every other command: mesh checked, inputs read, job
built, signals caught. Trains nothing.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax.run import inputs as inputs_lib
from dpo_jax.run import job as job_lib
from dpo_jax.run import weights
from dpo_jax.run.job import Job
from dpo_jax.run.preemption import Signals
from dpo_jax.storage import checkpoints, initial_weights, state_items
from dpo_jax.storage.run_dir import RunDir
from dpo_jax.types import Params

# Keys that a continued run may change. The result depends on none of them.
MAY_CHANGE = (
  'data.cache_dir',
  'mesh',
  'train.save_every',
  'train.keep_checkpoints',
  'eval.num_samples',
  'sample',
  'adapter.export',
)


class Session(NamedTuple):
  """An open workdir with the job of its config."""

  directory: RunDir
  job: Job
  poll: Callable[[], None]  # raises Preempted after a signal


class Policy(NamedTuple):
  """The newest parameters of a workdir."""

  params: Params  # the trained parameters, on the mesh
  step: int  # updates done; 0 = the initial model
  items: Mapping[str, Any]  # further items of the same checkpoint, by name


@contextlib.contextmanager
def open_workdir(
  config: ConfigDict,
  workdir: str,
  *,
  trains: bool = False,
  parts: Collection[str] = ('train', 'eval'),
) -> Iterator[Session]:
  """Opens a workdir for one command.

  Args:
    config: validated.
    workdir: the run directory; made and locked if the command trains.
    trains: whether the command trains. Others read the run and add files.
    parts: those of the data that the command reads, of 'train' and 'eval'.

  Raises:
    InputError: an input cannot be used. Nothing but the token cache is written
      before all inputs were checked.
  """
  directory = RunDir(workdir, may_change=MAY_CHANGE if trains else ())
  job_lib.check_mesh(config)
  # From here on a signal waits for the next poll, encoding included.
  with Signals() as signals:
    inputs = inputs_lib.read(
      config, directory.cache_dir, print, signals.poll, parts
    )
    if trains:
      directory.create_or_continue(job_lib.resolve(config))
    try:
      job = job_lib.build(config, inputs)
      # A continued run may meet another jax or another machine: it goes on, and
      # says that its numbers may differ in the last bits.
      if trains:
        for line in directory.write_env(inputs.fingerprints):
          print(f'not bitwise the same run any more: {line}')
        initial_weights.record(directory.path, inputs.model)
      yield Session(directory, job, signals.poll)
    finally:
      directory.close()


def newest_policy(
  session: Session, more: Mapping[str, Any] | None = None
) -> Policy:
  """Returns the newest policy: of a sound checkpoint, else the initial model.

  Args:
    session: the open workdir.
    more: further items to read, {name: abstract pytree}.

  Returns:
    Policy; its items are empty if there is no checkpoint yet.
  """
  job = session.job
  # `partial`: the optimizer's moments are not read.
  wanted = {state_items.POLICY: job.abstract.params, **(more or {})}
  with checkpoints.Checkpoints(session.directory.checkpoints) as saved:
    restored = saved.restore_latest(wanted, partial=True)
  if restored is None:
    return Policy(weights.initial(job), 0, {})
  return Policy(
    restored.items[state_items.POLICY], restored.step, restored.items
  )
