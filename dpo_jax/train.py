"""config -> a trained policy in a run directory: the loop.

The one ordering rule, at every step boundary: a step's metrics are read,
tested and written after the next step was dispatched, but always before the
state is evaluated or saved; evaluate, then save with the data position, then
the next batch. So no state is kept whose steps were not seen to be finite,
and a run that is started again repeats nothing and skips nothing.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import types
from dpo_jax.run import bookkeeping, evaluate, inputs, sample
from dpo_jax.run import job as run_setup
from dpo_jax.run import reference as reference_pass
from dpo_jax.run import weights as policy_weights
from dpo_jax.run.preemption import Preempted, Signals
from dpo_jax.storage import checkpoints, initial_weights, run_dir, writers
from dpo_jax.types import Params, TrainState

# What a continued run may change: nothing that the result depends on.
MAY_CHANGE = (
  'data.cache_dir',
  'mesh',
  'train.save_every',
  'train.keep_checkpoints',
  'eval.num_samples',
  'sample',
  'adapter.export',
)


class Diverged(Exception):
  """A metric is not finite; the message names step and metric."""


class Pending(NamedTuple):
  """A step that was dispatched and not read yet."""

  step: int  # updates done with it
  metrics: dict[str, Any]  # scalars, on the devices
  num_tokens: int  # input tokens of the run so far
  plan: Any  # the StepPlan of its batch


class Run(NamedTuple):
  """A run under way: what the loop works with besides the state."""

  config: Any  # ConfigDict
  data: inputs.Inputs
  job: run_setup.Job
  directory: run_dir.RunDir
  saved: checkpoints.Checkpoints
  writer: writers.MetricWriter
  trained: bookkeeping.TrainedCounts
  train_batches: Any  # step -> types.Batch on the devices
  eval_batches: Any  # likewise
  poll: Any  # raises Preempted
  rates: bookkeeping.Rates
  sampler: Any  # sample.Sampler, or None


def run(config, workdir: str) -> int:
  """Trains as the config says, or continues what the workdir holds.

  Args:
    config: validated ConfigDict.
    workdir: the run directory.

  Returns:
    The exit code: 0 only with a verified last checkpoint and a ledger that
    balances; 1 where the ledger does not.

  Raises:
    InputError: something that was given cannot be used.
    Diverged: a loss or a gradient was not finite; nothing of it is saved.
    Preempted: a signal came; the state was saved.
  """
  directory = run_dir.RunDir(workdir, may_change=MAY_CHANGE)
  resolved = run_setup.resolve(config)
  run_setup.check_mesh(config)
  if directory.check(resolved) and directory.is_done(resolved):
    print(f'{workdir}: this run is done: {_words(directory.done_facts())}')
    return 0
  with Signals() as signals:
    data = inputs.read(config, directory.cache_dir, print, signals.poll)
    directory.create_or_continue(resolved)
    try:
      job = run_setup.build(config, data)
      for line in directory.write_env(data.fingerprints):
        print(f'not bitwise the same run any more: {line}')
      initial_weights.record(directory.path, data.model)
      return _train(config, data, job, directory, signals.poll)
    finally:
      directory.close()


def _train(config, data, job, directory, poll) -> int:
  """Opens what a run writes to, and runs the loop to its end."""
  print(run_setup.describe(config, data, job))
  keep = config.train.keep_checkpoints
  with checkpoints.Checkpoints(directory.checkpoints, keep=keep) as saved:
    trained = bookkeeping.TrainedCounts(len(data.train.store))
    state, moved, start = _start(config, data, job, saved, trained)
    reference, caches = reference_pass.reference(
      config, data, job, directory.cache_dir, poll, moved
    )
    with writers.MetricWriter(
      directory.path,
      total_steps=job.num_steps,
      start_step=start,
      comparisons_per_step=job.train_plan.num_comparisons,
    ) as writer:
      this = Run(
        config=config,
        data=data,
        job=job,
        directory=directory,
        saved=saved,
        writer=writer,
        trained=trained,
        train_batches=run_setup.batch_source(
          job, job.train_plan, data.train.store, caches[0]
        ),
        eval_batches=run_setup.batch_source(
          job, job.eval_plan, data.evaluation.store, caches[1]
        ),
        poll=poll,
        rates=bookkeeping.Rates(),
        sampler=_sampler(config, data, job),
      )
      with jax.transfer_guard('disallow'):  # what moves, moves by name
        last = _loop(this, state, reference, start)
    saved.wait()
    return _finish(this, last)


def _loop(
  this: Run, state: TrainState, reference: Params | None, start: int
) -> dict[str, float]:
  """Updates until num_steps; returns the last evaluation's metrics."""
  job, train = this.job, this.config.train
  step, pending, evaluation = start, None, {}
  stopped_in_it = _is_due(step, train.eval_every) and not this.writer.has(
    step, 'eval'
  )
  if step in (0, job.num_steps) or stopped_in_it:
    evaluation = _evaluate(this, state, reference, step)
  try:
    while step < job.num_steps:
      this.poll()
      batch = this.train_batches(step)
      state, metrics = job.train_step(state, reference, batch, job.hyper)
      plan = job.train_plan.step(step)
      this.trained.add(plan.records, plan.filled_slots)
      step += 1
      if _is_due(step, job.reference_every):
        reference = job.move_reference(
          reference, state.params, state.step, job.hyper
        )
      _report(this, pending)
      pending = Pending(step, metrics, this.trained.num_tokens, plan)
      is_last = step == job.num_steps
      evaluates = is_last or _is_due(step, train.eval_every)
      saves = is_last or _is_due(step, train.save_every)
      if evaluates or saves:
        _report(this, pending)
        pending = None
      if evaluates:
        evaluation = _evaluate(this, state, reference, step)
      if saves:
        _save(this, state, reference, step)
  except Preempted as signal:
    _report(this, pending)
    _save(this, state, reference, step)
    this.saved.wait()
    this.writer.log(f'{signal}: stopped; step {step} is saved')
    raise
  return evaluation


def _report(this: Run, pending: Pending | None) -> None:
  """Reads a step's metrics, refuses what is not finite, writes them."""
  if pending is None:
    return
  metrics = {k: float(v) for k, v in jax.device_get(pending.metrics).items()}
  for name in ('loss', 'grad_norm', 'update_norm'):
    if not math.isfinite(metrics[name]):
      this.writer.write(pending.step, 'train', metrics)
      raise Diverged(
        f'step {pending.step}: {name} is {metrics[name]}; nothing of this '
        f'step is saved; fix: a lower optim.learning_rate or clip_norm, or '
        f'look at the records of this batch: {_uids(this, pending.plan)}'
      )
  plan = pending.plan
  slots = this.job.train_plan.microbatches * plan.num_rows
  metrics |= {
    'num_tokens': pending.num_tokens,
    'packing_efficiency': plan.filled_slots
    / (slots * this.job.train_plan.row_length),
    **this.rates.since_last(
      tokens=plan.filled_slots, comparisons=this.job.train_plan.batch_size
    ),
  }
  this.writer.write(pending.step, 'train', metrics)


def _evaluate(
  this: Run, state: TrainState, reference: Params | None, step: int
) -> dict[str, float]:
  """Evaluates, writes the metrics and the score of every comparison."""
  job = this.job
  metrics, examples = evaluate.evaluate(
    job.eval_step,
    job.objective,
    state.params,
    reference,
    this.eval_batches,
    job.eval_plan.steps_per_epoch,
    job.hyper,
    this.poll,
    state.loss_state,
  )
  this.rates.since_last()  # evaluation is not training's time
  this.writer.write(step, 'eval', metrics)
  if this.sampler:
    _sample(this, state, reference, step)
  if step in (0, job.num_steps):
    this.directory.write_per_example(
      f'eval_{step}', run_setup.per_example(this.data.evaluation, examples)
    )
  return metrics


def _sampler(config, data, job) -> sample.Sampler | None:
  """What samples at each evaluation, where the config asks for samples."""
  if not config.eval.num_samples:
    return None
  sample.check_lengths(config, data.model, _sampled_prompts(config, data))
  return sample.make_sampler(config, data, job)


def _sampled_prompts(config, data) -> list[np.ndarray]:
  """The first held-out prompts."""
  first = data.evaluation.indices[: config.eval.num_samples]
  return [data.evaluation.store[i].prompt for i in first]


def _sample(this: Run, state: TrainState, reference, step: int) -> None:
  """Writes samples of the first held-out prompts; changes nothing else."""
  params = state.params
  if this.job.adapter is not None:
    params = types.Adapted(reference.base, params, reference.scale)
  prompts = _sampled_prompts(this.config, this.data)
  samples = sample.sample(this.sampler, params, prompts, poll=this.poll)
  this.rates.since_last()
  this.directory.write_samples(f'eval_{step}', samples)
  texts = [f'{s["prompt"]} -> {s["completion"]}' for s in samples]
  this.writer.write_text(step, 'samples', '\n\n'.join(texts))


def _save(
  this: Run, state: TrainState, reference: Params | None, step: int
) -> None:
  """Starts writing a checkpoint: state, data position, a moved reference."""
  items = {
    'params': state.params,
    'opt_state': state.opt_state,
    'loss_state': state.loss_state,
    'rng': {'key': state.key, 'step': state.step},
    'data': {'trained': this.trained.counts},
  }
  if this.job.reference_every:
    whole = reference if this.job.adapter is None else reference.reference
    items['reference'] = whole
  meta = {'num_tokens': this.trained.num_tokens}
  this.saved.save(step, items, meta)


def _start(
  config, data, job, saved, trained
) -> tuple[TrainState, Params | None, int]:
  """The newest sound checkpoint's state and moved reference, or initial ones.

  The reference is None where it is the initial one.
  """
  abstract = {
    'params': job.abstract.params,
    'opt_state': job.abstract.opt_state,
    'loss_state': job.abstract.loss_state,
    'rng': {'key': job.abstract.key, 'step': job.abstract.step},
    'data': {'trained': trained.counts},
  }
  if job.reference_every:
    abstract['reference'] = job.weights.abstract
  found = saved.restore_latest(abstract)
  if found is None:
    params = policy_weights.initial(config, data, job)
    return run_setup.initial_state(config, job, params), None, 0
  items = found.items
  trained.counts = np.array(items['data']['trained'])
  trained.num_tokens = found.meta['num_tokens']
  state = TrainState(
    step=items['rng']['step'],
    params=items['params'],
    opt_state=items['opt_state'],
    loss_state=items['loss_state'],
    key=items['rng']['key'],
  )
  print(f'continuing from step {found.step} of {job.num_steps}')
  return state, items.get('reference'), found.step


def _finish(this: Run, evaluation: dict[str, float]) -> int:
  """Verifies what was written, closes the ledger, marks the run as done."""
  job, data = this.job, this.data
  step = this.saved.verify_latest()
  num_prompts = job.num_steps * job.train_plan.batch_size
  problems = this.trained.problems(data.train.indices, num_prompts)
  closed, unbalanced = bookkeeping.close_ledger(
    data.ledger['train'], this.trained, data.train.indices
  )
  print(bookkeeping.summary(closed))
  for problem in problems + unbalanced:
    print(f'ledger does not balance: {problem}')
  if problems or unbalanced:
    return 1
  this.directory.mark_done(
    step=step, ledger=data.ledger | {'train': closed}, eval=evaluation
  )
  print(f'done: {_words({"step": step, "eval": evaluation})}')
  return 0


def _uids(this: Run, plan) -> str:
  uids = this.data.train.store.uids
  return ', '.join(uids[i] for i in plan.records[:4] if i >= 0) + ', ...'


def _is_due(step: int, every: float) -> bool:
  return every > 0 and step % every == 0


def _words(facts: dict[str, Any]) -> str:
  """Step and held-out metrics of a run, in one line."""
  shown = ('loss', 'rewards/accuracies', 'rewards/margins')
  metrics = facts.get('eval', {})
  parts = [f'{k} {metrics[k]:.4f}' for k in shown if k in metrics]
  return f'step {facts.get("step")}, held-out {", ".join(parts)}'
