"""Own optima against scipy, hand-made numbers and trained tables.

The formulas of the losses are written a third time here, as plain sums over
pairs, and scipy minimises them without any of the package's derivatives.
"""

import numpy as np
import pytest
from scipy import optimize, special

from dpo_jax.exact import cases, choices, optimum, study, training
from dpo_jax.losses import registry

NUM = 4  # completions


def softplus(x):
  return np.logaddexp(0, x)


def smoothed(d, e):
  return (1 - e) * softplus(-d) + e * softplus(d)


# {loss: (its loss of a pair, hyper-parameters)}, of the log-ratios a, their
# log pi and the reward gap g; i is the winner.
PAIRS = {
  'sigmoid': (lambda a, p, g: smoothed(0.5 * a, 0.2), {'label_smoothing': 0.2}),
  'robust': (
    lambda a, p, g: (0.8 * softplus(-0.5 * a) - 0.2 * softplus(0.5 * a)) / 0.6,
    {'label_smoothing': 0.2},
  ),
  'margin': (lambda a, p, g: softplus(g - 0.5 * a), {}),
  'simpo': (lambda a, p, g: softplus(0.3 - 0.5 * p), {'gamma': 0.3}),
  'exponential': (lambda a, p, g: np.exp(-0.5 * a), {}),
  'truncated_quadratic': (lambda a, p, g: np.maximum(1 - 0.5 * a, 0) ** 2, {}),
  'ipo': (lambda a, p, g: (a - 1) ** 2, {}),
  'reward_aware_rpo': (
    lambda a, p, g: (0.5 * a - 0.7 * g) ** 2,
    {'reward_scale': 0.7},
  ),
  'hinge': (lambda a, p, g: np.maximum(1 - 0.5 * a, 0), {}),
}


def problem(name, seed=0, **hyper):
  """One random problem at beta 1/2 with generic weights."""
  rng = np.random.default_rng(seed)
  weights = rng.uniform(0.2, 1, (1, NUM, NUM)) * (1 - np.eye(NUM))
  weights = weights / weights.sum()
  values = training.hyper_of(name) | hyper
  values |= {'beta': 0.5} if 'beta' in values else {}
  return optimum.Problem(
    cases.softmax(rng.normal(size=(1, NUM))),
    rng.normal(size=(1, NUM)),
    weights,
    {key: np.array([value]) for key, value in values.items()},
  )


def scipy_minimum(posed, value, **options):
  """Minimises value(logits) from the reference."""
  start = np.log(posed.reference_BY[0])
  done = optimize.minimize(value, start, **options)
  return special.softmax(done.x), done.fun


@pytest.mark.parametrize('name', PAIRS)
def test_losses_of_differences_against_scipy(name):
  pair, hyper = PAIRS[name]
  posed = problem(name, **hyper)
  reference, reward = np.log(posed.reference_BY[0]), posed.reward_BY[0]

  def gaps(x):
    return x[:, None] - x[None, :]

  def value(logits):
    each = pair(gaps(logits - reference), gaps(logits), gaps(reward))
    return (posed.weights_BYY[0] * each).sum()

  solved = optimum.solve(name, posed)[0]
  own = value(np.log(solved))
  if name == 'hinge':
    # It has kinks: no point nearby, nor any that a simplex search finds, has a
    # smaller value.
    simplex = {'maxiter': 10_000, 'maxfev': 10_000, 'xatol': 1e-9, 'fatol': 0}
    policy, least = scipy_minimum(
      posed, value, method='Nelder-Mead', options=simplex
    )
    assert own <= least + 1e-9
    np.testing.assert_allclose(solved, policy, atol=1e-4)
  else:
    policy, least = scipy_minimum(posed, value, method='BFGS', tol=1e-9)
    np.testing.assert_allclose(solved, policy, atol=1e-5)
    assert own <= least + 1e-12


def test_losses_of_single_likelihoods_against_scipy():
  shift = problem('dpo_shift', rejected_weight=0.6)
  contrast = problem('cpo', alpha=0.4)

  def value_of_shift(logits):
    a = logits - special.logsumexp(logits) - np.log(shift.reference_BY[0])
    gap = a[:, None] - 0.6 * a[None, :]
    return (shift.weights_BYY[0] * softplus(-0.5 * gap)).sum()

  def value_of_contrast(logits):
    p = logits - special.logsumexp(logits)
    each = softplus(-0.5 * (p[:, None] - p[None, :])) - 0.4 * p[:, None]
    return (contrast.weights_BYY[0] * each).sum()

  for name, posed, value in (
    ('dpo_shift', shift, value_of_shift),
    ('cpo', contrast, value_of_contrast),
  ):
    policy, _ = scipy_minimum(posed, value, method='BFGS', tol=1e-9)
    np.testing.assert_allclose(optimum.solve(name, posed)[0], policy, atol=1e-5)


def test_the_winners_are_what_nll_imitates():
  posed = problem('nll')
  wins = posed.weights_BYY[0].sum(1)
  np.testing.assert_allclose(optimum.solve('nll', posed)[0], wins / wins.sum())


# Names whose optimum is convex, and how near 1,000 updates come. A hinge has
# kinks, at which steps shrink only as fast as the learning rate does.
NEAR = {'hinge': 0.02}
TRAINED = (
  *('robust', 'margin', 'dpo_shift', 'simpo', 'cpo', 'exponential'),
  *('truncated_quadratic', 'hinge', 'reward_aware_rpo', 'nll'),
)


@pytest.mark.parametrize('name', TRAINED)
def test_training_reaches_the_own_optimum(name):
  settings = study.Settings(
    case='bradley_terry',
    losses=choices.read(name),
    betas=(1.0, 0.1),
    sizes=(np.inf, 10_000),
    noises=(0.0, 0.2),
    samplings=('uniform',),
    steps=(1000,),
    num_seeds=2,
  )
  own = [row.own for row in study.run(settings)]
  assert max(own) < NEAR.get(name, 1e-3)


def test_a_loss_of_which_nothing_is_known():
  assert optimum.solve('apo_zero', problem('apo_zero')) is None
  assert not optimum.is_known('apo_zero') and optimum.is_known('sigmoid')


def test_every_known_loss_is_usable():
  known = {name for name in registry.names() if optimum.is_known(name)}
  assert known - {'sft'} <= set(choices.usable())
  assert {*PAIRS, *TRAINED, 'cpo'} <= known


# A data set of three completions: 0 always beats 1 and 2, and 1 and 2 beat
# each other once. 0 is never beaten: no finite optimum (Ford 1957).
NEVER_BEATEN = np.array([[[0.0, 1, 1], [0, 0, 1], [0, 1, 0]]]) / 4
# Nothing compares 2 with the others: no unique optimum.
APART = np.array([[[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]]) / 2


@pytest.mark.parametrize('name', ['sigmoid', 'exponential', 'margin', 'hinge'])
def test_a_completion_that_is_never_beaten_has_no_optimum(name):
  values = training.hyper_of(name) | {'beta': 1.0}
  for weights in (NEVER_BEATEN, APART):
    posed = optimum.Problem(
      np.full((1, 3), 1 / 3),
      np.zeros((1, 3)),
      weights,
      {key: np.array([value]) for key, value in values.items()},
    )
    assert np.isnan(optimum.solve(name, posed)).all()


def test_ipo_and_smoothed_labels_have_one_even_then():
  for name, more in (('ipo', {}), ('sigmoid', {'label_smoothing': 0.1})):
    values = training.hyper_of(name) | {'beta': 1.0} | more
    hyper = {key: np.array([value, value]) for key, value in values.items()}
    uniform = np.full((2, 3), 1 / 3)
    weights = np.concatenate([NEVER_BEATEN, APART])
    posed = optimum.Problem(uniform, np.zeros((2, 3)), weights, hyper)
    first, second = optimum.solve(name, posed)
    assert first[0] > first[1] > 0 and abs(first[1] - first[2]) < 1e-12
    assert np.isnan(second).all()


def test_robust_weights_that_are_negative():
  # Three wins to none: the flips taken back leave a negative weight, and still
  # 0 and 1 are equal by way of 2.
  weights = np.array([[[0.0, 9, 1], [1, 0, 1], [1, 1, 0]]])
  posed = problem('robust', label_smoothing=0.4)
  posed = posed._replace(
    weights_BYY=weights / weights.sum(),
    reference_BY=np.full((1, 3), 1 / 3),
    reward_BY=np.zeros((1, 3)),
  )
  # 0.6 * 1 - 0.4 * 9 < 0: without the others the loss falls for ever.
  assert np.isnan(optimum.solve('robust', posed)).all()
