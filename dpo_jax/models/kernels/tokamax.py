"""tokamax's flash attention for GPUs, on documents.

Comes in: queries, keys and values of documents and their segments. Goes out:
the attended values. Needs the package tokamax (Python 3.12, jax 0.11).

A query's first key is a native argument of its kernels, so that documents need
no mask; the end of a key's queries, which shared rows need, becomes a dense
one.
"""

import jax.numpy as jnp

from dpo_jax.models.kernels import intervals
from dpo_jax.types import Array


def attend(
  q_NSHK: Array,
  k_NSGK: Array,
  v_NSGK: Array,
  segments_NS: Array,
  *,
  scale: float,
  window: int | None,
  softcap: float | None,
  implementation: str = 'mosaic_gpu',
) -> Array:
  """Causal attention within segments: documents.Kernel, with its arguments.

  Args:
    implementation: 'xla' is a reference for any device.
  """
  from tokamax._src.ops.attention import api, base

  mask = base.Mask(k_start=first_keys(segments_NS, window), is_causal=True)
  return api.IMPLEMENTATIONS[implementation](
    q_NSHK,
    k_NSGK,
    v_NSGK,
    mask=mask,
    logits_scale=scale,
    logits_soft_cap=softcap,
  )


def first_keys(segments_NS: Array, window: int | None) -> Array:
  """Returns the first key that each query sees, int32 [N, 1, S]."""
  starts_NS = intervals.first_slots(segments_NS)
  if window is not None:
    slots_S = jnp.arange(segments_NS.shape[1], dtype=jnp.int32)
    starts_NS = jnp.maximum(starts_NS, slots_S - window + 1)
  return starts_NS[:, None]
