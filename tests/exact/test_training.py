"""Trained tables against closed forms, scipy and invariances, in float64.

The two figures of the project's claim are here: sigmoid DPO reaches ref
exp(r / beta), and IPO its own optimum, to 1e-3 total variation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.exact import cases, choices, training

NUM_STEPS = 1000
BETAS = (0.1, 1.0, 10.0)


def train(name, made, weights, betas, num_steps=NUM_STEPS, **hyper):
  """Trains one cell per case; `hyper` differs from the loss's defaults."""
  betas = np.broadcast_to(betas, len(made)).astype(float)
  values = training.hyper_of(name) | hyper
  arrays = {key: np.full(len(made), value) for key, value in values.items()}
  if 'beta' in arrays:
    arrays['beta'] = betas
  cells = training.Cells(
    np.array([case.reference_XY for case in made]),
    np.array([case.reward_XY for case in made]),
    np.array(weights),
    betas,
    arrays,
  )
  return training.train(name, cells, num_steps)


def grid(
  samplings=tuple(cases.SAMPLINGS), seeds=range(2), name='bradley_terry'
):
  return [
    (cases.make(name, seed), sampling, beta)
    for seed in seeds
    for sampling in samplings
    for beta in BETAS
  ]


def tv(policy, other):
  return np.abs(policy - other).sum(-1) / 2


def exact_weights(cells, noise=0.0):
  return [cases.pair_weights(case, s, noise, beta) for case, s, beta in cells]


@pytest.mark.parametrize('noise', [0.0, 0.3])
def test_dpo_reaches_the_closed_form(noise):
  # 2305.18290, eq. 4, from pairs of any distribution. Robust DPO that is told
  # the noise reaches it from flipped labels (2403.00409).
  cells = grid()
  made, betas = [cell[0] for cell in cells], [cell[2] for cell in cells]
  hyper = {'label_smoothing': noise} if noise else {}
  policies = train(
    'robust' if noise else 'sigmoid',
    made,
    exact_weights(cells, noise),
    betas,
    **hyper,
  )
  for policy, (case, _, beta) in zip(policies, cells):
    star = case.reference_XY * np.exp(case.reward_XY / beta)
    star = star / star.sum(-1, keepdims=True)
    assert tv(policy, star).max() < 1e-3


def test_dpo_reaches_the_closed_form_from_enough_comparisons():
  made = [cases.bradley_terry(seed) for seed in range(4)]
  weights = [
    cases.sample(cases.pair_weights(case, 'uniform', 0, 1), 1e8, seed)
    for seed, case in enumerate(made)
  ]
  policies = train('sigmoid', made, weights, 1.0)
  for policy, case in zip(policies, made):
    assert tv(policy, cases.regularised_optimum(case, 1.0)).max() < 1e-3


def test_ipo_reaches_its_own_optimum():
  # 2310.12036, eq. 13 on data from mu: log(pi / ref) = p(y beats mu) / tau + c,
  # with p(y beats y) = 1/2.
  cells = grid()
  made, betas = [cell[0] for cell in cells], [cell[2] for cell in cells]
  policies = train('ipo', made, exact_weights(cells), betas)
  for policy, (case, sampling, beta) in zip(policies, cells):
    mu = cases.SAMPLINGS[sampling](case, beta)
    beats = np.einsum('xij,xj->xi', case.prefers_XYY, mu)
    own = cases.softmax(np.log(case.reference_XY) + beats / beta)
    assert tv(policy, own).max() < 1e-3
    if beta < 10 and sampling == 'uniform':
      # It is another policy than DPO's.
      assert tv(own, cases.regularised_optimum(case, beta)).mean() > 0.05


def test_three_actions_by_hand():
  # a beats b, b beats c, a beats c, t = 1 / (2 beta). IPO minimises
  # (u_a - u_b - t)^2 + (u_b - u_c - t)^2 + (u_a - u_c - t)^2: with u_b = 0 and
  # u_c = -u_a it is 2 (u_a - t)^2 + (2 u_a - t)^2, so u_a = 2 t / 3.
  made = [cases.three_actions(0)] * len(BETAS)
  weights = [cases.pair_weights(made[0], 'uniform', 0, 1)] * len(BETAS)
  u = np.array([[1 / (3 * beta), 0, -1 / (3 * beta)] for beta in BETAS])
  policies = train('ipo', made, weights, BETAS)[:, 0]
  np.testing.assert_allclose(policies, cases.softmax(u), atol=1e-6)


def test_dpo_of_deterministic_preferences_forgets_its_reference():
  # 2310.12036, section 4.2: at any beta the loss has no minimum, and the longer
  # the training the nearer the policy is to a certain answer. IPO's stays.
  made = [cases.three_actions(0)] * len(BETAS)
  weights = [cases.pair_weights(made[0], 'uniform', 0, 1)] * len(BETAS)
  short, long = (
    train('sigmoid', made, weights, BETAS, num_steps=n)[:, 0, 0]
    for n in (100, 20_000)
  )
  assert (long > short).all() and (long[:2] > 0.999).all() and long[2] > 0.8
  first, second = (
    train('ipo', made, weights, BETAS, num_steps=n)[:, 0, 0]
    for n in (NUM_STEPS, 20_000)
  )
  np.testing.assert_allclose(first, second, atol=1e-9)
  assert first[2] < 0.35  # uniform would be 1/3


def test_cdpo_of_deterministic_preferences_of_two_actions():
  # Its gradient is 0 at s(D) = 1 - e: D = log((1 - e) / e).
  case = cases.Case(
    np.array([[0.2, 0.8]]),
    np.array([[1.0, 0.0]]),
    np.array([[[0.5, 1.0], [0.0, 0.5]]]),
  )
  weights = [cases.pair_weights(case, 'uniform', 0, 1)]
  policy = train('sigmoid', [case], weights, 0.5, label_smoothing=0.1)[0, 0]
  gap = np.log(policy[0] / policy[1]) - np.log(0.2 / 0.8)
  np.testing.assert_allclose(0.5 * gap, np.log(9), rtol=1e-4)


@pytest.mark.parametrize(
  'first,name,factor',
  [
    # Equal lengths of 1.
    ('sigmoid', 'rdpo', 1.0),
    ('sigmoid', 'sigmoid_norm', 1.0),
    # The KL of both completions is that of their prompt.
    ('sigmoid', 'tdpo1', 1.0),
    # KTO's baseline is 0 here, and it is a mean over both completions.
    ('apo_zero', 'kto', 0.5),
  ],
)
def test_losses_that_are_one_at_a_token_per_completion(first, name, factor):
  case, rng = cases.bradley_terry(0), np.random.default_rng(0)
  weights = cases.pair_weights(case, 'uniform', 0.0, 1.0)
  logits, reference = rng.normal(size=(2, *case.reward_XY.shape))

  def value(name, logits):
    objective = losses.make_objective((name,))
    batch = training._batch(jnp.asarray(case.reward_XY), jnp.asarray(weights))
    scores = training._score_both(logits, jnp.asarray(reference), None, 20)
    hyper = training.hyper_of(name) | {'beta': 0.7, f'weight/{name}': 1.0}
    return objective(*scores, batch, hyper)[0]

  def both(name):
    run = jax.jit(jax.value_and_grad(lambda x: value(name, x)))
    return [np.asarray(each) for each in run(logits)]

  with jax.enable_x64(True):
    (expected, slope), (same, other) = both(first), both(name)
  np.testing.assert_allclose(same, factor * expected, rtol=1e-12)
  np.testing.assert_allclose(other, factor * slope, rtol=1e-9, atol=1e-15)


def test_invariances():
  case = cases.bradley_terry(5)
  order = np.array([3, 0, 4, 2, 1])
  turned = cases.Case(
    case.reference_XY[:, order],
    case.reward_XY[:, order],
    case.prefers_XYY[:, order][:, :, order],
  )
  # The first prompt again, and three others of another seed.
  other = cases.bradley_terry(6)
  mixed = cases.Case(
    *(
      np.concatenate([mine[:1], theirs[1:]])
      for mine, theirs in zip(case, other)
    )
  )
  made = [case, turned, case._replace(reward_XY=case.reward_XY + 3), mixed]
  weights = exact_weights([(each, 'uniform', 0.5) for each in made])
  weights.append(7 * weights[0])
  policies = train('exo_pair', [*made, case], weights, 0.5)
  plain, permuted, shifted, beside, scaled = policies
  np.testing.assert_allclose(permuted, plain[:, order], atol=1e-9)
  np.testing.assert_allclose(shifted, plain, atol=1e-12)
  np.testing.assert_allclose(beside[0], plain[0], atol=1e-9)
  np.testing.assert_allclose(scaled, plain, atol=1e-9)


def test_scores_with_the_divergence():
  rng = np.random.default_rng(0)
  logits, reference = rng.normal(size=(2, 3, 4))
  with jax.enable_x64(True):
    policy, ref = training._score_both(
      jnp.asarray(logits), jnp.asarray(reference), None, 12
    )
  p, q = cases.softmax(logits), cases.softmax(reference)
  np.testing.assert_allclose(policy.logps, np.log(p).ravel(), rtol=1e-12)
  np.testing.assert_allclose(ref.logps, np.log(q).ravel(), rtol=1e-12)
  kl = np.repeat((q * np.log(q / p)).sum(-1), 4)
  np.testing.assert_allclose(policy.kl, kl, rtol=1e-12)


@pytest.mark.parametrize('name', choices.usable())
def test_every_usable_loss_has_a_program(name):
  # Traced, not compiled: shapes, dtypes, needs and states fit.
  shapes = {
    k: jax.ShapeDtypeStruct((2,), 'float64')
    for k in (*training.hyper_of(name), 'learning_rate', f'weight/{name}')
  }
  with jax.enable_x64(True):
    table = jax.ShapeDtypeStruct((2, 3, 4), 'float64')
    pairs = jax.ShapeDtypeStruct((2, 3, 4, 4), 'float64')
    out = jax.eval_shape(
      training._program(name, 3), table, table, pairs, shapes
    )
  assert out.shape == (2, 3, 4) and out.dtype == np.float64
