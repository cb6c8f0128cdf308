"""job -> weights on the mesh: initial, frozen, merged.

Comes in: a Job. Goes out: the trained parameters (all weights, or an adapter),
the Frozen argument of every step, and merged weights for export. Under an
adapter the base is loaded once: policy and reference share its arrays. Knows no
file format.
"""

import functools

import jax
import jax.numpy as jnp

from dpo_jax import errors, sharding
from dpo_jax.models import adapters, decoder_config, quantized
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.run import preemption
from dpo_jax.run.job import Job
from dpo_jax.storage import handover, initial_weights, peft_checkpoint
from dpo_jax.types import Adapted, Frozen, Params

# Fields that change no number of given weights, or of which loading tells more.
_NO_MATHS = (
  *('family', 'init_scale', 'router_aux_coef'),
  *('vocab_size', 'max_positions', 'tied'),
)


def initial(job: Job) -> Params:
  """Returns the trained parameters before the first update.

  All weights, or those of the adapter; random ones follow config.seed.
  """
  config, spec = job.config, job.inputs.adapter
  if spec is None:
    return load(job, job.inputs.weights)
  if config.adapter.init_from:
    source, model = config.adapter.init_from, job.inputs.model
    adapter = peft_checkpoint.load(source, model, spec, job.shardings.params)
    initial_weights.check_finite(adapter, model, source)
    job.take_weights('adapter.init_from', adapter)
    return adapter
  # Jitted with out_shardings: a device makes its own shard only, never the
  # entire array.
  init = jax.jit(
    functools.partial(adapters.init, job.inputs.model, spec),
    out_shardings=job.shardings.params,
  )
  return init(jax.random.key(config.seed))


def seed_of_first(job: Job) -> int | None:
  """Returns the seed that the first parameters follow; None if none does."""
  is_random = not job.inputs.weights
  if job.inputs.adapter is not None:
    is_random |= not job.config.adapter.init_from
  return job.config.seed if is_random else None


def load(job: Job, source: str, key: str = 'model.init_from') -> Params:
  """Returns all weights, float32, from a folder or a run; '' = random.

  Args:
    job: the run.
    source: the folder or run.
    key: the config key that names it.
  """
  placed = job.weights
  if source:
    if key == 'reference.init_from':
      _check_reference(source, job.inputs.model)
    with preemption.at_once():
      params = initial_weights.load(
        source,
        job.inputs.model,
        placed.shardings,
        placed.abstract,
        add_rows=job.config.model.add_rows,
      )
  else:
    init = jax.jit(job.model.init, out_shardings=placed.shardings)
    params = init(jax.random.key(job.config.seed))
  job.take_weights(key, params)
  return params


def _check_reference(source: str, model: DecoderConfig) -> None:
  """Refuses a reference of another model: it is run as the policy's model."""
  lines = decoder_config.differences(
    initial_weights.read_config(source), model, _NO_MATHS
  )
  if lines:
    raise errors.refuse(
      'config.reference.init_from',
      f"{source!r} is not the policy's model: {'; '.join(lines)}",
      'use a reference of the same architecture',
    )


def frozen(
  job: Job, *, with_reference: bool, moved: Params | None = None
) -> Frozen:
  """Returns the weights that a step reads and does not train.

  Without an adapter: the reference's weights. Under an adapter: the base; the
  reference is then the policy's initial model. That is the base alone, or the
  base with the adapter of adapter.init_from unless the mode is 'adapter_off'. A
  reference from reference.init_from, or a `moved` one, has separate weights.
  Separate weights are held as precision.reference and reference.offload say.

  Args:
    job: the run.
    with_reference: whether the reference model is needed.
    moved: the reference's weights in the checkpoint of a run that moves it
      (tr_dpo); None = not moved yet.
  """
  config = job.config
  out = _base(job)
  if not with_reference:
    return out
  if moved is not None:
    return out._replace(weights=moved)
  if config.reference.init_from:
    source = config.reference.init_from
    given = load(job, source, 'reference.init_from')
    return out._replace(weights=_held(job, given))
  # Loaded a second time: the train step donates the policy's arrays, so the
  # reference cannot share them.
  if job.inputs.adapter is None:
    return out._replace(weights=_held(job, load(job, job.inputs.weights)))
  if config.adapter.init_from and config.reference.mode != 'adapter_off':
    out = out._replace(adapter=initial(job))
  if job.move_reference is None:
    return out
  # The reference will move away from the base: it needs separate weights.
  first = Adapted(out.base, out.adapter, out.scale)
  return out._replace(weights=_merge(job, first), adapter=None)


def policy(job: Job, params: Params) -> Params | Adapted:
  """Returns what job.model takes for the policy with these parameters."""
  return _base(job).policy(params)


def merged(job: Job, params: Params) -> Params:
  """Returns all weights of the policy, float32, any adapter merged."""
  if job.inputs.adapter is None:
    return params
  return _merge(job, policy(job, params))


def _held(job: Job, params: Params) -> Params:
  """The reference's weights in the dtype and the memory that hold them.

  Each array is freed once its copy is made: those of a whole model in float32
  and its copy never exist together.
  """
  config = job.config
  if config.precision.reference == 'float32' and not config.reference.offload:
    return params

  def hold(leaf, held):
    cast = jax.jit(lambda x: x.astype(held.dtype), out_shardings=held.sharding)
    copy = jax.block_until_ready(cast(leaf))
    leaf.delete()
    return copy

  return jax.tree.map(hold, params, job.reference.abstract)


def _base(job: Job) -> Frozen:
  """The frozen weights under an adapter, as config.adapter.base stores them."""
  if job.inputs.adapter is None:
    return Frozen()
  base = load(job, job.inputs.weights)
  kind = job.config.adapter.base
  if kind != 'float32':
    quantize = jax.jit(
      functools.partial(quantized.quantize, kind=kind),
      out_shardings=job.base.shardings,
    )
    base = quantize(base)
  scale = jnp.float32(job.inputs.adapter.scale)
  return Frozen(base, handover.put(scale, sharding.replicated(job.mesh)))


def _merge(job: Job, adapted: Adapted) -> Params:
  """The merged weights, in arrays that share no memory with the base.

  A weight without an adapter would otherwise be the base's own array, and the
  step that moves a reference donates its arrays.
  """

  @functools.partial(jax.jit, out_shardings=job.weights.shardings)
  def merge(adapted):
    return jax.tree.map(jnp.copy, adapters.merge(adapted))

  return merge(adapted)
