"""train_step: accumulation, meshes, the reference, one compile per grid."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dpo_jax import losses, optim, scoring, sharding, train_step, types
from dpo_jax import metrics as metrics_lib
from dpo_jax.train_step import init_state

LN2 = float(np.log(2))
SCHEDULE = optim.make_schedule('constant', num_steps=10)


def make(terms, *, mesh=None, static=None, name='adamw'):
  objective = losses.make_objective(tuple(terms), static)
  optimizer = optim.make_optimizer(name)
  score = scoring.make_score(toy.ToyModel(), chunk=7, mesh=mesh)
  step = train_step.make_train_step(score, objective, optimizer, SCHEDULE)
  return step, optimizer


def hyper_of(terms, **values):
  hyper = losses.default_hyper(terms, **values)
  return hyper | {'learning_rate': jnp.float32(0.1)}


def one_step(terms, microbatches=1, mesh=None, static=None, row_multiple=1):
  step, optimizer = make(terms, mesh=mesh, static=static)
  state = init_state(toy.params(), optimizer, seed=0)
  batch = toy.batch(microbatches=microbatches, row_multiple=row_multiple)
  return jax.jit(step)(state, toy.reference(5), batch, hyper_of(terms))


@pytest.mark.parametrize('microbatches', [1, 2, 8])
def test_loss_is_ln2_where_policy_equals_reference(microbatches):
  terms = {'sigmoid': 1.0}
  step, optimizer = make(terms)
  params = toy.params()
  batch = toy.batch(microbatches=microbatches)
  for smoothing in (0.0, 0.2):
    hyper = hyper_of(terms, label_smoothing=smoothing)
    state = init_state(params, optimizer, seed=0)
    _, metrics = jax.jit(step)(
      state, types.Frozen(weights=params), batch, hyper
    )
    metrics = metrics_lib.means(metrics)
    assert abs(float(metrics['loss']) - LN2) < 1e-6
    assert float(metrics['rewards/margins']) == 0


MIXES = {
  'ipo_mean': ({'ipo': 1.0}, None),
  'rpo': ({'sigmoid': 1.0, 'nll': 0.3}, None),
}


@pytest.mark.parametrize('mix', MIXES)
def test_accumulation_is_exact(mix):
  terms, static = MIXES[mix]
  state_1, metrics_1 = one_step(terms, 1, static=static)
  for microbatches in (2, 8):
    state, metrics = one_step(terms, microbatches, static=static)
    chex.assert_trees_all_close(metrics, metrics_1, rtol=2e-5, atol=1e-6)
    # Adam's first moment is (1 - b1) times the gradient.
    mu, mu_1 = state.opt_state[0].mu, state_1.opt_state[0].mu
    chex.assert_trees_all_close(mu, mu_1, rtol=1e-4, atol=1e-6)


class Routed(toy.ToyModel):
  """The toy model with a router over its tokens and no experts."""

  def hidden(self, params, rows):
    hidden_RLD, _ = super().hidden(params, rows)
    probs_RLE = jax.nn.softmax(params['pos'][rows.tokens])
    chosen = jax.nn.one_hot(jnp.argmax(probs_RLE, -1), probs_RLE.shape[-1])
    real = (rows.prompt_id > 0).astype(jnp.float32)
    router = types.RouterSums(
      jnp.einsum('RLE,RL->E', chosen, real)[None],
      jnp.einsum('RLE,RL->E', probs_RLE, real)[None],
      jnp.zeros(1),
      jnp.sum(real)[None],
    )
    return hidden_RLD, {'router': router}


def balance(params, rows):
  """E sum_e f_e P_e over the real positions of all microbatches."""
  real = rows.prompt_id.reshape(-1) > 0
  probs = jax.nn.softmax(params['pos'][rows.tokens.reshape(-1)[real]])
  chosen = np.bincount(np.argmax(probs, -1), minlength=toy.WIDTH)
  return toy.WIDTH * jnp.vdot(chosen / len(probs), probs.mean(axis=0))


@pytest.mark.parametrize('microbatches', [1, 4])
def test_the_experts_balance_is_the_whole_batchs(microbatches):
  optimizer = optim.make_optimizer('adamw')
  step = train_step.make_train_step(
    scoring.make_score(Routed(), chunk=7),
    losses.make_objective(('sigmoid',)),
    optimizer,
    SCHEDULE,
  )
  step, params = jax.jit(step), toy.params()
  batch = toy.batch(microbatches=microbatches)
  moments = {}
  for coefficient in (0.0, 0.5):
    hyper = hyper_of({'sigmoid': 1.0})
    hyper['router_aux_coef'] = jnp.float32(coefficient)
    state = init_state(params, optimizer, seed=0)
    reference = types.Frozen(weights=params)
    state, metrics = step(state, reference, batch, hyper)
    assert abs(float(metrics['loss']) - LN2) < 1e-6  # without the balance loss
    moments[coefficient] = state.opt_state[0].mu
  want, grads = jax.value_and_grad(balance)(params, batch.rows)
  assert float(metrics['router/aux_loss']) == pytest.approx(float(want))
  # Adam's first moment is (1 - b1) times the gradient, b1 = 0.9.
  for name, grad in grads.items():
    got = moments[0.5][name] - moments[0.0][name]
    np.testing.assert_allclose(got, 0.1 * 0.5 * grad, rtol=1e-4, atol=1e-7)


def test_whole_batch_losses_are_exact_under_accumulation(monkeypatch):
  # A loss of the whole batch: every pair against the mean gap.
  def centred(pairs, *, beta: float = 0.1):
    gap = pairs.log_ratio_gap
    return (beta * (gap - jnp.mean(gap)) + gap**2) * 1e-2

  monkeypatch.setattr(losses.registry, '_LOSSES', {})
  losses.register(
    label='', paper='', formula='', needs=('reference', 'whole_batch')
  )(centred)
  terms = {'centred': 1.0}
  state_1, metrics_1 = one_step(terms, 1)
  state_4, metrics_4 = one_step(terms, 4)
  chex.assert_trees_all_close(metrics_4, metrics_1, rtol=2e-5, atol=1e-6)
  chex.assert_trees_all_close(
    state_4.opt_state[0].mu, state_1.opt_state[0].mu, rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_a_step_does_not_depend_on_the_mesh(sizes):
  terms = {'sigmoid': 1.0}
  mesh = sharding.make_mesh(**dict(zip(types.MESH_AXES, sizes)))
  rows = sharding.row_multiple(mesh)
  alone, metrics_alone = one_step(terms, row_multiple=rows)
  step, optimizer = make(terms, mesh=mesh)
  params = toy.params()
  axes = {
    'embed': ('vocab', 'embed'),
    'pos': (None, 'embed'),
    'head': ('vocab', 'embed'),
    'bias': ('vocab',),
  }
  shardings = sharding.param_shardings(mesh, axes, params)
  state = init_state(params, optimizer, seed=0)
  state_sharding = sharding.state_shardings(mesh, optimizer, shardings, state)
  batch = toy.batch(row_multiple=rows)
  state, metrics = jax.jit(
    step,
    in_shardings=(
      state_sharding,
      types.Frozen(weights=shardings),
      sharding.batch_shardings(mesh, batch),
      sharding.replicated(mesh),
    ),
    out_shardings=(state_sharding, sharding.replicated(mesh)),
  )(state, toy.reference(5), batch, hyper_of(terms))
  chex.assert_trees_all_close(metrics, metrics_alone, rtol=2e-5, atol=1e-6)
  chex.assert_trees_all_close(
    jax.device_get(state.opt_state[0].mu),
    jax.device_get(alone.opt_state[0].mu),
    rtol=1e-4,
    atol=1e-6,
  )


def test_precomputed_scores_equal_the_reference_in_the_step():
  terms = {'sigmoid': 1.0}
  step, optimizer = make(terms)
  state = init_state(toy.params(), optimizer, seed=0)
  batch = toy.batch(microbatches=2)
  score = scoring.make_score(toy.ToyModel())
  cached = [
    score(toy.params(5), jax.tree.map(lambda x, m=m: x[m], batch.rows), 16)
    for m in range(2)
  ]
  reference = jax.tree.map(jnp.add, *cached)
  in_step = jax.jit(step)(state, toy.reference(5), batch, hyper_of(terms))
  from_cache = jax.jit(step)(
    state, types.Frozen(), batch._replace(reference=reference), hyper_of(terms)
  )
  chex.assert_trees_all_close(in_step, from_cache, rtol=1e-4, atol=1e-5)


def test_one_compile_for_a_grid_of_hyper_parameters():
  terms = {'sigmoid': 1.0}
  step, optimizer = make(terms)
  traced = jax.jit(chex.assert_max_traces(step, n=1))
  state = init_state(toy.params(), optimizer, seed=0)
  seen = set()
  for beta in np.linspace(0.01, 1, 10):
    for smoothing in np.linspace(0, 0.4, 6):
      hyper = hyper_of(terms, beta=beta, label_smoothing=smoothing)
      _, metrics = traced(state, toy.reference(5), toy.batch(), hyper)
      seen.add(float(metrics['loss']))
  assert len(seen) == 60


def test_sgd_direction_decreases_the_loss():
  terms = {'sigmoid': 1.0}
  step, optimizer = make(terms, name='rmsprop')
  state = init_state(toy.params(), optimizer, seed=0)
  hyper = hyper_of(terms) | {'learning_rate': jnp.float32(1e-3)}
  jitted, reference = jax.jit(step), toy.reference()
  trace = []
  for _ in range(5):
    state, metrics = jitted(state, reference, toy.batch(), hyper)
    trace.append(float(metrics['loss']))
  assert trace == sorted(trace, reverse=True) and trace[-1] < trace[0]
  assert int(state.step) == 5


def test_eval_step_scores_give_the_loss_of_the_step():
  terms = {'sigmoid': 1.0, 'nll': 0.5}
  objective = losses.make_objective(tuple(terms))
  score = scoring.make_score(toy.ToyModel(), wanted=('entropy',))
  eval_step = train_step.make_eval_step(score, objective)
  hyper = losses.default_hyper(terms)
  batch = toy.batch(microbatches=2)
  frozen = toy.reference(5)
  policy, reference = jax.jit(eval_step)(toy.params(), frozen, batch)
  assert policy.logps.shape == policy.entropy.shape == (16,)
  loss, _ = objective(policy, reference, batch, hyper)
  step, optimizer = make(terms)
  state = init_state(toy.params(), optimizer, seed=0)
  _, metrics = jax.jit(step)(
    state, frozen, batch, hyper | {'learning_rate': jnp.float32(0)}
  )
  np.testing.assert_allclose(loss, metrics['loss'], rtol=1e-5)


@pytest.mark.parametrize('name', ['adamw', 'rmsprop', 'lion', 'adafactor'])
def test_a_bad_update_leaves_the_state_and_the_second_stands_still(name):
  terms = {'sigmoid': 1.0}
  _, optimizer = make(terms, name=name)
  score = scoring.make_score(toy.ToyModel(), chunk=7)
  step = jax.jit(
    train_step.make_train_step(
      score, losses.make_objective(tuple(terms)), optimizer, SCHEDULE, 1
    )
  )
  hyper, reference, good = hyper_of(terms), toy.reference(5), toy.batch()
  labels = good.comparisons._replace(margin=good.comparisons.margin * np.nan)
  bad = good._replace(comparisons=labels)
  # The margin is read by other losses only: nothing is bad here.
  start, metrics = step(
    init_state(toy.params(), optimizer, seed=0), reference, bad, hyper
  )
  assert not metrics['guard'].is_bad and start.skipped == 0

  def same(a, b):
    pair = (a.params, a.opt_state), (b.params, b.opt_state)
    return jax.tree.all(jax.tree.map(np.array_equal, *pair))

  weight = np.where(np.arange(8) == 3, np.nan, good.comparisons.weight)
  bad = good._replace(comparisons=good.comparisons._replace(weight=weight))
  first, metrics = step(start, reference, bad, hyper)
  assert metrics['guard'].is_bad and same(first, start)
  assert (first.step, first.skipped) == (2, 1)
  # The next good one is made; the second bad one is one too many.
  made, metrics = step(first, reference, good, hyper)
  assert not metrics['guard'].is_bad and not same(made, start)
  last, _ = step(made, reference, bad, hyper)
  assert same(last, made) and (last.step, last.skipped) == (3, 2)
  after, metrics = step(last, reference, good, hyper)
  assert same(after, last) and (after.step, after.skipped) == (3, 2)
  assert not metrics['guard'].is_bad


def test_a_loss_of_an_absurd_score_is_bad():
  # The gradient of such a pair is finite, and so is its loss.
  terms = {'margin': 1.0}
  step, optimizer = make(terms)
  state = init_state(toy.params(), optimizer, seed=0)
  batch = toy.batch()
  margin = np.where(np.arange(8) == 3, 1e30, batch.comparisons.margin)
  bad = batch._replace(comparisons=batch.comparisons._replace(margin=margin))
  after, metrics = jax.jit(step)(state, toy.reference(5), bad, hyper_of(terms))
  assert np.isfinite(metrics['loss']) and metrics['guard'].is_bad
  assert after.skipped == 1 and after.step == 0


def test_masks_that_leave_no_token_are_bad():
  # The loss is log 2 then, whatever the model says.
  terms = {'sigmoid': 1.0}
  step, optimizer = make(terms)
  state = init_state(toy.params(), optimizer, seed=0)
  batch = toy.batch()
  ids = np.full_like(batch.rows.completion_id, -1)
  empty = batch._replace(rows=batch.rows._replace(completion_id=ids))
  after, metrics = jax.jit(step)(
    state, toy.reference(5), empty, hyper_of(terms)
  )
  assert metrics['guard'].is_bad and metrics['guard'].num_tokens == 0
  assert after.skipped == 1 and after.step == 0


def test_a_moment_that_would_freeze_training_is_bad():
  terms = {'sigmoid': 1.0}
  step, optimizer = make(terms)
  state = init_state(toy.params(), optimizer, seed=0)
  moments = jax.tree.map(
    lambda x: x.at[(0,) * x.ndim].set(1e30) if x.ndim else x,
    state.opt_state[0].nu,
  )
  frozen = state.opt_state[0]._replace(nu=moments)
  state = state._replace(opt_state=(frozen, *state.opt_state[1:]))
  after, metrics = jax.jit(step)(
    state, toy.reference(5), toy.batch(), hyper_of(terms)
  )
  # Every metric is finite; the weights of these moments would stand for good.
  assert np.isfinite(metrics['update_norm']) and metrics['guard'].is_bad
  assert 9e29 < metrics['guard'].second_moment < 1.1e30
  assert after.skipped == 1 and after.step == 0
