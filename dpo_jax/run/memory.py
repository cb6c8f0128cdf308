"""job -> the bytes that a training step holds on each device.

Comes in: a Job, on a real mesh or an abstract one. Goes out: Memory, from
shapes alone. Makes no array and compiles nothing.

Memory is the sum of the arrays alive in the middle of the backward pass:

- parameters, the optimizer's moments and the reference's weights, as sharded;
  of a reference in the host's memory, what no layer holds: it stays while a
  step computes;
- gradients, as large as the trained parameters (twice that with microbatches:
  the sum and the next addend);
- activations: the residuals of `jax.vjp` of the layers, for a device's rows
  under the remat policy, and those of one layer while it is recomputed;
- one layer, gathered from all `fsdp` shards, and a device's words of the head,
  with their gradients;
- a chunk of logits three times (logits, probabilities, gradient), and kept
  logits, if any: of every position, because data says how many predict;
- the batch.

Fusion and scheduling by the compiler are not modelled: tests/run/test_memory.py
compares the sum with `compiled.memory_analysis()`.
"""

import dataclasses
import functools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import errors, sharding, types
from dpo_jax.models import decoder, head_parts, output_head
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.models.kernels import registry
from dpo_jax.run import host_memory, numerics
from dpo_jax.storage import readable

_MANY_SLOTS = 2**18  # positions of a batch on one device


class Memory(NamedTuple):
  """Bytes on one device."""

  parameters: int
  optimizer: int
  reference: int
  gradients: int
  activations: int
  gathered: int  # one layer and the head's words, with their gradients
  logits: int
  batch: int


def needed(job, chunk: int | None = None) -> Memory:
  """Returns the bytes that a training step holds on each device.

  Args:
    job: on a real mesh or an abstract one.
    chunk: positions of a chunk of the head, 0 if logits are kept; None = as in
      the job.
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
    reference=_reference(job),
    gradients=trained * (2 if config.train.microbatches > 1 else 1),
    activations=_activations(job, local, dtype, rows, length),
    gathered=_gathered(local, dtype, parts['fsdp']),
    logits=_logits(
      job.head_chunk if chunk is None else chunk,
      rows * length,
      parts['fsdp'],
      local.vocab_size,
      # Losses that compare distributions keep those of both models.
      dtype.itemsize * (1 + ('distributions' in job.objective.needs)),
    ),
    # The six int32 arrays of types.Rows.
    batch=6 * 4 * rows * length * config.train.microbatches,
  )


def check(job) -> str:
  """Refuses a state that no device of this machine has room for.

  Returns:
    A line if a step may need more than a device has; '' if it fits.

  Raises:
    InputError: parameters, gradients, moments and reference alone are more than
      a device has, or a batch is far beyond it. A CPU's memory counts four
      times: it may swap.
  """
  if not isinstance(job.mesh, jax.sharding.Mesh):
    return ''  # planned for other devices
  state = job.abstract
  size = on_device((state.params, state.params, state.opt_state))
  size += on_device(job.base.abstract) if job.base else 0
  size += _reference(job)
  device = _first_device(job)
  room = _room(device)
  if size > room > 0:
    raise errors.refuse(
      'config.model',
      f'parameters, gradients and moments need {readable.size(size)} on each '
      f'device, which has at most {readable.size(room)}',
      'a smaller model or adapter.rank, or a larger mesh.fsdp on more devices',
    )
  plan = job.train_plan
  slots = (
    max(plan.row_counts) * plan.row_length // sharding.row_multiple(job.mesh)
  )
  # Tracing a step takes a moment: for a CPU only where its rows are
  # suspiciously long.
  is_cpu = device.platform == 'cpu'
  counts = slots > _MANY_SLOTS if is_cpu else room > 0
  need = sum(needed(job)) if counts else 0
  if need > 4 * room > 0:
    raise errors.refuse(
      'config.data.row_length',
      f'a batch of {max(plan.row_counts)} rows of {plan.row_length} tokens '
      f'needs {readable.size(need)} on each device, which has at most '
      f'{readable.size(room)}',
      'a smaller data.max_length, data.row_length or train.batch_size',
    )
  if is_cpu or need <= room:
    return ''
  share = f', or ${host_memory.GPU_SHARE}=.95' * (device.platform == 'gpu')
  return (
    f'memory: a step needs about {readable.size(need)} on each device, where '
    f'jax may use {readable.size(room)}: it may not fit; fix: more '
    f'train.microbatches or a larger mesh.fsdp{share}'
  )


def _first_device(job) -> jax.Device:
  """The first of this process."""
  return job.mesh.local_devices[0]


def _room(device: jax.Device) -> int:
  """Bytes that a device can hold at most; 0 = unknown."""
  if device.platform == 'cpu':
    return 4 * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return (device.memory_stats() or {}).get('bytes_limit', 0)


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


def has_own_reference(job) -> bool:
  """Whether the reference has separate weights, beside an adapter's base."""
  shared = not job.config.reference.init_from and job.move_reference is None
  return has_reference(job) and (job.inputs.adapter is None or not shared)


def on_host(job) -> int:
  """Returns the bytes per device of the reference in the host's memory."""
  is_away = has_own_reference(job) and job.config.reference.offload
  return on_device(job.reference.abstract) if is_away else 0


def _reference(job) -> int:
  """Bytes of the reference's separate weights on a device, in a step."""
  if not has_own_reference(job):
    return 0
  held = job.reference.abstract
  if job.config.reference.offload:
    held = {name: leaf for name, leaf in held.items() if name != 'layers'}
  return on_device(held)


def _bits(dtype) -> int:
  """Of an element; devices pack two of uint4 in a byte."""
  return 4 if dtype == jnp.uint4 else 8 * dtype.itemsize


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


def _logits(
  chunk: int, positions: int, parts: int, vocab: int, kept_bytes: int
) -> int:
  """Bytes of three float32 arrays [chunk, V], and of logits that are kept.

  A device has V / parts words and its share of the chunk's positions from each
  of the parts, which is the same product.
  """
  size = head_parts.chunk_of_part(chunk or output_head.KEPT_CHUNK, parts)
  size = min(size, positions)
  words = -(-vocab // parts)
  kept = 0 if chunk else -(-positions // size) * size * words * kept_bytes
  return 3 * 4 * words * size * parts + kept * parts


def _activations(job, local, dtype, rows, length) -> int:
  """Bytes of residuals that the layers store for the backward pass."""
  block, remat = job.config.model.attention_block, numerics.remat(job.config)
  same = dtype, block, registry.planned(job.model.kernel), (rows, length)
  stored = _residuals(local, remat, *same)
  if remat == 'none':
    return stored
  # Under remat, one layer at a time has its residuals in full.
  one = dataclasses.replace(
    local,
    num_layers=1,
    layer_windows=local.layer_windows[:1],
    layer_ropes=local.layer_ropes[:1],
  )
  return stored + _residuals(one, 'none', *same)


# A command asks several times for the same ones, and tracing takes seconds.
@functools.lru_cache(64)
def _residuals(
  config: DecoderConfig, remat, dtype, block, kernel, shape: tuple[int, int]
) -> int:
  """Bytes of the residuals of jax.vjp of the hidden states, less parameters."""
  model = decoder.make_model(
    config,
    compute_dtype=dtype,
    remat=remat,
    attention_block=block,
    kernel=kernel,
  )
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


def _gathered(local: DecoderConfig, dtype, parts: int) -> int:
  """Bytes of one layer and of a part of the head while they compute.

  Weights are cast before the shards of `fsdp` are gathered. The gradients of a
  gathered layer are summed over the shards kernel by kernel, in the compute
  dtype, so that only those of float32 have a copy of their own. All experts of
  a layer are counted.
  """
  sizes = local.sizes | {'N': 1}
  dims = param_dims(local)
  layer = sum(
    math.prod(sizes[d] for d in letters)
    for name, letters in dims.items()
    if name.startswith('layers/')
  )
  head = -(-local.vocab_size // parts) * local.width
  if dtype == jnp.float32:
    return (layer + head) * (4 * (parts > 1) + 4)
  # The head's gradient is a float32 sum over chunks.
  of_layer = dtype.itemsize + 4 * (parts == 1)
  return layer * of_layer + head * (dtype.itemsize + 4)
