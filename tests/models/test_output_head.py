"""output_head: logits that are kept give what logits computed again give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dpo_jax import scoring
from dpo_jax.models import output_head

BATCH = toy.batch()
ROWS = jax.tree.map(lambda field: field[0], BATCH.rows)
NUM = BATCH.labels.shape[0]
WEIGHTS = np.linspace(-1, 2, NUM).astype(np.float32)


class CastModel(toy.ToyModel):
  """The toy with hidden states in a compute dtype, a scale and a softcap."""

  def __init__(self, dtype):
    super().__init__(softcap=3.0, scale=0.5)
    self._dtype = dtype

  def hidden(self, params, rows):
    hidden_RLD, aux = super().hidden(params, rows)
    return hidden_RLD.astype(self._dtype), aux


@pytest.fixture(scope='module')
def value_and_gradient():
  """(scores, gradient of all parameters, flat), by dtype and chunk."""

  def compute(dtype, chunk):
    score = scoring.make_score(CastModel(dtype), chunk=chunk)

    def total(params):
      scores = score(params, ROWS, NUM).logps
      return jnp.sum(scores * WEIGHTS), scores

    # Several chunks, the last one not full.
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(output_head, 'KEPT_CHUNK', 7)
      run = jax.jit(jax.value_and_grad(total, has_aux=True))
      (_, scores), grad = run(toy.params())
    return scores, np.concatenate([x.ravel() for x in jax.tree.leaves(grad)])

  return compute


def test_kept_float32_logits_change_nothing(value_and_gradient):
  scores, grad = value_and_gradient(jnp.float32, 0)
  want_scores, want = value_and_gradient(jnp.float32, 7)
  np.testing.assert_array_equal(scores, want_scores)
  np.testing.assert_allclose(grad, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_kept_bfloat16_logits_round_the_gradient_alone(value_and_gradient):
  scores, grad = value_and_gradient(jnp.bfloat16, 0)
  want_scores, want = value_and_gradient(jnp.bfloat16, 7)
  _, exact = value_and_gradient(jnp.float32, 7)
  # Log-sum-exp and picked logit are taken before anything is rounded.
  np.testing.assert_array_equal(scores, want_scores)
  size = np.linalg.norm(exact)
  assert 0 < np.linalg.norm(grad - want) < 0.004 * size
  assert np.linalg.norm(grad - exact) < 1.5 * np.linalg.norm(want - exact)


def test_the_backward_of_kept_logits_computes_none():
  """Of the head's three products only the two of the backward are left."""
  size = ROWS.tokens.size

  def pullback_of(chunk):
    score = scoring.make_score(CastModel(jnp.bfloat16), chunk=chunk)
    total, pullback = jax.vjp(
      lambda params: score(params, ROWS, NUM).logps, toy.params()
    )
    kept = {
      leaf.size
      for leaf in jax.tree.leaves(pullback)
      if leaf.size >= size * toy.VOCAB
    }
    text = jax.jit(pullback).lower(total).as_text()
    return text.count('stablehlo.dot_general'), kept

  assert pullback_of(7) == (3, set())
  # All positions have room, in one chunk: see KEPT_CHUNK.
  assert pullback_of(0) == (2, {size * toy.VOCAB})


def test_no_logits_are_kept_where_nothing_is_differentiated():
  score = scoring.make_score(CastModel(jnp.bfloat16), chunk=0)
  room = f'tensor<1x{ROWS.tokens.size}x{toy.VOCAB}xbf16>'

  def text(fn):
    return jax.jit(fn).lower(toy.params()).as_text()

  assert room not in text(lambda params: score(params, ROWS, NUM).logps)
  assert room in text(
    jax.grad(lambda params: score(params, ROWS, NUM).logps.sum())
  )
