"""infonca with the weights of the data, in float64 against its formula.

Chen et al. 2024, arXiv:2402.05369, eq. 6: the cross-entropy of softmax of the
scores and of the rewards. The mean is over prompts with two answers or more, by
the data's weights.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses, types

N, PROMPTS, K = 200, 5, 4
BETA, ALPHA = 0.3, 1.5


def make(seed=0):
  """Batches of up to K answers per prompt; the first one has weight 0."""
  rng = np.random.default_rng(seed)
  shape = N, PROMPTS, K
  counts = rng.integers(1, K + 1, (N, PROMPTS))
  present = np.arange(K) < counts[..., None]
  reference = -rng.uniform(0.05, 80, shape)
  policy = np.minimum(reference + rng.normal(0, 3, shape), -0.01)
  policy[:, 1] = reference[:, 1]  # ties of rewards
  weight = rng.uniform(0.2, 3, (N, PROMPTS)) * (rng.random((N, PROMPTS)) < 0.7)
  weight[0] = 0
  return {
    'policy': policy,
    'reference': reference,
    'scores': rng.integers(0, 3, shape).astype(float),
    'tokens': present * rng.integers(1, 40, shape).astype(float),
    'weight': weight,
  }


def formula(f):
  """Losses [N]."""
  present = f['tokens'] > 0

  def log_softmax(x):
    x = np.where(present, x, -np.inf)
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)

  share = np.exp(log_softmax(f['scores'] / ALPHA))
  rewards = BETA * (f['policy'] - f['reference'])
  logs = np.where(present, log_softmax(rewards), 0.0)
  each = -(share * logs).sum(-1)
  weight = np.where(present.sum(-1) >= 2, f['weight'], 0.0)
  total = weight.sum(-1)
  return (weight * each).sum(-1) / np.where(total > 0, total, 1.0)


def ours(f):
  """(losses [N], gradients by log pi) of the real objective."""
  objective = losses.make_objective(('infonca',))
  prompts = jnp.repeat(jnp.arange(PROMPTS), K)
  none = jnp.zeros(1)

  def one(policy, f):
    flat = {k: v.reshape(-1) for k, v in f.items() if k != 'weight'}
    batch = types.Batch(
      rows=None,
      comparisons=types.Comparisons(
        none.astype(int), none.astype(int), *[none] * 2
      ),
      labels=jnp.full(PROMPTS * K, -1),
      scores=flat['scores'],
      prompt_index=jnp.where(flat['tokens'] > 0, prompts, -1),
      list_weight=jnp.repeat(f['weight'], K),
    )
    hyper = {'beta': BETA, 'alpha': ALPHA, 'weight/infonca': 1.0}
    scores = types.CompletionScores(policy.reshape(-1), flat['tokens'])
    frozen = types.CompletionScores(flat['reference'], flat['tokens'])
    hyper = {k: jnp.float64(v) for k, v in hyper.items()}
    return objective(scores, frozen, batch, hyper)[0]

  with jax.enable_x64(True):
    f = {k: jnp.asarray(v, jnp.float64) for k, v in f.items()}
    run = jax.jit(jax.vmap(jax.value_and_grad(one)))
    return jax.device_get(run(f['policy'], f))


def test_infonca_is_its_formula_with_weights():
  f = make()
  value, gradient = ours(f)
  np.testing.assert_allclose(value, formula(f), rtol=1e-9, atol=1e-12)
  for p in range(PROMPTS):
    for k in range(K):
      up, down = ({**f, 'policy': f['policy'].copy()} for _ in range(2))
      up['policy'][:, p, k] += 1e-5
      down['policy'][:, p, k] -= 1e-5
      slope = (formula(up) - formula(down)) / 2e-5
      np.testing.assert_allclose(gradient[:, p, k], slope, atol=1e-8)
  # A prompt of weight 0 counts for nothing.
  assert not gradient[f['weight'] == 0].any() and value[0] == 0
  one_sided = f | {
    'policy': np.where(f['weight'][..., None] > 0, f['policy'], 0)
  }
  np.testing.assert_array_equal(ours(one_sided)[0], value)
