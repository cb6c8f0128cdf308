"""checkpoint -> where training starts: initial weights, a step, or a fork.

Comes in: an open session and the checkpoints of its workdir. Goes out: the
TrainState on the mesh, the weights of a reference that moved, and the step.
Whatever is restored was made by this run's config, or by the fork's origin.
"""

from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.run import bookkeeping, weights
from dpo_jax.run import fork as forks
from dpo_jax.run import job as job_lib
from dpo_jax.run import session as sessions
from dpo_jax.storage import checkpoints, state_items
from dpo_jax.types import Params, TrainState


class Start(NamedTuple):
  """Where the loop begins."""

  state: TrainState
  moved: Params | None  # the reference's weights, if it moved
  step: int  # updates done


def newest(
  session: sessions.Session,
  saved: checkpoints.Checkpoints,
  trained: bookkeeping.TrainedCounts,
) -> Start:
  """The newest sound checkpoint, else the initial state.

  Args:
    session: the open workdir.
    saved: its checkpoints.
    trained: takes the counts of the checkpoint.
  """
  job = session.job
  if saved.steps():
    sessions.look_at_weights(session)
  restored = saved.restore_latest(_abstract_items(job, trained))
  if restored is None:
    return Start(job_lib.initial_state(job, weights.initial(job)), None, 0)
  sessions.check_maker(session, restored)
  print(f'continuing from step {restored.step} of {job.num_steps}')
  return _take_up(restored, trained)


def fork(
  session: sessions.Session,
  origin: forks.Fork,
  trained: bookkeeping.TrainedCounts,
) -> Start:
  """A step of another run.

  Args:
    session: the open workdir of the new run.
    origin: the run and its step.
    trained: takes the counts of the checkpoint.
  """
  job, run = session.job, origin.directory
  if origin.step >= job.num_steps:
    raise errors.refuse(
      'config.train.num_steps',
      f'{job.num_steps} updates are done at step {origin.step} of {origin.run}',
      'a larger number, or an earlier step: --fork=RUN@STEP',
    )
  sessions.look_at_weights(session)
  with checkpoints.Checkpoints(run.checkpoints) as saved:
    restored = saved.restore(origin.step, _abstract_items(job, trained))
  sessions.check_maker(session, restored, run)
  print(forks.describe(origin))
  return _take_up(restored, trained)


def _abstract_items(job: job_lib.Job, trained) -> dict[str, Any]:
  """The items of a checkpoint of this job, as shapes."""
  moves = job.weights.abstract if job.reference_every else None
  return state_items.items_of(job.abstract, trained.counts, moves)


def _take_up(restored, trained) -> Start:
  """State, moved reference and step of a checkpoint; sets the counts."""
  state, trained.counts, moved = state_items.state_of(restored.items)
  trained.num_tokens = restored.meta['num_tokens']
  return Start(state, moved, restored.step)
