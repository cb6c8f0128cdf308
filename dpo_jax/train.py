"""config -> a trained policy in a run directory: the loop.

The one ordering rule, at every step boundary: a step's metrics are read,
tested and written after the next step was dispatched, but always before the
state is evaluated or saved; evaluate, then save with the data position, then
the next batch. So a state is saved only after the metrics of all its steps were
found finite, and a run that is started again repeats nothing and skips nothing.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import metrics as metrics_lib
from dpo_jax.run import (
  bad_steps,
  best,
  bookkeeping,
  diagnose,
  evaluate,
  finite,
  memory,
  sample,
)
from dpo_jax.run import clock as clocks
from dpo_jax.run import fork as forks
from dpo_jax.run import job as job_lib
from dpo_jax.run import plan as plan_lib
from dpo_jax.run import reference as reference_lib
from dpo_jax.run import session as sessions
from dpo_jax.run import start as starts
from dpo_jax.run.preemption import Preempted
from dpo_jax.run.shared import Shared
from dpo_jax.storage import checkpoints, state_items, writers
from dpo_jax.storage.run_dir import RunDir
from dpo_jax.types import Frozen, StorageError, TrainState


class Pending(NamedTuple):
  """A step that was dispatched and whose metrics were not read yet."""

  step: int  # number of updates, this one included
  metrics: dict[str, Any]  # scalars and metrics.Mean, on the devices
  num_tokens: int  # input tokens of the run, this step included
  plan: Any  # the StepPlan of its batch


class Run(NamedTuple):
  """Everything that the loop works with, except the state and the reference."""

  session: sessions.Session
  origin: forks.Fork | None  # the run that it starts from
  job: job_lib.Job
  directory: RunDir
  saved: checkpoints.Checkpoints
  best: best.Best  # of its evaluations
  writer: writers.MetricWriter | writers.SilentWriter
  trained: bookkeeping.TrainedCounts
  train_batches: Callable[[int], Any]  # step -> types.Batch on the devices
  eval_batches: Callable[[int], Any]  # the same for evaluation
  poll: Callable[..., None]  # raises Preempted
  clock: clocks.Clock
  sampler: sample.Sampler | None  # draws samples at each evaluation


def main(
  config: ConfigDict,
  workdir: str,
  fork: str = '',
  shared: Shared | None = None,
) -> int:
  """Trains as the config says; continues the run if the workdir holds one.

  Args:
    config: validated.
    workdir: the run directory.
    fork: RUN or RUN@STEP, whose state a new run starts from; '' = none.
    shared: what the runs of a sweep have in common; None = a run of its own.

  Returns:
    The exit code: 0 only with a verified last checkpoint and a ledger that
    balances; 1 if the ledger does not.

  Raises:
    InputError: an input cannot be used.
    Diverged: a loss or a gradient was not finite; its step is not saved.
    Preempted: a signal came; the state was saved.
  """
  directory = sessions.run_directory(workdir, config)
  resolved = config_lib.resolve(config)
  is_run = directory.check(resolved)
  origin, is_new = forks.open_fork(fork, directory, config)
  # A finished run is recognised before data or weights are read.
  if is_run and directory.is_done(resolved):
    facts = bookkeeping.result(directory.done_facts())
    print(f'{workdir}: this run is done: {facts}')
    return 0
  first = origin.directory if is_new else None
  with sessions.open_workdir(
    config, workdir, trains=True, origin=first, shared=shared
  ) as session:
    return _train(session, origin)


def _train(session: sessions.Session, origin: forks.Fork | None) -> int:
  """Runs the loop of an opened workdir to its end."""
  print(plan_lib.describe(session.job))
  with open_run(session, origin) as (run, state, reference, start):
    # An implicit copy between host and device would slow every step down in
    # silence, so it is an error: the loop uses device_put and device_get.
    try:
      with jax.transfer_guard('disallow'):
        last = _loop(run, state, reference, start)
      return finish(run, last)
    except StorageError as error:
      raise run.saved.says_last(error) from error


@contextlib.contextmanager
def open_run(
  session: sessions.Session, origin: forks.Fork | None = None
) -> Iterator[tuple[Run, TrainState, Frozen, int]]:
  """Opens the outputs of a run; yields (run, state, reference, first step)."""
  job, directory = session.job, session.directory
  sampler, options = _sampler(job), job.config.train
  record = best.Best(options.keep_best, directory)
  with checkpoints.Checkpoints(
    directory.checkpoints,
    keep=options.keep_checkpoints,
    best=lambda: record.step,
  ) as saved:
    trained = bookkeeping.TrainedCounts(len(job.inputs.train.store))
    is_forked = origin is not None and not saved.steps()
    if is_forked:
      state, moved, start = starts.from_fork(session, origin, trained)
      origin = origin._replace(num_prompts=int(trained.counts.sum()))
    else:
      state, moved, start = starts.from_own(session, saved, trained)
    record.forget_after(start)
    # In mode 'cache' the job comes back with the reference's scores.
    job, reference = reference_lib.prepare(
      job, session.cache_dir, session.poll, moved
    )
    session = session._replace(job=job)
    sessions.begin(session)
    if is_forked:
      forks.record(origin, directory)
    with sessions.writer(session, start) as writer:
      run = Run(
        session=session,
        origin=origin,
        job=job,
        directory=directory,
        saved=saved,
        best=record,
        writer=writer,
        trained=trained,
        train_batches=job_lib.batch_source(
          job, job.train_plan, job.inputs.train
        ),
        eval_batches=job_lib.batch_source(
          job, job.eval_plan, job.inputs.evaluation
        ),
        poll=session.poll,
        clock=clocks.Clock(job, directory.path),
        sampler=sampler,
      )
      if is_forked:
        # From here on the run rests on no other run's files.
        save(run, state, reference, start)
        saved.wait()
      yield run, state, reference, start


def _loop(
  run: Run, state: TrainState, reference: Frozen, start: int
) -> dict[str, float]:
  """Updates until num_steps; returns the last evaluation's metrics."""
  job, train = run.job, run.job.config.train
  step, pending, evaluation = start, None, {}
  # A run that was stopped during an evaluation still owes what is missing.
  is_owed = is_due(step, train.eval_every) and not sessions.has_evaluated(
    run.session, run.writer, step
  )
  if step in (0, job.num_steps) or is_owed:
    evaluation = evaluate_run(run, state, reference, step)
    if run.best.take(step, evaluation):
      save(run, state, reference, step)
  try:
    while step < job.num_steps:
      run.poll(step)
      busy = pending and pending.metrics
      batch = run.clock.batch(run.train_batches, step, busy)
      # Returns at once: the device computes while the host goes on. The old
      # state is donated, so nothing may read it after this line.
      state, metrics = job.train_step(state, reference, batch, job.hyper)
      plan = job.train_plan.step(step)
      run.trained.add(plan.records, plan.filled_slots)
      step += 1
      # Reads the step before, while the device is busy with this one.
      report(run, pending, (state, reference))
      pending = Pending(step, metrics, run.trained.num_tokens, plan)
      if job.reference_every == 1:
        # After a bad step the number of the step stands still, and so does the
        # reference, unless it moves with every number.
        report(run, pending, (state, reference))
        pending = None
      # TR-DPO: this also donates the old weights of the reference.
      if is_due(step, job.reference_every):
        reference = job.move_reference(
          reference, state.params, state.step, job.hyper
        )
      is_last = step == job.num_steps
      evaluates = is_last or is_due(step, train.eval_every)
      saves = is_last or is_due(step, train.save_every)
      saves |= sessions.is_overdue(run.session, run.saved)
      # No evaluation and no checkpoint of a state that is not known finite.
      if evaluates or saves:
        report(run, pending, (state, reference))
        pending = None
      if evaluates:
        evaluation = evaluate_run(run, state, reference, step)
        saves |= run.best.take(step, evaluation)
      if saves:
        save(run, state, reference, step)
  except Preempted as signal:
    # Raised by a poll only, so between two steps: `state` is not half done.
    report(run, pending, (state, reference))
    save(run, state, reference, step)
    run.saved.wait()
    signal.saved = f'step {step} is saved'
    run.writer.log(f'{signal}: stopped; {signal.saved}')
    raise
  return evaluation


def report(
  run: Run,
  pending: Pending | None,
  now: tuple[TrainState, Frozen] | None = None,
) -> None:
  """Reads a step's metrics and writes them; raises Diverged if they are bad.

  Args:
    run: the run.
    pending: the step; None does nothing.
    now: the latest state and reference. A bad step that ends the run left them
      as they were before it, so that it can be replayed. None = not at hand.
  """
  if pending is None:
    return
  # device_get waits for the step.
  host = jax.device_get(pending.metrics)
  means = metrics_lib.means({k: v for k, v in host.items() if k != 'guard'})
  metrics = {name: float(value) for name, value in means.items()}
  problem = finite.problem(metrics, host['guard'])
  if problem:
    bad_steps.take(run, pending, metrics, host, problem, now)
    return
  plan = pending.plan
  # Slots are the positions of all rows, padding included.
  slots = run.job.train_plan.microbatches * plan.num_rows
  metrics |= {
    'num_tokens': pending.num_tokens,
    'packing_efficiency': plan.filled_slots
    / (slots * run.job.train_plan.row_length),
    **run.clock.since_last(
      tokens=plan.filled_slots, comparisons=run.job.train_plan.batch_size
    ),
  }
  run.writer.write(pending.step, 'train', metrics)


@clocks.counted('evaluation')
def evaluate_run(
  run: Run, state: TrainState, reference: Frozen, step: int
) -> dict[str, float]:
  """Evaluates; writes the metrics and, at both ends, the per-example values."""
  metrics, examples = evaluate.evaluate(
    run.job,
    state.params,
    reference,
    run.eval_batches,
    run.poll,
    state.loss_state,
    is_first=step == 0,
  )
  run.clock.since_last()  # evaluation does not count as training time
  run.writer.write(step, 'eval', metrics)
  finite.check_evaluation(
    step, metrics, state.params, reference, run.job.config
  )
  if run.sampler:
    _sample(run, state, reference, step)
  if step in (0, run.job.num_steps):
    arrays = evaluate.per_example(run.job.inputs.evaluation, examples)
    run.directory.write_per_example(f'eval_{step}', arrays)
  return metrics


def _sampler(job: job_lib.Job) -> sample.Sampler | None:
  """The sampler for evaluations; None unless the config asks for samples."""
  count = job.config.eval.num_samples
  if not count:
    return None
  # A prompt that is too long is refused now, not at the first evaluation.
  sample.check_lengths(job, sample.held_out_prompts(job, count))
  return sample.make_sampler(job)


def _sample(run: Run, state: TrainState, reference: Frozen, step: int) -> None:
  """Writes samples for the first held-out prompts; training is unaffected."""
  count = run.job.config.eval.num_samples
  samples = sample.sample(
    run.sampler,
    reference.policy(state.params),
    sample.held_out_prompts(run.job, count),
    poll=run.poll,
    # With reference.mode 'cache' its scores are there, but not the model.
    reference=reference.reference() if memory.has_reference(run.job) else None,
  )
  run.clock.since_last()
  name = sample.file_name(f'eval_{step}', run.sampler, samples)
  run.directory.write_samples(name, samples)
  texts = [f'{s["prompt"]} -> {s["completion"]}' for s in samples]
  run.writer.write_text(step, 'samples', '\n\n'.join(texts))


@clocks.counted('checkpoint')
def save(run: Run, state: TrainState, reference: Frozen, step: int) -> None:
  """Starts to write a checkpoint: state, data position, a moved reference.

  A reference that does not move is not saved: its source is in the config.
  """
  moved = reference.weights if run.job.reference_every else None
  items = state_items.items_of(state, run.trained.counts, moved)
  finite.check_state(f'step {step}', items, finite.TOO_FAST)
  meta = sessions.checkpoint_meta(
    run.session, run.trained.num_tokens, run.trained.skipped
  )
  run.directory.confirm()  # the lock of a bucket is not for ever
  meta |= {'metrics': run.writer.seal()}
  run.saved.save(step, items, meta)


def finish(run: Run, evaluation: dict[str, float]) -> int:
  """Verifies the last checkpoint, closes the ledger, marks the run as done."""
  job, inputs = run.job, run.job.inputs
  run.writer.close()
  with run.clock.spent('checkpoint'):
    step = run.saved.verify_latest()
  problems = run.trained.problems(
    inputs.train.indices,
    *forks.planned(run.origin, job.num_steps, job.train_plan.batch_size),
  )
  closed, unbalanced = bookkeeping.close_ledger(
    inputs.ledger['train'], run.trained, inputs.train.indices
  )
  print(bookkeeping.summary(closed))
  skipped = run.trained.skipped
  if skipped:
    print(f'skipped: {skipped} updates whose numbers were bad')
  for problem in problems + unbalanced:
    print(f'ledger does not balance: {problem}')
  if problems or unbalanced:
    return 1
  run.directory.mark_done(
    step=step,
    ledger=inputs.ledger | {'train': closed},
    eval=evaluation,
    **({'skipped': skipped} if skipped else {}),
  )
  of_run = diagnose.of_run(run.directory.path)
  print(*run.clock.lines(), *of_run, sep='\n')
  print(f'done: {bookkeeping.result({"step": step, "eval": evaluation})}')
  return 0


def is_due(step: int, every: float) -> bool:
  """Whether something is due at a step that comes every so many; 0 = never."""
  return every > 0 and step % every == 0
