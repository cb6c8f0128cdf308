"""Splash attention: the TPU kernel that ships with jax, on documents.

Comes in: queries, keys and values of documents and their segments. Goes out:
the attended values. On CPU the kernel is interpreted, which is slow and proves
its maths.

On shared rows its masks do not serve: a computable mask sees one number per
query and none per key, and a dynamic mask is [L, L].
"""

import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask,
)

from dpo_jax.types import Array

# Queries and keys per tile: the largest that divides the slots.
_TILES = (512, 256, 128)


def attend(
  q_NSHK: Array,
  k_NSGK: Array,
  v_NSGK: Array,
  segments_NS: Array,
  *,
  scale: float,
  window: int | None,
  softcap: float | None,
  interpret: bool,
) -> Array:
  """Causal attention within segments: documents.Kernel, with its arguments.

  Args:
    interpret: whether to run without a TPU.
  """
  slots, num_heads = q_NSHK.shape[1:3]
  kernel = _make(slots, num_heads, window, softcap, interpret)

  def attend_one(q_HSK, k_GSK, v_GSK, segments_S):
    segments = splash_attention_kernel.SegmentIds(segments_S, segments_S)
    return kernel(q_HSK, k_GSK, v_GSK, segment_ids=segments)

  heads_first = functools.partial(jax.numpy.swapaxes, axis1=1, axis2=2)
  out_NHSK = jax.vmap(attend_one)(
    heads_first(q_NSHK * scale),
    heads_first(k_NSGK),
    heads_first(v_NSGK),
    segments_NS,
  )
  return heads_first(out_NHSK)


def _make(slots, num_heads, window, softcap, interpret):
  """The kernel of a shape; its masks are numpy, made while tracing."""
  mask = splash_attention_mask.CausalMask((slots, slots))
  if window is not None and window < slots:
    mask = splash_attention_mask.LocalMask(
      (slots, slots), (window - 1, 0), offset=0
    )
  tile = next(n for n in _TILES if slots % n == 0)
  sizes = splash_attention_kernel.BlockSizes(
    *(tile,) * 3, *(tile,) * 3, *(tile,) * 2
  )
  return splash_attention_kernel.make_splash_mha(
    splash_attention_mask.MultiHeadMask([mask] * num_heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=softcap,
    # The name by which decoder's remat policies keep its residuals.
    residual_checkpoint_name='attention',
    interpret=interpret,
  )
