"""QRPO against its authors' formula in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_batches

from dpo_jax import losses, types

FIELDS = random_batches.make()
NUM_REFERENCES = 6


def drawn_quantiles(rng, shape):
  """Scores and reference scores with ties, as shares of the latter."""
  scores = rng.integers(0, 5, shape).astype(float)
  reference = rng.integers(0, 5, (*shape, NUM_REFERENCES))
  return np.mean(reference <= scores[..., None], -1)


def of_authors(log_ratios, quantiles, beta):
  """README of CLAIRE-Labo/quantile-reward-policy-optimization: qrpo_loss."""
  log_z = np.log(beta) + 1 / beta
  return (quantiles - beta * log_z - beta * log_ratios) ** 2


@pytest.mark.parametrize('beta', [0.003, 0.1, 1.0])
def test_qrpo_is_its_authors(beta):
  # Each batch has P comparisons, and P labelled completions besides.
  weight = FIELDS['weight']
  num = weight.shape[1]
  rng = np.random.default_rng(0)
  quantiles = drawn_quantiles(rng, (len(weight), 3 * num))
  policy = np.concatenate(
    [FIELDS['policy_chosen'], FIELDS['policy_rejected']], 1
  )
  policy = np.concatenate([policy, policy[:, :num] - 1], 1)
  reference = policy - rng.normal(0, 3, policy.shape)
  reference[:, 1] = policy[:, 1]
  winner = np.arange(num)

  def loss(policy, reference, quantiles, weight):
    counts = jnp.ones(3 * num)
    batch = types.Batch(
      rows=None,
      comparisons=types.Comparisons(winner, winner + num, weight, 0 * weight),
      labels=jnp.where(jnp.arange(3 * num) < 2 * num, -1, 1),
      scores=0 * quantiles,
      prompt_index=jnp.arange(3 * num),
      quantiles=quantiles,
    )
    return losses.make_objective(('qrpo',))(
      types.CompletionScores(policy, counts),
      types.CompletionScores(reference, counts),
      batch,
      {'beta': jnp.float64(beta), 'weight/qrpo': 1.0},
    )[0]

  with jax.enable_x64(True):
    run = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    value, gradient = run(policy, reference, quantiles, weight)
  each = of_authors(policy - reference, quantiles, beta)
  weights = np.concatenate([weight, weight, np.ones_like(weight)], 1)
  total = np.sum(weights, 1)
  expected = np.sum(weights * each, 1) / total
  np.testing.assert_allclose(value, expected, rtol=1e-9)
  # d (q - beta log Z - beta a)^2 / da
  log_z = np.log(beta) + 1 / beta
  residual = quantiles - beta * log_z - beta * (policy - reference)
  slope = -2 * beta * residual * weights / total[:, None]
  np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-15)


def test_the_partition_function_leaves_out_what_is_tiny():
  # Z = beta (exp(1/beta) - 1), of which the 1 is 5e-5 at beta .1.
  for beta in (0.003, 0.1):
    exact = np.log(beta) + 1 / beta + np.log1p(-np.exp(-1 / beta))
    np.testing.assert_allclose(np.log(beta) + 1 / beta, exact, rtol=1e-5)
