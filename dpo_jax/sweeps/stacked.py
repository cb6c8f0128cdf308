"""points of one graph -> one program that trains all of them at once.

Comes in: points that differ in traced numbers only, and how to put them into
one program: `vmap` computes them side by side, `map` one after another. Goes
out: the same run directories as one after another by commands of their own. One
step serves all points: one batch if their data order is the same, one base and
one reference. Over several devices each has a part of the points.

A sum over a stack may round in another way than a sum by itself: the numbers of
a point agree with those of its own run to about 1e-6, not to the bit.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import errors, train, types
from dpo_jax.run import job as job_lib
from dpo_jax.run import session as sessions
from dpo_jax.run.preemption import Diverged, Preempted
from dpo_jax.run.shared import Shared
from dpo_jax.storage import append
from dpo_jax.sweeps import program
from dpo_jax.sweeps.folder import Folder
from dpo_jax.sweeps.points import Point
from dpo_jax.types import Frozen, InputError, TrainState

_TRIALS = 3  # steps that `auto` measures of each way, after the compile


class Variant(NamedTuple):
  """One point of the stack: an open run."""

  name: str
  run: train.Run
  # A context in which what the run prints goes to its own output.
  output: Callable[[], contextlib.AbstractContextManager]


class Failures(dict):
  """{name of a point: (line, exit code)} of those that ended early."""


def check(job: job_lib.Job, how: str) -> None:
  """Refuses a job that cannot be stacked.

  Raises:
    InputError: it moves its reference.
  """
  if job.reference_every:
    raise errors.refuse(
      '--sweep.mode',
      f'{how!r} is not allowed with tr_dpo, whose reference moves with each '
      'policy',
      'use loop',
    )


def train_points(
  listed: Sequence[Point],
  folder: Folder,
  shared: Shared,
  how: str,
  say: Callable[[str], None] = print,
) -> Failures:
  """Trains points of one graph, as many as start alike in one program.

  Args:
    listed: the points, claimed by this process.
    folder: of the sweep.
    shared: of this graph; its mesh is `program.one_device()`.
    how: 'map', 'vmap', or 'auto', which measures both.
    say: takes one line.

  Returns:
    The points that failed, each with its line and exit code.

  Raises:
    Preempted: a signal came; every state was saved.
  """
  failed = Failures()
  # Runs that were stopped at different steps, or have other references, cannot
  # take their steps together. {(step, reference): runs}
  alike: dict[tuple[int, int], list[tuple[Variant, TrainState, Frozen]]] = {}
  polls = []
  with contextlib.ExitStack() as stack:
    for point in listed:
      path = folder.output(point.name)
      path.parent.mkdir(parents=True, exist_ok=True)
      file = stack.enter_context(append.open_text(path))
      output = functools.partial(contextlib.redirect_stdout, file)
      try:
        with output():
          session = stack.enter_context(
            sessions.open_workdir(
              point.config,
              str(folder.path / point.name),
              trains=True,
              shared=shared,
            )
          )
          check(session.job, how)
          run, state, reference, start = stack.enter_context(
            train.open_run(session)
          )
      except InputError as error:
        failed[point.name] = str(error), error.exit_code
        continue
      polls.append(session.poll)
      variant = Variant(point.name, run, output)
      key = start, id(reference)
      alike.setdefault(key, []).append((variant, state, reference))

    def poll():
      # A signal is heard by the session that was opened last before it came.
      for one in polls:
        one()

    for (start, _), runs in alike.items():
      variants, states, references = zip(*runs)
      failed |= train_all(
        variants, states, references[0], start, how, poll, say
      )
  return failed


def train_all(
  variants: Sequence[Variant],
  states: Sequence[TrainState],
  reference: Frozen,
  start: int,
  how: str,
  poll: Callable[[], None],
  say: Callable[[str], None] = print,
) -> Failures:
  """Trains open runs from one step to their end, all in one program.

  Args:
    variants: the runs; their jobs have one graph.
    states: of each run at `start`; donated.
    reference: of all runs.
    start: updates done.
    how: 'map', 'vmap', or 'auto', which measures both.
    poll: raises Preempted after a signal; then every state was saved.
    say: takes one line.

  Returns:
    The points that ended early. The others are done, each with its DONE.
  """
  return _Stack(variants, reference, how, poll, say).train(states, start)


class _Stack:
  """The program of a stack, and the runs that it serves."""

  def __init__(self, variants, reference, how, poll, say):
    self._variants, self._poll, self._say = list(variants), poll, say
    self._failed = Failures()
    self._job = variants[0].run.job
    devices = jax.devices()
    # Every device gets equally many points; the last ones may be repeated.
    self._num_devices = min(len(devices), len(variants))
    self._mesh = jax.sharding.Mesh(
      np.array(devices[: self._num_devices]), (program.AXIS,)
    )
    self._size = -(-len(variants) // self._num_devices) * self._num_devices
    self._split = NamedSharding(self._mesh, PartitionSpec(program.AXIS))
    self._whole = NamedSharding(self._mesh, PartitionSpec())
    self._reference = jax.device_put(reference, self._whole)
    # The copy on the first device, where points are evaluated and saved.
    self._own = jax.tree.map(
      lambda x: x.addressable_shards[0].data, self._reference
    )
    self._hyper = self._stack([v.run.job.hyper for v in self._variants])
    seeds = {v.run.job.config.seed for v in self._variants}
    self._is_common = len(seeds) == 1
    self._how = how
    self._step: Callable | None = None
    self._pick = jax.jit(
      lambda stack, i: jax.tree.map(lambda x: x[i], stack),
      out_shardings=self._whole,
    )

  def train(self, states: Sequence[TrainState], start: int) -> Failures:
    """Runs all updates."""
    stack, step, pending = self._stack(states), start, None
    job, options = self._job, self._job.config.train
    evaluations: dict[str, dict[str, float]] = {}
    with jax.transfer_guard('disallow'):
      if step in (0, job.num_steps) or train.is_due(step, options.eval_every):
        self._evaluate(stack, step, evaluations)
      self._choose(stack, step)
      try:
        while step < job.num_steps and self._live():
          self._poll()
          batch, plans = self._batch(step)
          stack, metrics = self._step(
            stack, self._reference, batch, self._hyper
          )
          step += 1
          self._report(pending)
          pending = self._pending(step, metrics, plans)
          is_last = step == job.num_steps
          evaluates = is_last or train.is_due(step, options.eval_every)
          saves = is_last or train.is_due(step, options.save_every)
          saves |= any(
            sessions.is_overdue(v.run.session, v.run.saved)
            for v in self._live()
          )
          if evaluates or saves:
            self._report(pending)
            pending = None
          if evaluates:
            self._evaluate(stack, step, evaluations, saves)
          elif saves:
            self._save(stack, step)
      except Preempted as signal:
        self._report(pending)
        self._save(stack, step)
        for variant in self._live():
          with variant.output():
            variant.run.saved.wait()
            variant.run.writer.log(f'{signal}: stopped; step {step} is saved')
        raise
    for variant in self._live():
      with self._guarded(variant):
        code = train.finish(variant.run, evaluations[variant.name])
        if code:
          self._failed[variant.name] = 'the ledger does not balance', code
    return self._failed

  def _live(self) -> list[Variant]:
    """The points that have not failed."""
    return [v for v in self._variants if v.name not in self._failed]

  @contextlib.contextmanager
  def _guarded(self, variant: Variant) -> Iterator[None]:
    """Keeps the failure of one point from ending the others."""
    try:
      with variant.output():
        yield
    except Diverged as error:
      self._failed[variant.name] = str(error), 1
    except InputError as error:
      self._failed[variant.name] = str(error), error.exit_code

  def _stack(self, trees: Sequence[Any]) -> Any:
    """Equal trees as one, with an axis in front; spread over the devices."""
    trees = [*trees, *[trees[-1]] * (self._size - len(trees))]
    make = jax.jit(
      lambda *each: jax.tree.map(lambda *x: jnp.stack(x), *each),
      out_shardings=self._split,
    )
    return make(*jax.device_put(trees, self._whole))

  def _of(self, stack: Any, index: int, like: Any) -> Any:
    """One point of a stack, placed as the point's own job does."""
    one = self._pick(stack, jax.device_put(np.int32(index), self._whole))
    return jax.device_put(one, like)

  def _batch(self, step: int) -> tuple[types.Batch, list[Any]]:
    """The batch of a step, or a stack of batches; and the plan of each."""
    runs = [variant.run for variant in self._variants]
    plans = [run.job.train_plan.step(step) for run in runs]
    # Plans of one seed are equal: their batch is made once.
    made: dict[int, types.Batch] = {}
    for run in runs:
      seed = run.job.config.seed
      if seed not in made:
        made[seed] = job_lib.host_batch(
          run.job.train_plan, run.job.inputs.train, step
        )
    if self._is_common:
      return jax.device_put(made.popitem()[1], self._whole), plans
    rows = max(batch.rows.tokens.shape[1] for batch in made.values())
    padded = {seed: program.padded(batch, rows) for seed, batch in made.items()}
    each = [padded[run.job.config.seed] for run in runs]
    each += [each[-1]] * (self._size - len(each))
    stacked = jax.tree.map(lambda *x: np.stack(x), *each)
    return jax.device_put(stacked, self._split), plans

  def _pending(self, step, metrics, plans) -> list[tuple[Variant, Any]]:
    """What each run reports of a step, once it has been read."""
    for variant, plan in zip(self._variants, plans):
      variant.run.trained.add(plan.records, plan.filled_slots)
    return (
      step,
      metrics,
      plans,
      [variant.run.trained.num_tokens for variant in self._variants],
    )

  def _report(self, pending) -> None:
    """Reads the metrics of a step and writes each run's line."""
    if pending is None:
      return
    step, metrics, plans, num_tokens = pending
    host = jax.device_get(metrics)
    for i, variant in enumerate(self._variants):
      if variant.name in self._failed:
        continue
      own = jax.tree.map(lambda x, i=i: x[i], host)
      with self._guarded(variant):
        train.report(
          variant.run, train.Pending(step, own, num_tokens[i], plans[i])
        )

  def _evaluate(self, stack, step, evaluations, saves=False) -> None:
    """Evaluates every point, and saves it if that is due."""
    for i, variant in enumerate(self._variants):
      if variant.name in self._failed:
        continue
      self._poll()
      with self._guarded(variant):
        run = variant.run
        state = self._of(stack, i, run.job.shardings)
        metrics = train.evaluate_run(run, state, self._own, step)
        evaluations[variant.name] = metrics
        if run.best.take(step, metrics) or saves:
          train.save(run, state, self._own, step)

  def _save(self, stack, step: int) -> None:
    """Saves every point."""
    for i, variant in enumerate(self._variants):
      if variant.name not in self._failed:
        with self._guarded(variant):
          state = self._of(stack, i, variant.run.job.shardings)
          train.save(variant.run, state, self._own, step)

  def _make(self, way: str, donates: bool = True) -> Callable:
    return program.make_step(
      self._job.step,
      self._mesh,
      way,
      is_common=self._is_common,
      donates=donates,
    )

  def _choose(self, stack, step: int) -> None:
    """Compiles the step; `auto` measures the ways, and takes the faster."""
    ways = program.WAYS if self._how == 'auto' else (self._how,)
    if len(ways) == 1 or step >= self._job.num_steps:
      self._step = self._make(ways[0])
      return
    batch, _ = self._batch(step)
    seconds = {}
    for way in ways:
      # The state is not donated: these steps are tried, not taken.
      trial = self._make(way, donates=False)
      jax.block_until_ready(trial(stack, self._reference, batch, self._hyper))
      began = time.perf_counter()
      for _ in range(_TRIALS):
        self._poll()
        out = trial(stack, self._reference, batch, self._hyper)
        jax.block_until_ready(out)
      seconds[way] = (time.perf_counter() - began) / _TRIALS
    best = min(seconds, key=seconds.get)
    each = ', '.join(f'{way} {s:.3f} s' for way, s in seconds.items())
    self._say(f'one update of {len(self._variants)} points: {each}; {best}')
    self._step = self._make(best)
