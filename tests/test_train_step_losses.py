"""train_step: every registered loss, accumulated and on meshes.

All losses of a kind are terms of one objective, whose traced weights select one
at a time: two programs serve every loss.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from dpo_jax import losses, scoring, sharding, train_step
from dpo_jax.train_step import init_state

WHOLE = [n for n in losses.names() if 'whole_batch' in losses.get(n).needs]
SEPARATE = [n for n in losses.names() if n not in WHOLE]
# Compiles in half the time: these programs run once or twice.
QUICKLY = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}
OPTIONS = ('f_divergence', 'ld_alpha', 'wpo')
# (terms, options); the last two differ by options that need two passes.
SETS = {
  'separate': (tuple(SEPARATE), ()),
  # TDPO here too: its KL is a field of the scores that has a cotangent.
  'whole': ((*WHOLE, 'tdpo1', 'tdpo2'), ()),
  'changed': (('sigmoid', 'hinge'), OPTIONS),
  'filtered': (('sigmoid', 'hinge'), ('beta_dpo', 'dr_dpo', *OPTIONS)),
}


@functools.cache
def stepper(name, num_devices=0):
  """(jitted step, hyper, initial state) with SGD of rate 1: grads = -moves."""
  terms, options = SETS[name]
  static = (
    {'f_divergence': 'js_divergence'} if 'f_divergence' in options else {}
  )
  objective = losses.make_objective(terms, static, options)
  mesh = None
  if num_devices:
    mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
  pair = 'distributions' in objective.needs
  make = scoring.make_pair_score if pair else scoring.make_score
  score = make(
    toy.ToyModel(),
    chunk=7,
    full_logits=mesh is None,  # quick to compile; test_scoring compares both
    mesh=mesh,
    wanted=objective.needs & {*scoring.SUMS},
  )
  optimizer = optax.identity()
  step = train_step.make_train_step(
    score, objective, optimizer, lambda step: 1.0
  )
  hyper = {'learning_rate': jnp.float32(1.0)}
  for entry in (*objective.losses, *objective.transforms):
    hyper |= {k: jnp.float32(v) for k, v in entry.hyper.items()}
  shared = {'beta': 0.3, 'ld_alpha': 0.4, 'label_smoothing': 0.1}
  hyper |= {k: jnp.float32(v) for k, v in shared.items()}
  params = jax.tree.map(lambda x: 0.3 * x, toy.params())
  state = init_state(params, optimizer, 0, objective.init_state())
  options = {'compiler_options': QUICKLY}
  if mesh:
    replicated = sharding.replicated(mesh)
    rows = sharding.batch_shardings(mesh, toy.zoo(row_multiple=num_devices))
    options['in_shardings'] = (replicated, replicated, rows, replicated)
  return jax.jit(step, **options), hyper, state


def gradients(name, term, *, microbatches=1, num_devices=0, **changed):
  """(loss, gradients, new loss state) of one term, with two steps' state."""
  step, hyper, state = stepper(name, num_devices)
  hyper = hyper | {k: jnp.float32(v) for k, v in changed.items()}
  weights = {f'weight/{t}': jnp.float32(t == term) for t in SETS[name][0]}
  batch = toy.zoo(microbatches, row_multiple=num_devices or 1)
  reference = jax.tree.map(lambda x: 0.3 * x, toy.reference(5))
  new, metrics = step(state, reference, batch, hyper | weights)
  moves = jax.tree.map(jnp.subtract, state.params, new.params)
  return metrics['loss'], moves, new.loss_state


CASES = [(name, term) for name, (terms, _) in SETS.items() for term in terms]


@pytest.mark.parametrize('name,term', CASES)
def test_accumulation_is_exact(name, term):
  value, moves, state = gradients(name, term)
  assert max(np.abs(m).max() for m in moves.values()) > 1e-5
  others = gradients(name, term, microbatches=4)
  np.testing.assert_allclose(others[0], value, rtol=2e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
    (others[1], others[2]),
    (moves, state),
  )


@pytest.mark.parametrize(
  'one,two,term',
  [
    ('separate', 'whole', 'tdpo1'),
    ('separate', 'whole', 'tdpo2'),
    ('changed', 'filtered', 'sigmoid'),
    ('changed', 'filtered', 'hinge'),
  ],
)
def test_one_pass_and_two_passes_agree(one, two, term):
  # Every field of the scores that has a gradient, not only logps.
  nothing = {'beta_dpo_a': 0.0, 'beta_dpo_rho': 0.0, 'dr_beta': 1e9}
  a, b = gradients(one, term), gradients(two, term, **nothing)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5),
    a[:2],
    b[:2],
  )


SPREAD = [('whole', 2), ('whole', 8), ('filtered', 8)]


@pytest.mark.parametrize(
  'name,num_devices,term', [(*x, t) for x in SPREAD for t in SETS[x[0]][0]]
)
def test_losses_do_not_depend_on_the_mesh(name, num_devices, term):
  alone = gradients(name, term)
  spread = gradients(name, term, microbatches=2, num_devices=num_devices)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
    jax.device_get(spread),
    jax.device_get(alone),
  )
