"""config and inputs -> jitted steps: everything a run needs on the devices.

Comes in: a validated config and the Inputs. Goes out: a Job, which carries both
and adds model, mesh, plans and jitted steps. Every `jax.jit` of a training step
is here, with its shardings and donation. Loads no weights.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import (
  errors,
  losses,
  scoring,
  sharding,
  train_step,
  types,
)
from dpo_jax.data.batches import pipeline
from dpo_jax.models import adapters, decoder, quantized
from dpo_jax.models.kernels import registry
from dpo_jax.run import batch_plans, loss_config, memory, numerics, updates
from dpo_jax.run.datasets import Part
from dpo_jax.run.inputs import Inputs
from dpo_jax.run.shared import Shared
from dpo_jax.sharding import Placed
from dpo_jax.storage import handover
from dpo_jax.types import Frozen, Params, TrainState


class Job(NamedTuple):
  """A run before its first step: functions and shardings, no weights."""

  config: ConfigDict  # validated
  inputs: Inputs
  model: Any  # decoder.LanguageModel
  weights: Placed  # of the whole model
  reference: Placed  # of the reference's weights, if it has its own
  base: Placed | None  # of the frozen weights under an adapter, as stored
  mesh: jax.sharding.Mesh
  objective: losses.Objective
  scored: losses.Objective  # what the scores of an evaluation serve
  hyper: dict[str, jax.Array]  # float32 scalars; traced, so one compile
  optimizer: Any  # optax transformation
  shardings: TrainState  # NamedSharding per leaf
  abstract: TrainState  # ShapeDtypeStruct per leaf, with its sharding
  init: Callable  # jitted (params, seed) -> TrainState, donates params
  score: Callable  # jitted (params, rows, C) -> CompletionScores, for caches
  step: Callable  # one update, before jit
  train_step: Callable  # jitted, donates the state
  eval_step: Callable  # jitted (params, reference, batch) -> scores
  move_reference: Callable | None  # donates the reference's weights
  reference_every: float  # updates between two moves of it; 0 = never
  train_plan: pipeline.Plan | None  # None = a part that is not read
  eval_plan: pipeline.Plan | None
  num_steps: int
  head_chunk: int  # see output_head.make_project
  shared: Shared  # what runs of one process have in common
  # Takes (config key, weights) as they are loaded, to compare with the run's.
  take_weights: Callable[[str, Params], str] = lambda key, params: ''


def build(
  config: ConfigDict,
  inputs: Inputs,
  mesh=None,
  shared: Shared | None = None,
  backend: str = '',
) -> Job:
  """Builds the functions and shardings of a run; compiles nothing yet.

  Args:
    config: validated.
    inputs: from inputs.read.
    mesh: an AbstractMesh gives a Job for planning only; None = the mesh of the
      config, on this machine's devices.
    shared: holds the programs of earlier runs of the same graph; None = none.
    backend: of devices to plan for, of which `mesh` has no more than
      descriptions; '' = those of the mesh, or of no known kind.
  """
  shared = shared or Shared()
  mesh = mesh or shared.mesh or sharding.make_mesh(**config.mesh)
  is_planned = bool(backend) or isinstance(mesh, jax.sharding.AbstractMesh)
  objective, hyper = _make_objective(config, inputs)
  num_steps = _count_steps(config, inputs.train)
  scored = loss_config.with_names(objective, config_lib.scored_for(config))
  train_plan, eval_plan = shared.get(
    config,
    'plans',
    # A sweep's points of one seed see the same batches.
    (config.seed, is_planned, inputs.train is None, inputs.evaluation is None),
    lambda: batch_plans.make(config, inputs, mesh, objective, scored),
  )
  kernel = numerics.choose_kernel(
    config, inputs.model, (train_plan, eval_plan), is_planned, backend
  )
  # A constant of the evaluation step.
  epsilon = loss_config.epsilon(scored, hyper)
  skips = config.train.skip_bad_steps
  replicated = sharding.replicated(mesh)

  def assembled(chunk: int) -> Job:
    programs = shared.get(
      config,
      'programs',
      (num_steps, is_planned, epsilon, kernel, chunk, skips),
      lambda: _make_programs(
        config,
        inputs,
        mesh,
        objective,
        scored,
        epsilon,
        num_steps,
        kernel,
        chunk,
      ),
    )
    return Job(
      config=config,
      inputs=inputs,
      shared=shared,
      # An abstract mesh has no device to put numbers on.
      hyper=hyper if is_planned else handover.put(hyper, replicated),
      reference_every=float(hyper.get('tr_tau', 0)),
      train_plan=train_plan,
      eval_plan=eval_plan,
      num_steps=num_steps,
      head_chunk=chunk,
      **programs,
    )

  job = assembled(numerics.head_chunk(config))
  room = numerics.room_for_logits(config, is_planned)
  if room and train_plan and sum(memory.needed(job, chunk=0)) <= room:
    job = assembled(0)
  return job


def _make_programs(
  config: ConfigDict,
  inputs: Inputs,
  mesh,
  objective: losses.Objective,
  scored: losses.Objective,
  epsilon: float | None,
  num_steps: int,
  kernel: registry.Choice,
  chunk: int,
) -> dict[str, Any]:
  """The fields of a Job that do not depend on traced numbers."""
  model = decoder.make_model(
    inputs.model,
    compute_dtype=numerics.compute_dtype(config),
    remat=numerics.remat(config),
    attention_block=config.model.attention_block,
    kernel=kernel,
    unroll=numerics.unroll(config),
    mesh=mesh if mesh.size > 1 else None,
  )
  optimizer = updates.make_optimizer(config)
  weights = _place_weights(mesh, model)
  state = _place_state(config, inputs, mesh, model, optimizer, objective)
  replicated = sharding.replicated(mesh)
  # Training needs no entropy; evaluation reports it.
  make_score = functools.partial(_make_score, model, chunk=chunk, mesh=mesh)
  step = train_step.make_train_step(
    make_score(objective),
    objective,
    optimizer,
    updates.make_schedule(config, num_steps),
    config.train.skip_bad_steps,
  )
  eval_step = train_step.make_eval_step(
    make_score(scored, wanted=('entropy',)),
    scored,
    epsilon,
  )
  score = scoring.make_score(model, chunk=chunk, mesh=mesh)
  return dict(
    model=model,
    weights=weights,
    reference=_place_reference(config, mesh, weights),
    base=_place_base(config, mesh, model, weights) if inputs.adapter else None,
    mesh=mesh,
    objective=objective,
    scored=scored,
    optimizer=optimizer,
    shardings=state.shardings,
    abstract=state.abstract,
    # The loss state is a constant of the program, the seed is not, and only the
    # parameters are donated.
    init=jax.jit(
      lambda params, seed: train_step.init_state(
        params, optimizer, seed, objective.init_state()
      ),
      out_shardings=state.shardings,
      donate_argnums=0,
    ),
    score=jax.jit(score, static_argnums=2, out_shardings=replicated),
    step=step,
    # The state is donated: the new one takes over its memory, and the caller
    # must not read the old one. None leaves the reference and the batch as they
    # are placed. Metrics are replicated, so any process can read them.
    train_step=jax.jit(
      step,
      donate_argnums=0,
      in_shardings=(state.shardings, None, None, replicated),
      out_shardings=(state.shardings, replicated),
    ),
    eval_step=jax.jit(eval_step, out_shardings=replicated),
    move_reference=_make_move(objective, weights),
  )


def initial_state(job: Job, params: Params) -> TrainState:
  """Returns the initial state, on the mesh; donates `params`."""
  return job.init(params, np.uint32(job.config.seed))


def batch_source(
  job: Job, plan: pipeline.Plan, part: Part
) -> Callable[[int], types.Batch]:
  """Makes `batch(t)`: the batch of step t, on the devices.

  It is a pure function of t: a continued run needs no iterator state.

  Args:
    job: its mesh is read.
    plan: of the batches.
    part: the tokens, and the reference's scores if they are precomputed.
  """

  def batch(t):
    num_rows = plan.step(t).num_rows
    own = handover.own_rows(job.mesh, num_rows)
    host = job.shared.batch(
      (plan, part.store, part.scores),
      t,
      lambda: host_batch(plan, part, t, own),
    )
    return handover.put_batch(job.mesh, host, num_rows)

  return batch


def host_batch(plan: pipeline.Plan, part: Part, t: int, rows=None):
  """The types.Batch of step t as numpy arrays; `rows` as in `Plan.batch`."""
  host = plan.batch(t, part.store, rows)
  if part.scores is None:
    return host
  scores = part.scores.scores(plan.completion_index(t))
  return host._replace(reference=scores)


def check_mesh(config: ConfigDict) -> None:
  """Refuses a mesh that does not fit the devices, before data is read.

  The default, all devices on one axis, always fits: no device is asked for.
  """
  sizes = dict(config.mesh)
  if sorted(sizes.values()) != [-1] + [1] * (len(sizes) - 1):
    sharding.mesh_sizes(len(jax.devices()), **sizes)


def _make_objective(
  config: ConfigDict, inputs: Inputs
) -> tuple[losses.Objective, dict[str, jax.Array]]:
  """The objective of the config, and all traced hyper-parameters."""
  objective, hyper = loss_config.make(config)
  hyper['learning_rate'] = jnp.float32(config.optim.learning_rate)
  # The key's presence also tells the train step that experts are balanced.
  if inputs.model.num_experts:
    given = config.model.router_aux_coef
    own = inputs.model.router_aux_coef
    hyper['router_aux_coef'] = jnp.float32(own if given is None else given)
  return objective, hyper


def _make_score(model, objective, chunk, mesh, wanted=()):
  """The cheapest score function that gives what the losses need."""
  make = scoring.make_score
  if 'distributions' in objective.needs:
    make = scoring.make_pair_score
  wanted = {*wanted, *objective.needs} & {*scoring.SUMS}
  return make(model, wanted, chunk=chunk, mesh=mesh)


def _make_move(objective, weights: Placed) -> Callable | None:
  """Jits `move(reference, params, step, hyper)`; None without tr_dpo.

  The reference's weights move towards the policy's. Under an adapter these are
  the merged weights: a mean of adapters is not the adapter of the mean.

  The host counts updates, so the loop calls this only when a move is due: no
  step waits for the devices, and most steps leave the reference alone.
  """
  if 'tr_dpo' not in objective.options:
    return None

  @functools.partial(jax.jit, donate_argnums=0, out_shardings=weights.shardings)
  def moved(reference, policy, step, hyper):
    if isinstance(policy, types.Adapted):
      policy = adapters.merge(policy)
    return objective.move_reference(reference, policy, step, hyper)

  def move(reference: Frozen, params, step, hyper) -> Frozen:
    policy = reference.policy(params)
    return reference._replace(
      weights=moved(reference.weights, policy, step, hyper)
    )

  return move


def _place_weights(mesh, model) -> Placed:
  """The placement of the whole model, without an adapter."""
  # eval_shape runs no arithmetic: no weight exists yet.
  params = jax.eval_shape(model.init, jax.random.key(0))
  shardings = sharding.param_shardings(mesh, model.logical_axes, params)
  return sharding.placed(shardings, params)


def _place_reference(config, mesh, weights: Placed) -> Placed:
  """The placement of weights that only the reference has."""
  shardings, dtype = weights.shardings, jnp.dtype(config.precision.reference)
  if config.reference.offload:
    shardings = sharding.in_host_memory(mesh, shardings)
  held = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype), weights.abstract
  )
  return sharding.placed(shardings, held)


def _place_base(config, mesh, model, weights: Placed) -> Placed:
  """The placement of the frozen weights, quantised or not."""
  quantize = functools.partial(quantized.quantize, kind=config.adapter.base)
  stored = jax.eval_shape(quantize, weights.abstract)
  shardings = sharding.param_shardings(mesh, model.logical_axes, stored)
  return sharding.placed(shardings, stored)


def _place_state(config, inputs, mesh, model, optimizer, objective) -> Placed:
  """The placement of the TrainState: of all weights, or of the adapter."""
  init, axes = model.init, model.logical_axes
  if inputs.adapter is not None:
    init = functools.partial(adapters.init, model.config, inputs.adapter)
    axes = adapters.logical_axes(inputs.adapter)
  params = jax.eval_shape(init, jax.random.key(0))
  state = jax.eval_shape(
    lambda p: train_step.init_state(p, optimizer, 0, objective.init_state()),
    params,
  )
  shardings = sharding.param_shardings(mesh, axes, params)
  return sharding.placed(
    sharding.state_shardings(mesh, optimizer, shardings, state), state
  )


def _count_steps(config, train: Part | None) -> int:
  """The number of updates; num_epochs is rounded down to full batches.

  A command that reads no training data makes none: any number will do.
  """
  if config.train.num_steps or train is None:
    return config.train.num_steps or config.optim.warmup_steps + 1
  num_records = len(train.indices)
  prompts = config.train.num_epochs * num_records
  steps = int(prompts // config.train.batch_size)
  if not 0 < steps < 2**31:
    what = 'less than one update' if not steps else 'more than 2**31 updates'
    raise errors.refuse(
      'config.train.num_epochs',
      f'{config.train.num_epochs:g} of {num_records} prompts is {what} '
      f'of {config.train.batch_size}',
      'a smaller train.batch_size' if not steps else 'a smaller number',
    )
  return steps
