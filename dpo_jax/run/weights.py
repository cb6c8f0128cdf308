"""config and inputs -> weights on the mesh: trained, frozen, merged.

Comes in: a Job and what inputs.py read. Goes out: the parameters that are
trained (all weights, or an adapter), the frozen side that an adapter's step
reads, and whole models for scoring and export. Where an adapter is trained,
the base is loaded once: the reference is the same arrays.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import sharding, types
from dpo_jax.models import adapters, quantized
from dpo_jax.run.job import Job
from dpo_jax.storage import initial_weights, peft_checkpoint
from dpo_jax.types import Params


def initial(config, data, job: Job) -> Params:
  """What is trained, before the first update: all weights, or the adapter."""
  if job.adapter is None:
    return load(config, data, job, data.weights)
  if config.adapter.init_from:
    return peft_checkpoint.load(
      config.adapter.init_from, data.model, job.adapter, job.shardings.params
    )
  init = jax.jit(
    functools.partial(adapters.init, data.model, job.adapter),
    out_shardings=job.shardings.params,
  )
  return init(jax.random.key(config.seed))


def load(config, data, job: Job, source: str) -> Params:
  """Whole weights, float32, from a folder or a run; '' = random ones."""
  placed = job.weights
  if source:
    return initial_weights.load(
      source, data.model, placed.shardings, placed.abstract
    )
  init = jax.jit(job.model.init, out_shardings=placed.shardings)
  return init(jax.random.key(config.seed))


def frozen(
  config, data, job: Job, *, with_reference: bool, moved: Params | None = None
) -> types.Frozen:
  """What a step reads beside the adapter that it trains.

  The reference is the policy's first weights: the base with the adapter off,
  or with adapter.init_from's on, unless the mode is 'adapter_off'; or weights
  of its own, of reference.init_from or `moved`.

  Args:
    config: gives where weights come from and how the base is stored.
    data: the inputs.
    job: with an adapter.
    with_reference: whether any loss reads one.
    moved: the reference's whole weights, where the run moves it (tr_dpo).
  """
  whole = sharding.replicated(job.mesh)
  out = types.Frozen(
    base=_base(config, data, job),
    scale=jax.device_put(jnp.float32(job.adapter.scale), whole),
  )
  if not with_reference:
    return out
  if moved is not None:
    return out._replace(reference=moved)
  if config.reference.init_from:
    other = load(config, data, job, config.reference.init_from)
    return out._replace(reference=other)
  if config.adapter.init_from and config.reference.mode != 'adapter_off':
    out = out._replace(adapter=initial(config, data, job))
  if job.move_reference is None:
    return out
  first = types.Adapted(out.base, out.adapter, out.scale)
  return out._replace(reference=_merge(job, first), adapter=None)


def policy(config, data, job: Job, params: Params) -> Any:
  """What job.model reads as the policy, of what is trained."""
  if job.adapter is None:
    return params
  base, scale, *_ = frozen(config, data, job, with_reference=False)
  return types.Adapted(base, params, scale)


def merged(config, data, job: Job, params: Params) -> Params:
  """The policy's whole weights, float32."""
  if job.adapter is None:
    return params
  return _merge(job, policy(config, data, job, params))


def _base(config, data, job) -> Params:
  """The frozen weights, as config.adapter.base says they are stored."""
  params = load(config, data, job, data.weights)
  kind = config.adapter.base
  if kind == 'float32':
    return params
  quantize = jax.jit(
    functools.partial(quantized.quantize, kind=kind),
    out_shardings=job.base.shardings,
  )
  return quantize(params)


def _merge(job, adapted: types.Adapted) -> Params:
  """Merged weights; no array of them is one of the base's."""

  @functools.partial(jax.jit, out_shardings=job.weights.shardings)
  def merge(adapted):
    return jax.tree.map(jnp.copy, adapters.merge(adapted))

  return merge(adapted)
