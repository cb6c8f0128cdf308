"""nll of the best answer of ranked rows, in float64 against numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, types

N, PROMPTS, K = 200, 4, 4
PAIRS = PROMPTS * K * (K - 1) // 2


def make(seed=0):
  """Ranked prompts of 2 to K answers, with ties; batch 0 has weight 0."""
  rng = np.random.default_rng(seed)
  fields = {
    'policy': -rng.uniform(0.05, 90, (N, PROMPTS * K)),
    'tokens': np.zeros((N, PROMPTS * K)),
    'winner': np.zeros((N, PAIRS), int),
    'loser': np.zeros((N, PAIRS), int),
    'weight': np.zeros((N, PAIRS)),
    # Of each prompt: its best answer, and the weight of its comparisons.
    'best': np.zeros((N, PROMPTS), int),
    'total': np.zeros((N, PROMPTS)),
  }
  for n in range(N):
    pair = 0
    for p in range(PROMPTS):
      count = int(rng.integers(2, K + 1))
      scores = rng.integers(0, 4, count)
      fields['tokens'][n, p * K : p * K + count] = rng.integers(1, 40, count)
      weight = n and rng.uniform(0.2, 3) * (rng.random() < 0.8)
      # By score, not by comparisons: the first of the highest.
      fields['best'][n, p] = p * K + int(scores.argmax())
      for i, j in itertools.permutations(range(count), 2):
        if scores[i] > scores[j]:
          fields['winner'][n, pair] = p * K + i
          fields['loser'][n, pair] = p * K + j
          fields['weight'][n, pair] = weight
          fields['total'][n, p] += weight
          pair += 1
  return fields


FIELDS = make()


def batch_of(f):
  """The Batch of fields [C] and [P]."""
  prompts = jnp.repeat(jnp.arange(PROMPTS), K)
  return types.Batch(
    rows=None,
    comparisons=types.Comparisons(
      f['winner'], f['loser'], f['weight'], jnp.zeros_like(f['weight'])
    ),
    labels=jnp.full(PROMPTS * K, -1),
    scores=jnp.zeros(PROMPTS * K),
    prompt_index=jnp.where(f['tokens'] > 0, prompts, -1),
  )


def nll(fields, nll_of, name='nll'):
  """(values [N], gradients [N, C] by log pi) of the real objective."""
  objective = losses.make_objective((name,), {'nll_of': nll_of})

  def one(policy, f):
    scores = types.CompletionScores(policy, f['tokens'])
    hyper = {f'weight/{name}': jnp.float64(1.0)}
    return objective(scores, None, batch_of(f), hyper)[0]

  with jax.enable_x64(True):
    f = {k: jnp.asarray(v) for k, v in fields.items()}
    run = jax.jit(jax.vmap(jax.value_and_grad(one)))
    return jax.device_get(run(f['policy'], f))


@pytest.mark.parametrize('name', ['nll', 'sft'])
def test_the_best_answer_alone_is_imitated(name):
  value, gradient = nll(FIELDS, 'best', name)
  best, total = FIELDS['best'], FIELDS['total']
  tokens = np.take_along_axis(FIELDS['tokens'], best, 1)
  logps = np.take_along_axis(FIELDS['policy'], best, 1)
  # Each prompt's best answer, by the weight of its comparisons.
  count = (total * tokens).sum(1)
  safe = np.where(count > 0, count, 1.0)
  np.testing.assert_allclose(value, -(total * logps).sum(1) / safe, rtol=1e-12)
  expected = np.zeros_like(FIELDS['policy'])
  np.put_along_axis(expected, best, -total / safe[:, None], 1)
  np.testing.assert_allclose(gradient, expected, rtol=1e-12)
  assert value[0] == 0


def test_chosen_imitates_losers_too():
  value, gradient = nll(FIELDS, 'chosen')
  expected = np.zeros_like(FIELDS['policy'])
  for n, (winner, weight) in enumerate(zip(FIELDS['winner'], FIELDS['weight'])):
    np.add.at(expected[n], winner, -weight)
    count = -(expected[n] * FIELDS['tokens'][n]).sum()
    expected[n] /= count or 1
  np.testing.assert_allclose(gradient, expected, rtol=1e-12)
  np.testing.assert_allclose(value, (expected * FIELDS['policy']).sum(1))


def test_of_pairs_and_demonstrations_both_are_the_same():
  pair = np.arange(PAIRS)
  first, is_real = pair % PROMPTS * K, pair < PROMPTS
  pairs = FIELDS | {
    'winner': np.where(is_real, first + 1, 0)[None].repeat(N, 0),
    'loser': np.where(is_real, first, 0)[None].repeat(N, 0),
    'weight': np.where(is_real, 0.5 + FIELDS['weight'], 0.0),
  }
  for fields in (pairs, pairs | {'loser': pairs['winner']}):
    for a, b in zip(nll(fields, 'best'), nll(fields, 'chosen')):
      np.testing.assert_array_equal(a, b)


def test_microbatches_add_up():
  f = {k: jnp.asarray(v[7]) for k, v in FIELDS.items()}
  objective = losses.make_objective(('nll',), {'nll_of': 'best'})
  batch, hyper = batch_of(f), {'weight/nll': jnp.float32(1.0)}
  denominators = objective.denominators(batch, f['tokens'])
  parts = []
  for is_here in (batch.prompt_index < 2, batch.prompt_index >= 2):
    scores = types.CompletionScores(
      *(jnp.where(is_here, f[k], 0.0) for k in ('policy', 'tokens'))
    )
    parts.append(objective(scores, None, batch, hyper, denominators)[0])
  scores = types.CompletionScores(f['policy'], f['tokens'])
  total = objective(scores, None, batch, hyper)[0]
  np.testing.assert_allclose(parts[0] + parts[1], total, rtol=1e-6)
  assert min(parts) > 0
