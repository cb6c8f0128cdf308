"""Ways of computing the DPO step, built as the command builds it, and timed.

Comes in: the flags, the pairs and the name of a variant. Goes out: an object
that answers the benchmark's questions: what it is, and the seconds and losses
of a round of updates. Every round repeats the same updates from the initial
weights. A batch is laid out and sent to the device inside the time, and metrics
are read one step late, as in the loop of train.py. Evaluates and saves nothing.
"""

import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import config as config_lib
from dpo_jax import errors, metrics, optim, scoring, sharding, train_step
from dpo_jax.bench import protocol, workload
from dpo_jax.data.batches import pipeline
from dpo_jax.models import flops
from dpo_jax.run import inputs as inputs_lib
from dpo_jax.run import job as job_lib
from dpo_jax.run import weights
from dpo_jax.run.datasets import Part
from dpo_jax.storage import hf_checkpoint, peft_checkpoint
from dpo_jax.types import CompletionScores, Frozen


class Kind(NamedTuple):
  """What a variant is."""

  layout: str = 'shared'  # of rows
  full: bool = False  # logits of all positions at once
  cached: bool = False  # the reference's scores are read, not computed
  lora: bool = False  # an adapter is trained, and not all weights
  passes: str = ''  # 'forward' or 'backward' of the policy alone, no update


VARIANTS = {
  'padded+full': Kind('padded', full=True),
  'padded+chunked': Kind('padded'),
  'packed': Kind('packed'),
  'packed+shared': Kind(),
  'packed+shared+cached': Kind(cached=True),
  'packed+shared+lora': Kind(lora=True),
  'packed+shared+cached+lora': Kind(cached=True, lora=True),
  'forward': Kind(passes='forward'),
  'forward+backward': Kind(passes='backward'),
}
# Keys that flags own, and the flags.
_OWN = {
  'train.batch_size': 'batch_size',
  'precision.compute': 'dtype',
  'data.max_length': 'max_length',
  'adapter.rank': 'lora',
}


def make_config(options: Any, kind: Kind):
  """Returns the config of a variant, validated.

  Optimizer, clipping, beta and rate are those of TRL, except that the rate is
  constant. The data keys are not read: the benchmark has the pairs.
  """
  config = config_lib.base()
  values = {
    'stage': 'dpo',
    'loss.terms.sigmoid': 1.0,
    'loss.beta': 0.1,
    'data.train': 'synthetic',
    'data.layout': kind.layout,
    'data.max_length': options.max_length,
    'data.row_length': options.row_length,
    'tokenizer': 'byte',
    'model.preset': '' if workload.is_folder(options.model) else options.model,
    'model.init_from': options.model
    if workload.is_folder(options.model)
    else '',
    'reference.mode': 'cache' if kind.cached else 'params',
    'optim.name': 'adamw',
    'optim.schedule': 'constant',
    'optim.learning_rate': options.learning_rate,
    'optim.clip_norm': 1.0,
    'train.num_steps': options.steps,
    'train.batch_size': options.batch_size,
    'eval.batch_size': options.batch_size,
    'precision.compute': options.dtype,
  }
  if kind.lora:
    values |= {
      'adapter.rank': options.lora,
      'adapter.alpha': 2.0 * options.lora,
    }
  config.loss.terms.sigmoid = 0.0
  for key, value in values.items():
    config_lib.override(config, key, value)
  for key, value in overrides(options):
    if key in _OWN or key.startswith(('model.preset', 'model.init_from')):
      raise errors.refuse(
        f'config.{key}',
        'is set by a flag of the benchmark',
        f'--{_OWN.get(key, "model")}=',
      )
    config_lib.override(config, key, value)
  config_lib.validate(config)
  return config


def overrides(options: Any) -> list[tuple[str, str]]:
  """Returns the config keys that the flags set, with their values as text."""
  pairs = [tuple(word.split('=', 1)) for word in options.overrides]
  if options.attention:
    pairs.append(('model.attention', options.attention))
  if options.head_chunk:
    pairs.append(('precision.head_chunk', options.head_chunk))
  return pairs


class Ours:
  """A variant with its compiled steps."""

  def __init__(self, options: Any, records: workload.Store, name: str):
    """Builds and compiles."""
    self._options, self._kind = options, VARIANTS[name]
    config = make_config(options, self._kind)
    self._store = records
    # The first records stand for the held-out ones, which are not read.
    first = np.arange(options.batch_size)
    inputs = inputs_lib.Inputs(
      tokenizer=None,
      train=Part(records, np.arange(len(records))),
      evaluation=Part(records, first),
      ledger={},
      model=workload.shape(options),
      adapter=None,
      weights=config.model.init_from,
      fingerprints={},
    )
    if self._kind.lora:
      spec = inputs_lib.adapter_spec.from_choices(config.adapter, inputs.model)
      inputs = inputs._replace(adapter=spec)
    # One device: a step of several is not what is compared.
    mesh = sharding.make_mesh(jax.devices()[:1], **config.mesh)
    self._job = job = job_lib.build(config, inputs, mesh)
    self._params = jax.device_get(weights.initial(job))
    has_model = not (self._kind.cached or self._kind.passes)
    frozen = weights.frozen(job, with_reference=not self._kind.passes)
    if self._kind.cached:
      scores = _Scores(job, frozen.reference(), options.steps)
      job = job._replace(
        inputs=inputs._replace(train=inputs.train._replace(scores=scores))
      )
      self._job = job
    self._reference = frozen if has_model else Frozen(frozen.base, frozen.scale)
    self._compile()

  def info(self) -> dict[str, Any]:
    """Returns what it is, and what compiling took."""
    device = jax.devices()[0]
    job, steps = self._job, self._options.steps
    summary = job.train_plan.summary(steps)
    plans = [self._plan(t) for t in range(steps)]
    order = [int(i) for t in range(steps) for i in job.train_plan.records(t)]
    useful, slots = 0.0, 0
    for i in order:
      lengths = [len(c) for c in self._store[i].completions]
      work = flops.shared_work(len(self._store[i].prompt), lengths)
      useful += flops.forward_flops(job.inputs.model, work)
    for plan, t in plans:
      slots += plan.step(t).num_rows * plan.microbatches * plan.row_length
    filled = sum(plan.step(t).filled_slots for plan, t in plans)
    return {
      'framework': f'jax {jax.__version__}',
      'platform': device.platform,
      'device': device.device_kind,
      'order': order,
      'forward_flops': useful,
      'tokens': int(summary['num_separate_tokens']),
      'packing_efficiency': filled / slots,
      'row_lengths': [plan.row_length for plan, _ in plans],
      'row_counts': [plan.step(t).num_rows for plan, t in plans],
      'compile_seconds': self._compile_seconds,
      'compiled_programs': len(self._compiled),
      'temporary_mb': self._temporary_mb,
    }

  def round(self) -> dict[str, Any]:
    """Returns the seconds and losses of the updates."""
    if self._kind.passes:
      return self._run_passes()
    job, state, pending, losses = self._job, self._state(), None, []
    jax.block_until_ready(state)
    clock = protocol.Clock()
    for t in range(self._options.steps):
      batch = self._batch(t)
      step = self._compiled[_shape(batch)]
      state, read = step(state, self._reference, batch, job.hyper)
      if pending is not None:
        losses.append(_loss(pending))
      pending = read
    losses.append(_loss(pending))
    jax.block_until_ready(state)
    return clock.read() | {'losses': losses} | _memory()

  def export(self, folder: pathlib.Path) -> dict[str, Any]:
    """Writes the initial weights for others, and the adapter if it is one."""
    job = self._job
    if self._kind.lora:
      spec, base = job.inputs.adapter, jax.device_get(self._reference.base)
      peft_checkpoint.save(
        folder / 'adapter', self._params, job.inputs.model, spec
      )
    else:
      base = self._params
    if not (folder / 'weights').exists():
      hf_checkpoint.save(folder / 'weights', base, job.inputs.model)
    return {}

  def _state(self):
    own = self._params
    if jax.default_backend() == 'cpu':
      # Copies: the first step takes over the memory of what it is given.
      own = jax.tree.map(np.array, own)
    own = jax.device_put(own, self._job.shardings.params)
    return job_lib.initial_state(self._job, own)

  def _plan(self, t: int) -> tuple[pipeline.Plan, int]:
    """The plan that has the batch of step t, and its number there."""
    job = self._job
    if self._kind.layout != 'padded':
      return job.train_plan, t
    chosen = job.train_plan.records(t)
    # To the longest of the batch: a text of n tokens takes n - 1 slots.
    longest = max(
      len(self._store[i].prompt) + len(c) - 1
      for i in chosen
      for c in self._store[i].completions
    )
    plan = pipeline.make_plan(
      self._store.table,
      seed=0,
      batch_size=len(chosen),
      row_length=longest,
      layout='padded',
      row_multiple=job.train_plan.row_multiple,
      shuffle=False,
      indices=chosen,
    )
    return plan, 0

  def _batch(self, t: int):
    job = self._job
    plan, index = self._plan(t)
    host = job_lib.host_batch(plan, job.inputs.train, index)
    return jax.device_put(host, sharding.batch_shardings(job.mesh, host))

  def _compile(self) -> None:
    """Compiles the step for the shapes of all batches."""
    job, steps = self._job, range(self._options.steps)
    step = self._pass() if self._kind.passes else self._step()
    batches = {_shape(batch): batch for batch in map(self._batch, steps)}
    began, self._compiled = time.perf_counter(), {}
    for shape, batch in batches.items():
      if self._kind.passes:
        lowered = step.lower(job.abstract.params, self._rows(batch))
      else:
        lowered = step.lower(job.abstract, self._reference, batch, job.hyper)
      self._compiled[shape] = lowered.compile()
    self._compile_seconds = time.perf_counter() - began
    self._temporary_mb = max(
      compiled.memory_analysis().temp_size_in_bytes / 1e6
      for compiled in self._compiled.values()
    )

  def _step(self):
    """The jitted update."""
    job = self._job
    if not self._kind.full:
      return job.train_step
    score = scoring.make_score(job.model, full_logits=True, mesh=job.mesh)
    schedule = optim.make_schedule('constant', num_steps=1)
    step = train_step.make_train_step(
      score, job.objective, job.optimizer, schedule
    )
    return jax.jit(step, donate_argnums=0)

  def _pass(self):
    """The jitted forward pass, or its gradient too."""
    job = self._job
    chunk = job.head_chunk
    score = scoring.make_score(job.model, chunk=chunk, mesh=job.mesh)

    def total(params, rows):
      return score(params, rows, job.train_plan.num_completions).logps.sum()

    if self._kind.passes == 'backward':
      return jax.jit(jax.grad(total))
    return jax.jit(total)

  def _rows(self, batch):
    return jax.tree.map(lambda x: x[0], batch.rows)  # M is 1

  def _run_passes(self) -> dict[str, Any]:
    params = jax.device_put(self._params, self._job.shardings.params)
    batches = [self._batch(t) for t in range(self._options.steps)]
    rows = [(_shape(batch), self._rows(batch)) for batch in batches]
    jax.block_until_ready((params, rows))
    clock = protocol.Clock()
    for shape, part in rows:
      jax.block_until_ready(self._compiled[shape](params, part))
    return clock.read() | _memory()


class _Scores:
  """The reference's scores of the batches, as the cache would give them."""

  def __init__(self, job: job_lib.Job, params, steps: int):
    """Scores the batches of the first steps."""
    count = len(job.inputs.train.store.table.completion_lengths)
    self._logps = np.full(count, np.nan, np.float32)
    self._num_tokens = np.zeros(count, np.int32)
    plan = job.train_plan
    source = job_lib.batch_source(job, plan, job.inputs.train)
    for t in range(steps):
      rows = jax.tree.map(lambda x: x[0], source(t).rows)
      scores = job.score(params, rows, plan.num_completions)
      index = plan.completion_index(t)
      self._logps[index] = np.asarray(scores.logps)
      self._num_tokens[index] = np.asarray(scores.num_tokens)

  def scores(self, index: np.ndarray) -> CompletionScores:
    return CompletionScores(self._logps[index], self._num_tokens[index])


def measured_peak(dtype: str) -> float:
  """Returns the operations per second of a large matmul on one device."""
  size = 2048 if jax.default_backend() == 'cpu' else 8192
  x = jnp.ones((size, size), jnp.dtype(dtype))
  matmul = jax.jit(lambda a, b: a @ b)
  jax.block_until_ready(matmul(x, x))
  best = np.inf
  for _ in range(5):
    began = time.perf_counter()
    jax.block_until_ready(matmul(x, x))
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 / best


def answers(ours: Ours, folder: pathlib.Path, dtype: str) -> dict[str, Any]:
  """Returns the functions that answer the questions, by question."""
  return {
    'info': ours.info,
    'round': ours.round,
    'export': functools.partial(ours.export, folder),
    'peak': lambda: {'peak': measured_peak(dtype)},
  }


def _shape(batch) -> tuple[int, ...]:
  return tuple(batch.rows.tokens.shape)


def _loss(read) -> float:
  return float(metrics.means(jax.device_get(read))['loss'])


def _memory() -> dict[str, float]:
  stats = jax.devices()[0].memory_stats() or {}
  used = stats.get('peak_bytes_in_use', 0) / 1e6
  return {'peak_rss_mb': protocol.peak_rss_mb(), 'device_peak_mb': used}
