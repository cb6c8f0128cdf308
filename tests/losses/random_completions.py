"""Random completions in lists or with labels, and formulas to hold losses to.

200 batches in float64, of lists of 1 to 4 completions or of labelled ones:
lengths from 1, equal scores, weights of which some are 0. A formula takes
arrays [NUM, 12] and must be analytic in the policy's log-probabilities, piece
by piece: its gradient is taken by a complex step, which loses no digits.
random_batches.py has the same for losses of comparisons.
"""

import functools

import jax
import numpy as np

from dpo_jax import losses, types

NUM, PAIRS, STEP = 200, 6, 1e-30
# Completions of a prompt with K = 3, 4, 2, 1 and 2 of them.
LISTS = np.repeat(np.arange(5), (3, 4, 2, 1, 2))


def nls(x):
  """-log s(x), of real or complex numbers in either direction."""
  far = x.real < 0
  return np.log1p(np.exp(np.where(far, x, -x))) - np.where(far, x, 0.0)


def arrays(seed=0, *, labels=False):
  """{name: [NUM, 12] or, of comparisons, [NUM, PAIRS]}.

  Completion 2 i is the winner and 2 i + 1 the loser of comparison i. With
  `labels` half of the completions are labelled and nothing is compared.
  """
  rng = np.random.default_rng(seed)
  shape = (NUM, 2 * PAIRS)
  tokens = rng.integers(1, 40, shape).astype(float)
  tokens[:, :2], tokens[:, 2:4] = 5.0, 1.0
  policy = -tokens * rng.exponential(1.0, shape)
  ratio = rng.normal(0.0, 6.0, shape)
  policy[:, 1], ratio[:, 1] = policy[:, 0], ratio[:, 0]
  weight = rng.choice([0.0, 0.5, 1.0, 2.0], (NUM, PAIRS))
  weight[:, 0], weight[:, -1] = 1.0, 0.0
  scores = rng.integers(0, 3, shape).astype(float)
  scores[:, 1] = scores[:, 0]
  chosen = rng.integers(-1, 2, shape)
  chosen[:, 0] = 0
  return {
    'policy': policy,
    'reference': policy - ratio,
    'tokens': tokens,
    'weight': 0 * weight if labels else weight,
    'scores': scores,
    'labels': chosen if labels else np.full(shape, -1),
    'prompt': np.broadcast_to(LISTS, shape),
  }


def evaluate(name, data, **values):
  """(values [NUM], gradients of the policy's log-probabilities [NUM, 12])."""
  hyper = {**losses.get(name).hyper, f'weight/{name}': 1.0}
  hyper |= {k: v for k, v in values.items() if not isinstance(v, str)}
  static = {k: v for k, v in values.items() if isinstance(v, str)}
  with jax.enable_x64(True):
    run = _program(name, tuple(static.items()))
    return jax.tree.map(np.asarray, run(data, hyper))


def check(name, data, formula, **values):
  """Holds a loss to a formula, in value and gradient.

  Args:
    name: of the loss.
    data: from `arrays`.
    formula: fn(data with any policy) -> loss of each batch [NUM].
    **values: hyper-parameters and static choices of the loss.
  """
  value, gradient = evaluate(name, data, **values)
  np.testing.assert_allclose(value, formula(data), rtol=1e-11, atol=1e-13)
  expected = np.empty_like(gradient)
  for i in range(gradient.shape[1]):
    policy = data['policy'].astype(complex)
    policy[:, i] += STEP * 1j
    expected[:, i] = formula(data | {'policy': policy}).imag / STEP
  scale = np.abs(expected).max()
  np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-13 * scale)


def mean(values, weight):
  """Weighted means over the last axis; 0 over nothing."""
  total = weight.sum(-1)
  return (values * weight).sum(-1) / np.where(total > 0, total, 1.0)


@functools.cache
def _program(name, static):
  objective = losses.make_objective((name,), dict(static))

  def loss_of(policy, data, hyper):
    return objective(
      types.CompletionScores(policy, data['tokens']),
      types.CompletionScores(data['reference'], data['tokens']),
      batch_of(data),
      hyper,
    )[0]

  def fn(data, hyper):
    return jax.value_and_grad(loss_of)(data['policy'], data, hyper)

  return jax.jit(jax.vmap(fn, (0, None)))


def batch_of(data):
  """The types.Batch of one batch's arrays."""
  winner = np.arange(0, 2 * PAIRS, 2)
  return types.Batch(
    rows=None,
    comparisons=types.Comparisons(
      winner, winner + 1, data['weight'], 0.0 * data['weight']
    ),
    labels=data['labels'],
    scores=data['scores'],
    prompt_index=data['prompt'],
  )
