"""scoring: against a float64 brute force, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dpo_jax import scoring, sharding

BATCH = toy.batch()
ROWS = jax.tree.map(lambda x: x[0], BATCH.rows)
NUM = BATCH.labels.shape[0]


def brute_force(params, rows, softcap=None, scale=1.0):
  """Loops over tokens in float64: (logps [C], counts [C], entropy [C])."""
  p = {k: v.astype(np.float64) for k, v in params.items()}
  out = np.zeros((3, NUM))
  for r, t in np.argwhere(rows.completion_id >= 0):
    h = p['embed'][rows.tokens[r, t]] + p['pos'][rows.positions[r, t]]
    logits = scale * (p['head'] @ h) + p['bias']
    if softcap:
      logits = softcap * np.tanh(logits / softcap)
    logps = logits - np.log(np.sum(np.exp(logits)))
    entropy = -np.sum(np.exp(logps) * logps)
    out[:, rows.completion_id[r, t]] += (
      logps[rows.targets[r, t]],
      1,
      entropy,
    )
  return out


@pytest.mark.parametrize('softcap,scale', [(None, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize('chunk', [1, 7, 4096])
def test_scores_equal_the_brute_force(chunk, softcap, scale):
  model = toy.ToyModel(softcap, scale)
  score = scoring.make_score(model, chunk=chunk, entropy=True)
  got = jax.jit(score, static_argnums=2)(toy.params(), ROWS, NUM)
  logps, counts, entropy = brute_force(toy.params(), ROWS, softcap, scale)
  np.testing.assert_allclose(got.logps, logps, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(got.num_tokens, counts)
  np.testing.assert_allclose(got.entropy, entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('split', [False, True])
def test_chunked_gradients_equal_those_of_full_logits(split):
  mesh = sharding.make_mesh(4, 2, 1) if split else None
  weights = jnp.arange(1.0, NUM + 1)

  def grads(**options):
    score = scoring.make_score(toy.ToyModel(3.0), **options)
    return jax.jit(
      jax.grad(lambda p: jnp.sum(score(p, ROWS, NUM).logps * weights))
    )(toy.params())

  full, chunked = grads(full_logits=True), grads(chunk=5, mesh=mesh)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    full,
    chunked,
  )


def test_entropy_carries_no_gradient():
  score = scoring.make_score(toy.ToyModel(), entropy=True)
  grad = jax.grad(lambda p: jnp.sum(score(p, ROWS, NUM).entropy))
  for leaf in jax.tree.leaves(grad(toy.params())):
    np.testing.assert_array_equal(leaf, 0)


def test_positions_that_predict_nothing_do_not_matter():
  rng = np.random.default_rng(3)
  noise = rng.integers(0, toy.VOCAB, ROWS.tokens.shape)
  free = ROWS.completion_id < 0
  noisy = ROWS._replace(
    tokens=np.where(free, noise, ROWS.tokens).astype(np.int32),
    targets=np.where(free, noise, ROWS.targets).astype(np.int32),
  )
  score = jax.jit(scoring.make_score(toy.ToyModel()), static_argnums=2)
  a, b = score(toy.params(), ROWS, NUM), score(toy.params(), noisy, NUM)
  np.testing.assert_array_equal(a.logps, b.logps)


def test_full_logits_never_exist_in_the_chunked_program():
  vocab, width, chunk = 4096, 8, 16
  params = {
    'embed': np.zeros((vocab, width), np.float32),
    'pos': np.zeros((32, width), np.float32),
    'head': np.zeros((vocab, width), np.float32),
    'bias': np.zeros((vocab,), np.float32),
  }
  full_bytes = ROWS.tokens.size * vocab * 4

  def temporaries(**options):
    score = scoring.make_score(toy.ToyModel(), **options)
    grad = jax.jit(jax.grad(lambda p: jnp.sum(score(p, ROWS, NUM).logps)))
    analysis = grad.lower(params).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  assert temporaries(full_logits=True) >= full_bytes
  # A few [chunk, V] blocks and the head's gradient, not [R, L, V].
  assert temporaries(chunk=chunk) < full_bytes / 2


def test_bfloat16_hidden_states_are_summed_in_float32():
  class HalfModel(toy.ToyModel):
    def hidden(self, params, rows):
      hidden, aux = super().hidden(params, rows)
      return hidden.astype(jnp.bfloat16), aux

  got = scoring.make_score(HalfModel())(toy.params(), ROWS, NUM)
  assert got.logps.dtype == jnp.float32
  logps, _, _ = brute_force(toy.params(), ROWS)
  # bf16 has 8 bits: inputs are off by 2^-9, sums of up to 9 tokens.
  np.testing.assert_allclose(got.logps, logps, rtol=2e-2, atol=0.2)
