"""cuDNN's fused attention on documents, packed sequences of a batch.

Comes in: queries, keys and values of documents and their segments. Goes out:
the attended values. Needs a GPU from Hopper on and bfloat16.

`jax.nn.dot_product_attention` has no segments, and a boolean mask makes cuDNN
read a dense bias: hence the function below it, which takes offsets.
"""

import jax.numpy as jnp

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
  prompts: int,
) -> Array:
  """Causal attention within segments: documents.Kernel, with its arguments.

  Args:
    softcap: None; registry.problem refuses others.
    prompts: most segments of a document; a token of a later one gives NaN.
  """
  # Not a public module: it moves with jax, and nothing else needs it.
  from jax._src.cudnn import fused_attention_stablehlo as fused

  del softcap
  # Slots of no segment are not computed: what is in their place stays out.
  is_real = (segments_NS > 0)[..., None, None]
  lengths_NM, offsets_NM = sequences(segments_NS, prompts)
  out_NSHK = fused.dot_product_attention(
    *(jnp.where(is_real, x, 0) for x in (q_NSHK, k_NSGK, v_NSGK)),
    q_seqlen=lengths_NM,
    kv_seqlen=lengths_NM,
    q_offsets=offsets_NM,
    kv_offsets=offsets_NM,
    scale=scale,
    mask_type=fused.MaskType.PADDING_CAUSAL,
    sliding_window_length=window,
  )
  out_NSHK = jnp.where(is_real, out_NSHK, 0)
  is_lost = (segments_NS > prompts)[..., None, None]
  return jnp.where(is_lost, jnp.nan, out_NSHK)


def sequences(segments_NS: Array, prompts: int) -> tuple[Array, Array]:
  """Returns the lengths [N, M] and offsets [N, M + 1] of segments 1 to M.

  Both are int32, and -1 for a segment without a token and for the last offset.

  Args:
    segments_NS: ascending, 0 after the last token.
    prompts: M.
  """
  # At least 2: jax takes a single sequence for an unpacked batch.
  numbers = jnp.arange(1, max(prompts, 2) + 1)
  is_of_NMS = segments_NS[:, None] == numbers[:, None]
  lengths_NM = is_of_NMS.sum(axis=2, dtype=jnp.int32)
  starts_NM = jnp.cumsum(lengths_NM, axis=1, dtype=jnp.int32) - lengths_NM
  is_there_NM = lengths_NM > 0
  offsets_NM = jnp.pad(
    jnp.where(is_there_NM, starts_NM, -1), ((0, 0), (0, 1)), constant_values=-1
  )
  return jnp.where(is_there_NM, lengths_NM, -1), offsets_NM
