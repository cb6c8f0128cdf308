"""job -> the needs of a step: memory per device and arithmetic.

Comes in: a Job, on a real mesh or an abstract one. Goes out: bytes and
floating-point operations, from shapes alone. Makes no array and compiles
nothing.
"""

import copy
import json
import math
import pathlib
import tempfile

import jax
from ml_collections.config_dict import ConfigDict

from dpo_jax import sharding
from dpo_jax.models import flops
from dpo_jax.models.decoder_config import param_dims
from dpo_jax.run import compiled, memory, numerics, slices
from dpo_jax.run import inputs as inputs_lib
from dpo_jax.run import job as job_lib
from dpo_jax.run.job import Job

# Share of a device's memory that a chosen mesh may fill.
_FULL = 0.9
_COUNTED_STEPS = 100  # steps whose attended pairs are counted


def main(
  config: ConfigDict,
  workdir: str = '',
  plan_devices: str = '',
  compile: bool = False,
) -> int:
  """--mode=plan: prints the shapes, memory and arithmetic of training.

  Args:
    config: validated.
    workdir: not read; a plan writes nothing.
    plan_devices: devices to plan for, see slices.parse; '' = those of this
      machine. Planned devices of no known kind are GPUs where a key of
      `precision` is 'auto': they compute in bfloat16.
    compile: whether to ask XLA, too.
  """
  del workdir
  planned, mesh, backend = None, None, ''
  if not plan_devices:
    job_lib.check_mesh(config)
  else:
    planned = slices.parse(plan_devices)
    backend = planned.chip.backend if planned.chip else ''
    if compile:
      described = slices.describe_devices(planned)
      mesh = sharding.make_mesh(described, **config.mesh)
    else:
      mesh = sharding.abstract_mesh(planned.num_devices, **config.mesh)
    config = copy.deepcopy(config)
    if config.precision.compute == 'auto':
      config.precision.compute = 'bfloat16'
    config.model.remat = numerics.remat(config, backend or 'gpu')
    if config.precision.head_chunk == 'auto':
      config.precision.head_chunk = numerics.HEAD_CHUNKS[backend or 'gpu']
  # Encoding the data fills a token cache, here one that is thrown away.
  with tempfile.TemporaryDirectory() as scratch:
    inputs = inputs_lib.read(config, pathlib.Path(scratch))
    job = job_lib.build(config, inputs, mesh, backend=backend)
    warning = '' if planned else memory.check(job)
    print(describe(job))
    print(describe_needs(job))
    if warning:
      print(warning)
    if planned and planned.chip:
      print(describe_chip(job, planned))
      print(describe_choice(config, inputs, planned))
    for name, plan in (('train', job.train_plan), ('eval', job.eval_plan)):
      print(f'{name}: {json.dumps(plan.summary())}')
    if compile:
      print(describe_compiled(compiled.compile_step(job)), flush=True)
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
    f'{mismatched}\n{_numerics(job)}'
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
  total = forward * (policy + memory.has_reference(job))
  return {
    'flops_per_step': total,
    'flops_per_device': total / job.mesh.size,
    'tokens_per_step': work.tokens,
  }


def describe_needs(job: Job) -> str:
  """Returns parameters, memory per device and arithmetic per step, as text."""
  config, needed, counts = job.config, memory.needed(job), step_flops(job)
  names = job.model.config
  total = sum(
    math.prod(names.sizes[d] for d in dims)
    for dims in param_dims(names).values()
  )
  trained = sum(leaf.size for leaf in jax.tree.leaves(job.abstract.params))
  mesh = ', '.join(f'{axis}={n}' for axis, n in job.mesh.shape.items())
  parts = ' + '.join(f'{k} {_gib(v)}' for k, v in needed._asdict().items())
  dtype = numerics.compute_dtype(config)
  kept = memory.needed(job, chunk=0).logits
  moved = memory.on_host(job)
  offload = (
    f"reference in the host's memory: {_gib(moved)} GiB per device, which "
    'cross to it in every forward pass\n'
    if moved
    else ''
  )
  return (
    f'plan for {job.mesh.size} device(s), {mesh}: {total:,} parameters, '
    f'{trained:,} of them trained, compute {dtype}, '
    f'remat {numerics.remat(config)}\n'
    f'memory per device: {_gib(sum(needed))} GiB = {parts}\n{offload}'
    f'logits: {_gib(needed.logits)} GiB, {_gib(kept)} GiB if they are kept '
    'for the backward pass (precision.head_chunk=0)\n'
    f'arithmetic: {counts["flops_per_step"]:.3e} FLOPs per step, '
    f'{counts["flops_per_device"]:.3e} per device, '
    f'{counts["tokens_per_step"]:,.0f} tokens per step'
  )


def describe_chip(job: Job, planned: slices.Planned) -> str:
  """Returns whether the step fits planned devices, and its time at peak."""
  chip, needed = planned.chip, sum(memory.needed(job))
  seconds = step_flops(job)['flops_per_device'] / chip.flops
  verdict = 'fits' if needed <= chip.memory else 'does not fit'
  return (
    f'{planned.num_devices} x {planned.name}: {verdict} {_gib(chip.memory)} '
    f'GiB; a step takes at least {seconds:.3g} s, at the peak of '
    f'{chip.flops / 1e12:g} TFLOP/s'
  )


def describe_choice(config, inputs, planned: slices.Planned) -> str:
  """Returns the mesh with the fewest parts of the weights that fits, as text.

  Fewer parts gather less; `tensor` is left to those who know their network.
  """
  n = planned.num_devices
  for fsdp in (k for k in range(1, n + 1) if n % k == 0):
    mesh = sharding.abstract_mesh(n, data=n // fsdp, fsdp=fsdp)
    job = job_lib.build(config, inputs, mesh, backend=planned.chip.backend)
    size = sum(memory.needed(job))
    if size <= _FULL * planned.chip.memory:
      return (
        f'mesh to choose: data={n // fsdp} fsdp={fsdp}, {_gib(size)} GiB on a '
        'device'
      )
  return (
    f'mesh to choose: none fits; with fsdp={n} a device needs {_gib(size)} GiB '
    f'(model.remat=full, an adapter, or more devices need less)'
  )


def describe_compiled(step: compiled.Step) -> str:
  """Returns XLA's account of a step, as text."""
  moved = ', '.join(f'{k} {_gib(v)}' for k, v in step.collectives.items() if v)
  return (
    f'XLA: {_gib(step.peak)} GiB at most on a device, {_gib(step.arguments)} '
    f'of them arguments, and {_gib(step.on_host)} on its host; collectives '
    f'per step, GiB: {moved or "none"} (a loop whose length is in the data '
    'counts once)'
  )


def _numerics(job: Job) -> str:
  is_here = (
    isinstance(job.mesh, jax.sharding.Mesh)
    and job.mesh.devices.flat[0] in jax.devices()
  )
  return numerics.describe(
    job.model.kernel, job.head_chunk, job.config, is_here
  )


def _gib(size: int) -> str:
  return f'{size / 2**30:.3g}'
