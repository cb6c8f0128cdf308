"""session -> the state that training starts from, and its step.

Comes in: an opened workdir. Goes out: the state of its newest sound checkpoint,
of another run's step (a fork), or of the initial weights. Trains nothing.
"""

from typing import Any

from dpo_jax import errors
from dpo_jax.run import fork as forks
from dpo_jax.run import job as job_lib
from dpo_jax.run import session as sessions
from dpo_jax.run import weights
from dpo_jax.storage import checkpoints, state_items
from dpo_jax.types import Params, TrainState


def from_own(
  session: sessions.Session, saved, trained
) -> tuple[TrainState, Params | None, int]:
  """Returns (state, the moved reference's weights or None, step).

  They come from the newest sound checkpoint, else they are the initial ones.
  """
  job = session.job
  if saved.steps():
    sessions.look_at_weights(session)
  restored = saved.restore_latest(_abstract_items(job, trained))
  if restored is None:
    return job_lib.initial_state(job, weights.initial(job)), None, 0
  sessions.check_maker(session, restored)
  print(f'continuing from step {restored.step} of {job.num_steps}')
  return _take_up(restored, trained)


def from_fork(
  session: sessions.Session, origin: forks.Fork, trained
) -> tuple[TrainState, Params | None, int]:
  """As `from_own`, from a step of another run."""
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


def _take_up(restored, trained) -> tuple[TrainState, Params | None, int]:
  """State, moved reference and step of a checkpoint; sets the counts."""
  state, trained.counts, moved = state_items.state_of(restored.items)
  trained.num_tokens = restored.meta['num_tokens']
  return state, moved, restored.step
