"""session -> the state that training starts from, and its step.

Comes in: an opened workdir. Goes out: the state of its newest sound checkpoint,
of another run's step (a fork), or of the initial weights. Trains nothing.
"""

from typing import Any

from dpo_jax import errors
from dpo_jax.run import fork as forks
from dpo_jax.run import job as job_lib
from dpo_jax.run import replay, weights
from dpo_jax.run import session as sessions
from dpo_jax.storage import checkpoints, metrics_file, state_items
from dpo_jax.storage.checkpoint_record import Restored
from dpo_jax.storage.run_dir import RunDir
from dpo_jax.types import Params, TrainState

# Files of a continued run, and what it means that one is gone.
_FILES = {
  'config.json': "written anew, equal to the checkpoint's",
  'env.json': "written anew, from what the checkpoint's is compared with",
  'model.json': 'written anew',
  'per_example/eval_0.npz': 'the examples before training are lost',
}


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
    if session.directory.config_or_none() is not None:
      print('no checkpoint: starting over from step 0')
    return job_lib.initial_state(job, weights.initial(job)), None, 0
  sessions.check_maker(session, restored)
  _say_missing(session.directory, restored)
  print(f'continuing from step {restored.step} of {job.num_steps}')
  taken = _take_up(job, restored, trained)
  limit = job.config.train.skip_bad_steps
  if trained.skipped > limit:
    raise errors.refuse(
      'config.train.skip_bad_steps',
      f'{limit}, and {trained.skipped} steps were skipped already',
      f'use {trained.skipped} or more',
    )
  return taken


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
  state, moved, step = _take_up(job, restored, trained)
  # What the other run skipped counts there.
  trained.skipped = 0
  return replay.with_skipped(job, state, 0), moved, step


def _say_missing(directory: RunDir, restored: Restored) -> None:
  """Prints a line per file of the run that is gone; refuses other metrics.

  Raises:
    InputError: metrics.jsonl has not the lines that the run wrote.
  """
  seal, step = restored.meta.get('metrics'), restored.step
  metrics = directory.path / 'metrics.jsonl'
  for name, loss in _FILES.items():
    if step and not (directory.path / name).exists():
      print(f'{directory.path / name}: missing, {loss}')
  if seal and not metrics_file.check(metrics, seal, step):
    print(f'{metrics}: missing, it begins anew after step {step}')


def _abstract_items(job: job_lib.Job, trained) -> dict[str, Any]:
  """The items of a checkpoint of this job, as shapes."""
  moves = job.weights.abstract if job.reference_every else None
  return state_items.items_of(job.abstract, trained.counts, moves)


def _take_up(job, restored, trained) -> tuple[TrainState, Params | None, int]:
  """State, moved reference and step of a checkpoint; sets the counts."""
  state, trained.counts, moved = state_items.state_of(restored.items)
  trained.num_tokens = restored.meta['num_tokens']
  trained.skipped = restored.meta.get('skipped', 0)
  state = replay.with_skipped(job, state, trained.skipped)
  return state, moved, restored.step
