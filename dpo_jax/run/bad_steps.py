"""a bad step -> skipped, or the end of the run.

Comes in: a step whose numbers are not finite, or whose moments are too large;
the step itself left the state as it was (train_step). Goes out: a line that
says so, a count, or Diverged with the inputs kept for a replay. Computes no
number.
"""

from typing import Any

from dpo_jax.run import finite, replay
from dpo_jax.run.preemption import Diverged
from dpo_jax.types import Frozen, TrainState


def take(
  run: Any,
  pending: Any,
  metrics: dict[str, float],
  host: Any,
  problem: str,
  now: tuple[TrainState, Frozen] | None,
) -> None:
  """Counts a bad step that may be skipped; else ends the run at it.

  Args:
    run: a train.Run.
    pending: the train.Pending of the step.
    metrics: of the step.
    host: its metrics as the step returned them, on the host.
    problem: in words.
    now: as in `train.report`.

  Raises:
    Diverged: no more steps may be skipped.
  """
  limit, step = run.job.config.train.skip_bad_steps, pending.step
  run.trained.skipped += 1
  skipped = run.trained.skipped
  # A mean that only the host found bad: the step was made.
  is_held = bool(host['guard'].is_bad)
  is_skipped = is_held and skipped <= limit
  # Written all the same: the last line shows how the run diverged.
  counts = {'skipped': skipped} if is_skipped else {}
  run.writer.write(step, 'train', metrics | counts)
  records = f'the records of this batch: {_uids(run, pending.plan)}'
  if is_skipped:
    run.writer.log(
      f'step {step}: {problem}; skipped ({skipped} of train.skip_bad_steps '
      f'{limit}), no weight and no moment changed; look at {records}'
    )
    return
  # The state before, finite as it is, leads here again.
  if run.origin is None or step - 1 > run.origin.step:
    run.saved.set_aside(step - 1)
  fix = f'{finite.TOO_FAST}, or look at {records}'
  if now is not None and is_held:
    fix += f'; {replay.keep(run.session, step, *now, host, problem)}'
  raise Diverged(
    f'step {step}: {problem}; nothing of this step is saved; fix: {fix}'
  )


def _uids(run: Any, plan: Any) -> str:
  """Ids of the first records of a batch."""
  uids = run.job.inputs.train.store.uids
  return ', '.join(uids[i] for i in plan.records[:4] if i >= 0) + ', ...'
