"""cudnn: its offsets and lengths mean the documents, as jax documents them."""

import jax.numpy as jnp
import numpy as np
import pytest
import random_plans
import xla_documents
from jax._src.cudnn import fused_attention_stablehlo as fused

from dpo_jax.models.kernels import cudnn, proof, registry


def packed(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, **options):
  """What cuDNN gives of packed sequences; other slots are not computed."""
  assert options.pop('mask_type') == fused.MaskType.PADDING_CAUSAL
  assert q_seqlen.dtype == q_offsets.dtype == jnp.int32
  assert q_seqlen is kv_seqlen and q_offsets is kv_offsets
  assert q_offsets.shape[1] == q_seqlen.shape[1] + 1
  slots = jnp.arange(q.shape[1])[:, None]
  first, length = q_offsets[:, None, :-1], q_seqlen[:, None]
  is_of = (first >= 0) & (slots >= first) & (slots < first + length)
  segments = (is_of * jnp.arange(1, length.shape[2] + 1)).sum(axis=2)
  window = options.pop('sliding_window_length')
  out = xla_documents.attend(
    q, k, v, segments, window=window, softcap=None, **options
  )
  return jnp.where((segments > 0)[..., None, None], out, jnp.nan)


def test_lengths_and_offsets():
  segments = jnp.asarray([[1, 1, 2, 4, 4, 4, 0], [0] * 7])
  lengths, offsets = cudnn.sequences(segments, 4)
  # The third prompt has no token in this document, the second row has none.
  np.testing.assert_array_equal(lengths, [[2, 1, -1, 3], [-1] * 4])
  np.testing.assert_array_equal(offsets, [[0, 2, -1, 3, -1], [-1] * 5])
  assert cudnn.sequences(segments, 1)[0].shape == (2, 2)


@pytest.mark.parametrize('seed, layout', [(9, 'shared'), (5, 'padded')])
def test_attention_of_packed_sequences_is_dense(seed, layout, monkeypatch):
  plan = random_plans.make(seed)
  heads = plan.heads._replace(softcap=None)
  assert heads.window and plan.layout == layout
  monkeypatch.setattr(fused, 'dot_product_attention', packed)
  prompts = int(plan.rows.prompt_id.max())
  choice = registry.Choice('cudnn', plan.branches, prompts)
  errors = proof.compare(choice, heads, plan.rows, jnp.float32)
  assert errors.are_small, errors


def test_a_prompt_too_many_gives_nan(monkeypatch):
  monkeypatch.setattr(fused, 'dot_product_attention', packed)
  x = jnp.ones((1, 6, 1, 4))
  segments = jnp.asarray([[1, 2, 2, 3, 0, 0]])
  out = cudnn.attend(
    x, x, x, segments, scale=1.0, window=None, softcap=None, prompts=2
  )
  got = np.asarray(out[0, :, 0, 0])
  np.testing.assert_array_equal(got, [1, 1, 1, np.nan, 0, 0])
