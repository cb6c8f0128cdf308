"""job -> the needs of a step: memory per device and arithmetic.

Comes in: a Job, on a real mesh or an abstract one. Goes out: bytes and
floating-point operations, from shapes alone. Makes no array and compiles
nothing.

Memory is the sum of the arrays alive in the middle of the backward pass:

- parameters, the optimizer's moments and the reference's weights, as sharded;
- gradients, as large as the trained parameters (twice that with microbatches:
  the sum and the next addend);
- activations: the residuals of `jax.vjp` of the layers, for a device's rows
  under the remat policy, and those of one layer while it is recomputed;
- one layer and the head, gathered from all `fsdp` shards, with their gradients;
- a chunk of logits three times (logits, probabilities, gradient); the batch.

Fusion and scheduling by the compiler are not modelled: tests/run/test_plan.py
compares the sum with `compiled.memory_analysis()`.
"""

import dataclasses
import json
import math
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections.config_dict import ConfigDict

from dpo_jax import sharding, types
from dpo_jax.models import decoder, flops
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.run import inputs as inputs_lib
from dpo_jax.run import job as job_lib
from dpo_jax.run import numerics
from dpo_jax.run.job import Job

_COUNTED_STEPS = 100  # steps whose attended pairs are counted


class Memory(NamedTuple):
  """Bytes on one device."""

  parameters: int
  optimizer: int
  reference: int
  gradients: int
  activations: int
  gathered: int  # one layer and the head, not sharded, with their gradients
  logits: int
  batch: int


def main(
  config: ConfigDict, workdir: str = '', plan_devices: int | None = None
) -> int:
  """--mode=plan: prints the shapes, memory and arithmetic of training.

  Args:
    config: validated.
    workdir: not read; a plan writes nothing.
    plan_devices: number of devices to plan for; None = those of this machine.
      Planned devices compute in bfloat16 if precision.compute is 'auto'.
  """
  del workdir
  mesh = None
  if plan_devices is None:
    job_lib.check_mesh(config)
  else:
    mesh = sharding.abstract_mesh(plan_devices, **config.mesh)
    if config.precision.compute == 'auto':
      config = config.copy_and_resolve_references()
      config.precision.compute = 'bfloat16'
  # Encoding the data fills a token cache, here one that is thrown away.
  with tempfile.TemporaryDirectory() as scratch:
    inputs = inputs_lib.read(config, pathlib.Path(scratch))
    job = job_lib.build(config, inputs, mesh)
    print(describe(job))
    print(describe_needs(job))
    for name, plan in (('train', job.train_plan), ('eval', job.eval_plan)):
      print(f'{name}: {json.dumps(plan.summary())}')
  return 0


def describe(job: Job) -> str:
  """Returns a few lines on the run: losses, steps, parameters, packing."""
  trained = sum(leaf.size for leaf in jax.tree.leaves(job.abstract.params))
  total = sum(leaf.size for leaf in jax.tree.leaves(job.weights.abstract))
  frozen = f' of an adapter on {total:,}' if job.inputs.adapter else ''
  # The first 200 steps are enough for the mean, and take no time.
  plan = job.train_plan.summary(min(job.num_steps, 200))
  is_real = isinstance(job.mesh, jax.sharding.Mesh)
  kind = job.mesh.devices.flat[0].device_kind if is_real else 'device'
  mismatched = (
    f'\nmismatched answers: {plan["num_mismatched"]} of {plan["num_prompts"]} '
    'prompts have one'
    if 'num_mismatched' in plan
    else ''
  )
  return (
    f'{job.config.stage}: {" + ".join(job.objective.terms)}, {job.num_steps} '
    f'updates of {job.config.train.batch_size} prompts, '
    f'{trained:,} parameters{frozen} on {job.mesh.size} x {kind}\n'
    f'rows of {job.train_plan.row_length}: packing efficiency '
    f'{plan["packing_efficiency"]:.3f}, row counts '
    f'{", ".join(map(str, plan["row_shapes"]))} (one compile each)'
    f'{mismatched}\n{numerics.describe(job.model.kernel, job.config)}'
  )


def memory(job: Job) -> Memory:
  """Returns the bytes that a training step holds on each device.

  Args:
    job: on a real mesh or an abstract one.
  """
  config, state, model = job.config, job.abstract, job.model
  parts = job.mesh.shape
  # The largest of the planned shapes decides.
  rows = max(job.train_plan.row_counts) // sharding.row_multiple(job.mesh)
  length = job.train_plan.row_length
  trained = on_device(state.params)
  local = _local(model.config, parts['tensor'])
  dtype = numerics.compute_dtype(config)
  return Memory(
    parameters=trained + (on_device(job.base.abstract) if job.base else 0),
    optimizer=on_device(state.opt_state),
    reference=on_device(job.weights.abstract) if _has_own(job) else 0,
    gradients=trained * (2 if config.train.microbatches > 1 else 1),
    activations=_activations(job, local, dtype, rows, length),
    gathered=_gathered(local, dtype, split=parts['fsdp'] > 1),
    # Three float32 arrays [chunk, V].
    logits=3
    * 4
    * local.vocab_size
    * min(config.precision.head_chunk, rows * length),
    # The six int32 arrays of types.Rows.
    batch=6 * 4 * rows * length * config.train.microbatches,
  )


def step_flops(job: Job) -> dict[str, float]:
  """Returns the arithmetic of a mean update, as models/flops.py counts it.

  The sum of a forward pass, twice that for the gradients (once under an
  adapter: the base has no gradient) and the reference's forward pass. Work that
  remat repeats is left out, as in model FLOPs utilisation.

  Args:
    job: on a real mesh or an abstract one.
  """
  plan = job.train_plan
  num_steps = min(plan.steps_per_epoch, job.num_steps, _COUNTED_STEPS)
  counts = plan.summary(num_steps)
  units = [
    unit
    for t in range(num_steps)
    for part in plan.step(t).rows
    for row in part
    for unit in row
  ]
  attended = sum(flops.attended(unit.trunk, unit.lengths) for unit in units)
  work = flops.Work(
    tokens=counts['num_tokens'] / num_steps,
    attended=attended / num_steps,
    predicted=counts['num_predicted_tokens'] / num_steps,
  )
  forward = flops.forward_flops(job.model.config, work)
  policy = 3 if job.inputs.adapter is None else 2
  total = forward * (policy + has_reference(job))
  return {
    'flops_per_step': total,
    'flops_per_device': total / job.mesh.size,
    'tokens_per_step': work.tokens,
  }


def describe_needs(job: Job) -> str:
  """Returns parameters, memory per device and arithmetic per step, as text."""
  config, needed, counts = job.config, memory(job), step_flops(job)
  names = job.model.config
  total = sum(
    math.prod(names.sizes[d] for d in dims)
    for dims in param_dims(names).values()
  )
  trained = sum(leaf.size for leaf in jax.tree.leaves(job.abstract.params))
  mesh = ', '.join(f'{axis}={n}' for axis, n in job.mesh.shape.items())
  parts = ' + '.join(f'{k} {_gib(v)}' for k, v in needed._asdict().items())
  return (
    f'plan for {job.mesh.size} device(s), {mesh}: {total:,} parameters, '
    f'{trained:,} of them trained, compute '
    f'{numerics.compute_dtype(config)}, remat {config.model.remat}\n'
    f'memory per device: {_gib(sum(needed))} GiB = {parts}\n'
    f'arithmetic: {counts["flops_per_step"]:.3e} FLOPs per step, '
    f'{counts["flops_per_device"]:.3e} per device, '
    f'{counts["tokens_per_step"]:,.0f} tokens per step'
  )


def on_device(abstract: Any) -> int:
  """Returns the bytes per device of ShapeDtypeStructs with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * _bits(leaf.dtype) // 8
    for leaf in jax.tree.leaves(abstract)
  )


def has_reference(job) -> bool:
  """Whether the step, or an evaluation, runs the reference model."""
  in_step = job.config.reference.mode in ('params', 'adapter_off')
  return job.scored.needs_reference and in_step


def _bits(dtype) -> int:
  """Of an element; devices pack two of uint4 in a byte."""
  return 4 if dtype == jnp.uint4 else 8 * dtype.itemsize


def _has_own(job) -> bool:
  """Whether the reference has separate weights, beside an adapter's base."""
  shared = not job.config.reference.init_from and job.move_reference is None
  return has_reference(job) and (job.inputs.adapter is None or not shared)


def _local(config: DecoderConfig, parts: int) -> DecoderConfig:
  """The part of the decoder that one `tensor` shard computes.

  A size that the shards do not divide is not split, as in sharding.py.
  """
  names = ('num_heads', 'num_kv_heads', 'mlp_width', 'vocab_size')
  sizes = {name: getattr(config, name) for name in names}
  return dataclasses.replace(
    config,
    **{k: n // parts if n % parts == 0 else n for k, n in sizes.items()},
  )


def _activations(job, local, dtype, rows, length) -> int:
  """Bytes of residuals that the layers store for the backward pass."""
  config, kernel, shape = job.config, job.model.kernel, (rows, length)

  def kept(decoder_config, remat):
    model = decoder.make_model(
      decoder_config,
      compute_dtype=dtype,
      remat=remat,
      attention_block=config.model.attention_block,
      kernel=kernel,
    )
    return _residuals(model, shape)

  stored = kept(local, config.model.remat)
  if config.model.remat == 'none':
    return stored
  # Under remat, one layer at a time has its residuals in full.
  one = dataclasses.replace(
    local,
    num_layers=1,
    layer_windows=local.layer_windows[:1],
    layer_ropes=local.layer_ropes[:1],
  )
  return stored + kept(one, 'none')


def _residuals(model, shape: tuple[int, int]) -> int:
  """Bytes of the residuals of jax.vjp of the hidden states, less parameters."""
  slot = jax.ShapeDtypeStruct(shape, jnp.int32)
  rows = types.Rows(*[slot] * len(types.Rows._fields))
  sizes = {}

  def trace(params, rows):
    # A pullback is a pytree whose leaves are the residuals. By id, since some
    # of them are parameters or inputs, which are counted elsewhere.
    _, pullback = jax.vjp(lambda p: model.hidden(p, rows)[0], params)
    known = {id(leaf) for leaf in jax.tree.leaves((params, rows))}
    for leaf in jax.tree.leaves(pullback):
      if id(leaf) not in known:
        sizes[id(leaf)] = leaf.size * leaf.dtype.itemsize
    return 0

  params = jax.eval_shape(model.init, jax.random.key(0))
  jax.eval_shape(trace, params, rows)
  return sum(sizes.values())


def _gathered(local: DecoderConfig, dtype, split: bool) -> int:
  """Bytes of one layer and the head while they compute.

  A copy in the compute dtype if that is not float32, a float32 copy if shards
  are gathered, and the float32 gradient. All experts of a layer are counted.
  """
  sizes = local.sizes | {'N': 1}
  dims = param_dims(local)
  layer = sum(
    math.prod(sizes[d] for d in letters)
    for name, letters in dims.items()
    if name.startswith('layers/')
  )
  head = local.vocab_size * local.width
  cast = dtype.itemsize if dtype != jnp.float32 else 0
  return (layer + head) * (cast + 4 * split + 4)


def _gib(size: int) -> str:
  return f'{size / 2**30:.3g}'
