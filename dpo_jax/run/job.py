"""config and inputs -> everything on the devices that a loop needs.

Comes in: a validated config and what inputs.py read. Goes out: a Job: model,
mesh, jitted steps, reference, and functions that give the batch of a step.
Every `jax.jit` of training is here, with its shardings and donation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import config as config_lib
from dpo_jax import errors, losses, optim, scoring, sharding, train_step, types
from dpo_jax.data.batches import pipeline
from dpo_jax.models import adapters, decoder, quantized
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.run.inputs import Inputs
from dpo_jax.sharding import Placed
from dpo_jax.train_step import init_state
from dpo_jax.types import Params, TrainState


class Job(NamedTuple):
  """A run, ready to go."""

  model: Any  # decoder.LanguageModel
  weights: Placed  # of the model
  adapter: AdapterSpec | None  # what is trained; None = all weights
  base: Placed | None  # of the weights under an adapter, as they are stored
  mesh: jax.sharding.Mesh
  objective: losses.Objective
  hyper: dict[str, jax.Array]  # float32 scalars, traced
  optimizer: Any  # optax transformation
  shardings: TrainState  # NamedSharding a leaf
  abstract: TrainState  # ShapeDtypeStruct a leaf, with its sharding
  score: Callable  # jitted (params, rows, C) -> CompletionScores, for caches
  train_step: Callable  # jitted, donates the state
  eval_step: Callable  # jitted
  move_reference: Callable | None  # jitted, donates the reference
  reference_every: float  # updates between two moves of it; 0 = it stays
  train_plan: pipeline.Plan
  eval_plan: pipeline.Plan
  num_steps: int


def build(config, inputs: Inputs, mesh=None) -> Job:
  """Places the model on the mesh and compiles nothing yet.

  Args:
    config: validated ConfigDict.
    inputs: what inputs.py read.
    mesh: an AbstractMesh gives a Job for planning only; None = the config's,
      of this machine's devices.
  """
  planned = mesh is not None
  mesh = mesh or sharding.make_mesh(**config.mesh)
  model = decoder.make_model(
    inputs.model,
    compute_dtype=compute_dtype(config),
    remat=config.model.remat,
    attention_block=config.model.attention_block,
    mesh=mesh if mesh.size > 1 else None,
  )
  objective, hyper = make_objective(config)
  hyper['learning_rate'] = jnp.float32(config.optim.learning_rate)
  if inputs.model.num_experts:
    given = config.model.router_aux_coef
    trained = inputs.model.router_aux_coef
    hyper['router_aux_coef'] = jnp.float32(trained if given is None else given)
  train_plan, eval_plan = make_plans(config, inputs, mesh, objective)
  num_steps = count_steps(config, inputs)
  optimizer = make_optimizer(config)
  score = scoring.make_score(
    model, chunk=config.precision.head_chunk, mesh=mesh
  )
  weights, shardings, abstract = _layout(
    config, mesh, model, optimizer, objective, inputs.adapter
  )
  whole = sharding.replicated(mesh)
  step = train_step.make_train_step(
    _make_loss_score(config, objective, model, mesh),
    objective,
    optimizer,
    make_schedule(config, num_steps),
  )
  eval_step = train_step.make_eval_step(
    _make_loss_score(config, objective, model, mesh, entropy=True), objective
  )
  return Job(
    model=model,
    weights=weights,
    adapter=inputs.adapter,
    base=_base(config, mesh, model, weights) if inputs.adapter else None,
    mesh=mesh,
    objective=objective,
    hyper=hyper if planned else jax.device_put(hyper, whole),
    optimizer=optimizer,
    shardings=shardings,
    abstract=abstract,
    score=jax.jit(score, static_argnums=2, out_shardings=whole),
    train_step=jax.jit(
      step,
      donate_argnums=0,
      in_shardings=(shardings, None, None, whole),
      out_shardings=(shardings, whole),
    ),
    eval_step=jax.jit(eval_step, out_shardings=whole),
    move_reference=_make_move(objective, weights, shardings, inputs.adapter),
    reference_every=float(hyper.get('tr_tau', 0)),
    train_plan=train_plan,
    eval_plan=eval_plan,
    num_steps=num_steps,
  )


def make_objective(config) -> tuple[losses.Objective, dict[str, jax.Array]]:
  """The losses and options that the config chooses, and their numbers."""
  terms = config_lib.loss_terms(config)
  static = config_lib.loss_static(config)
  options = config_lib.loss_options(config)
  hyper = losses.default_hyper(
    terms, options, **config_lib.loss_hyper(config), **static
  )
  return losses.make_objective(tuple(terms), static, options), hyper


def _make_loss_score(config, objective, model, mesh, entropy=False):
  """The score function that the losses need, and nothing they don't."""
  make = scoring.make_score
  if 'distributions' in objective.needs:
    make = scoring.make_pair_score
  return make(
    model,
    chunk=config.precision.head_chunk,
    mesh=mesh,
    entropy=entropy,
    sum_sq_probs='sum_sq_probs' in objective.needs,
  )


def _make_move(objective, weights: Placed, shardings: TrainState, adapter):
  """Jits `move(reference, params, step, hyper)`; None if it stays (no tr_dpo).

  With an adapter the reference has whole weights of its own, which move to
  the merged ones: a mean of adapters is not the adapter of the mean.

  The loop calls it only where a move is due, which the host knows: so no step
  waits for the devices, and most steps do not touch the reference's memory.
  """
  if 'tr_dpo' not in objective.options:
    return None
  if adapter is None:
    return jax.jit(
      objective.move_reference,
      donate_argnums=0,
      in_shardings=(shardings.params, shardings.params, shardings.step, None),
      out_shardings=shardings.params,
    )

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=weights.shardings)
  def moved(reference, policy, step, hyper):
    whole = adapters.merge(policy)
    return objective.move_reference(reference, whole, step, hyper)

  def move(frozen, params, step, hyper):
    policy = types.Adapted(frozen.base, params, frozen.scale)
    return frozen._replace(
      reference=moved(frozen.reference, policy, step, hyper)
    )

  return move


def _layout(
  config, mesh, model, optimizer, objective, adapter
) -> tuple[Placed, TrainState, TrainState]:
  """Where the model lies; the state's shardings and abstract arrays."""
  params = jax.eval_shape(model.init, jax.random.key(0))
  axes = model.logical_axes
  whole = sharding.placed(sharding.param_shardings(mesh, axes, params), params)
  if adapter is not None:
    init = functools.partial(adapters.init, model.config, adapter)
    params = jax.eval_shape(init, jax.random.key(0))
    axes = adapters.logical_axes(adapter)
  state = jax.eval_shape(
    lambda p: init_state(p, optimizer, config.seed, objective.init_state()),
    params,
  )
  placed = sharding.placed(
    sharding.state_shardings(
      mesh, optimizer, sharding.param_shardings(mesh, axes, params), state
    ),
    state,
  )
  return whole, *placed


def _base(config, mesh, model, weights: Placed) -> Placed:
  """Where frozen weights lie, quantised or not."""
  quantize = functools.partial(quantized.quantize, kind=config.adapter.base)
  stored = jax.eval_shape(quantize, weights.abstract)
  axes = model.logical_axes
  return sharding.placed(sharding.param_shardings(mesh, axes, stored), stored)


def initial_state(config, job: Job, params: Params) -> TrainState:
  """The state before the first update, on the mesh; takes `params` over."""
  make = jax.jit(
    lambda p: init_state(
      p, job.optimizer, config.seed, job.objective.init_state()
    ),
    out_shardings=job.shardings,
    donate_argnums=0,
  )
  return make(params)


def batch_source(
  job: Job, plan: pipeline.Plan, store, cache=None
) -> Callable[[int], types.Batch]:
  """Makes `batch(t)`: the batch of a step, on the devices.

  Args:
    job: gives the mesh.
    plan: of the batches.
    store: of the tokens.
    cache: precomputed reference scores of the store, or None.
  """

  def batch(t):
    host = plan.batch(t, store)
    if cache is not None:
      host = host._replace(reference=cache.scores(plan.completion_index(t)))
    return jax.device_put(host, sharding.batch_shardings(job.mesh, host))

  return batch


def check_mesh(config) -> None:
  """Refuses a mesh that does not fit the devices, before anything is read.

  The default, all devices for data, always fits: no device is asked for.
  """
  sizes = dict(config.mesh)
  if sizes != {'data': -1, 'fsdp': 1, 'tensor': 1}:
    sharding.mesh_sizes(**sizes, num_devices=len(jax.devices()))


def make_plans(config, inputs: Inputs, mesh, objective: losses.Objective):
  """The plans of training and of evaluation."""
  data = config.data
  is_mismatched = 'mismatched' in objective.needs
  common = {
    'row_length': data.row_length or data.max_length,
    'layout': data.layout,
    'row_multiple': sharding.row_multiple(mesh),
    'max_shapes': data.max_shapes,
    'mismatched_length': data.max_length if is_mismatched else 0,
  }
  train = pipeline.make_plan(
    inputs.train.store.table,
    seed=config.seed,
    batch_size=config.train.batch_size,
    microbatches=config.train.microbatches,
    indices=inputs.train.indices,
    **common,
  )
  evaluation = pipeline.make_plan(
    inputs.evaluation.store.table,
    seed=0,
    batch_size=config.eval.batch_size,
    shuffle=False,
    indices=inputs.evaluation.indices,
    **(common | {'max_shapes': min(2, data.max_shapes)}),
  )
  return train, evaluation


def count_steps(config, inputs: Inputs) -> int:
  """Updates of the run; with num_epochs, as many as fit whole."""
  if config.train.num_steps:
    return config.train.num_steps
  prompts = config.train.num_epochs * len(inputs.train.indices)
  steps = int(prompts // config.train.batch_size)
  if not steps:
    raise errors.refuse(
      'config.train.num_epochs',
      f'{config.train.num_epochs:g} of {len(inputs.train.indices)} prompts is '
      f'less than one update of {config.train.batch_size}',
      'a smaller train.batch_size',
    )
  return steps


def make_optimizer(config):
  """The optimizer of a config; what it leaves unset is optim's default."""
  return optim.make_optimizer(
    config.optim.name,
    weight_decay=config.optim.weight_decay,
    clip_norm=config.optim.clip_norm,
    **config_lib.optimizer_options(config),
  )


def make_schedule(config, num_steps: int):
  """The learning rate's multiplier by step."""
  warmup = config.optim.warmup_steps
  if config.optim.warmup_fraction:
    warmup = round(config.optim.warmup_fraction * num_steps)
  return optim.make_schedule(
    config.optim.schedule,
    num_steps=num_steps,
    warmup_steps=warmup,
    **config_lib.schedule_options(config),
  )


def compute_dtype(config) -> np.dtype:
  """The dtype of matmuls: 'auto' is float32 on CPU, bfloat16 elsewhere."""
  name = config.precision.compute
  if name == 'auto':
    name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return jnp.dtype(name)


def resolve(config) -> dict[str, Any]:
  """The config as plain values, its losses' defaults filled in."""
  resolved = config.to_dict()
  terms = config_lib.loss_terms(config)
  chosen = [losses.get(name) for name in terms]
  chosen += [losses.get_option(n) for n in config_lib.loss_options(config)]
  for it in chosen:
    defaults = it.hyper | {k: v[0] for k, v in it.static.items()}
    for key, value in defaults.items():
      if resolved['loss'][key] is None:
        resolved['loss'][key] = value
  resolved['loss']['terms'] = terms
  return resolved


def describe(config, inputs: Inputs, job: Job) -> str:
  """A few lines on what is about to run."""
  sizes = [leaf.size for leaf in jax.tree.leaves(job.abstract.params)]
  whole = sum(leaf.size for leaf in jax.tree.leaves(job.weights.abstract))
  frozen = f' of an adapter on {whole:,}' if job.adapter else ''
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
    f'{config.stage}: {" + ".join(job.objective.terms)}, {job.num_steps} '
    f'updates of {config.train.batch_size} prompts, '
    f'{sum(sizes):,} parameters{frozen} on {job.mesh.size} x {kind}\n'
    f'rows of {job.train_plan.row_length}: packing efficiency '
    f'{plan["packing_efficiency"]:.3f}, row counts '
    f'{", ".join(map(str, plan["row_shapes"]))} (one compile each)'
    f'{mismatched}'
  )


def per_example(part, examples) -> dict[str, np.ndarray]:
  """What is saved of an evaluation: scores, each with its record's uid.

  Args:
    part: the records that were evaluated.
    examples: of losses.examples, the present ones of the whole part.

  Returns:
    Arrays a comparison; a labelled completion, where nothing is compared.
  """
  table, indices = part.store.table, part.indices
  scores = examples.comparisons
  offsets, there = table.comparison_offsets, table.weight > 0
  if examples.labelled is not None and not len(scores.weight):
    scores = examples.labelled
    offsets, there = table.offsets, table.labels >= 0
  counts = np.diff(np.concatenate([[0], np.cumsum(there)])[offsets])
  fields = {k: v for k, v in scores._asdict().items() if v is not None}
  return {'uid': np.repeat(table.uids[indices], counts[indices])} | fields
