"""Random batches of comparisons in float64, and an objective's view of them.

A formula of a paper, written anew in numpy, takes arrays [B, P] of B batches
at once; `check` compares its value and its gradient with the objective's.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses, types

NUM_BATCHES, NUM_PAIRS = 200, 6
STEP = 1e-5  # nats, of the numerical derivative
SIDES = ('policy_chosen', 'policy_rejected')


def draw(seed=0):
  """Arrays [B, P] by name; some weights are 0, some pairs equal others."""
  rng = np.random.default_rng(seed)
  shape = NUM_BATCHES, NUM_PAIRS
  drawn = {}
  for side in ('chosen', 'rejected'):
    # Every third length is 1.
    long = rng.integers(1, 40, shape)
    tokens = np.where(rng.random(shape) < 1 / 3, 1, long)
    drawn[f'{side}_tokens'] = tokens.astype(np.float64)
    drawn[f'policy_{side}'] = -tokens * rng.gamma(2.0, 1.0, shape)
    drift = rng.normal(0, 3, shape) * rng.choice([0, 0.1, 1.0], shape)
    drawn[f'reference_{side}'] = drawn[f'policy_{side}'] - drift
    drawn[f'score_{side}'] = rng.choice([1.0, 2.5, 3.2, 4.0, 5.0], shape)
    for tilt in ('away', 'toward'):
      drawn[f'{side}_{tilt}'] = rng.choice([-0.5, 0.0, 0.25, 1.0], shape)
  drawn['weight'] = rng.choice([0, 0.5, 1.0, 2.0], shape)
  drawn['weight'][:, 0] = 1.0
  drawn['margin'] = rng.gamma(1.0, 1.0, shape)
  # Ties: a comparison that occurs twice, and batches of one comparison only.
  for name, values in drawn.items():
    values[: NUM_BATCHES // 2, -1] = values[: NUM_BATCHES // 2, 1]
    values[-10:] = values[-10:, :1]
    if name == 'weight':
      values[-20:-10, 1:] = 0.0
  return drawn


def check(name, formula, *, options=(), state=None, rtol=1e-9, **values):
  """Compares an objective with a formula of its source.

  Args:
    name: of the loss.
    formula: function of (drawn, at) that returns losses [B, P], `drawn` with
      the scores where gradients flow and `at` the same with those that the
      source detaches.
    options: names of the options that are on.
    state: the running numbers before the batch; None = the initial ones.
    rtol: of the value; gradients are numerical, hence 1e-6 of the largest.
    **values: hyper-parameters and choices that differ from the defaults.
  """
  drawn = draw()
  value, gradient = of_objective(name, drawn, options, state, values)
  weight = drawn['weight']

  def mean(moved):
    losses = np.where(weight > 0, formula(moved, drawn), 0.0)
    return np.sum(weight * losses, 1) / np.sum(weight, 1)

  np.testing.assert_allclose(value, mean(drawn), rtol=rtol)
  for side in SIDES:
    for k in range(NUM_PAIRS):
      ends = []
      for step in (STEP, -STEP):
        moved = drawn | {side: drawn[side].copy()}
        moved[side][:, k] += step
        ends.append(mean(moved))
      slope = (ends[0] - ends[1]) / (2 * STEP)
      scale = np.abs(gradient[side]).max()
      np.testing.assert_allclose(
        gradient[side][:, k], slope, rtol=1e-6, atol=1e-7 * scale
      )


def of_objective(name, drawn, options=(), state=None, values=None):
  """(losses [B], {side: gradients [B, P]}) of the real objective, float64."""
  values = values or {}
  static = {k: v for k, v in values.items() if isinstance(v, str)}
  with jax.enable_x64(True):
    objective = losses.make_objective((name,), static, options)
    hyper = losses.default_hyper({name: 1.0}, options, **values)
    # Float32 is 1e-8 off a decimal number: the formula has all its digits.
    given = objective.losses[0].hyper | values
    hyper = {k: jnp.float64(given.get(k, v)) for k, v in hyper.items()}
    running = objective.init_state() if state is None else state
    running = jax.tree.map(jnp.float64, running)

    def loss(policy, drawn):
      scores, reference, batch = completions(drawn | policy)
      kept, new = objective.prepare(scores, reference, batch, hyper, running)
      return objective(scores, reference, kept, hyper, state=new)[0]

    policy = {side: jnp.asarray(drawn[side]) for side in SIDES}
    fn = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    return jax.device_get(fn(policy, jax.tree.map(jnp.asarray, drawn)))


def assert_same(first, second):
  """Asserts that two results of `of_objective` are equal."""
  np.testing.assert_allclose(first[0], second[0], rtol=1e-9)
  for side in SIDES:
    scale = np.abs(second[1][side]).max()
    np.testing.assert_allclose(
      first[1][side], second[1][side], rtol=1e-9, atol=1e-12 * scale
    )


def completions(drawn):
  """(policy, reference, batch) of arrays [P]; winners come first."""
  size = drawn['weight'].shape[0]

  def both(stem, ending=''):
    sides = (f'{stem}{side}{ending}' for side in ('chosen', 'rejected'))
    return jnp.concatenate([drawn[key] for key in sides])

  num_tokens = both('', '_tokens')
  policy = types.CompletionScores(
    both('policy_'),
    num_tokens,
    away=both('', '_away'),
    toward=both('', '_toward'),
  )
  reference = types.CompletionScores(both('reference_'), num_tokens)
  winner = jnp.arange(size)
  batch = types.Batch(
    rows=None,
    comparisons=types.Comparisons(
      winner, winner + size, drawn['weight'], drawn['margin']
    ),
    labels=jnp.full(2 * size, -1),
    scores=both('score_'),
    prompt_index=jnp.tile(winner, 2),
  )
  return policy, reference, batch
