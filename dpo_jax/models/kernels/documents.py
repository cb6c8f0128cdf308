"""The documents form: shared rows as ordinary causal texts, for attention only.

Comes in: Rows [R, L]; then queries, keys and values. Goes out: what the branch
rule gives, from a kernel that knows causal attention within segments and
nothing of branches. The linear maps still run once per slot of the row.

A row becomes B documents, B the most branches of a prompt. Document j has, of
each prompt, the trunk and branch j, without a gap: `[trunk 1 | its branch j |
trunk 2 | its branch j | ...]`, a segment per prompt. Slots of a segment are
consecutive positions of one text, so a window of slots is one of positions. A
trunk's queries run in all B documents and count in the first.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.types import Array, Rows

# Slots of a document are a multiple of this: the tiles of the kernels.
TILE = 128


class Documents(NamedTuple):
  """Where each slot of a row is in its documents; S slots per document."""

  source_RBS: Array  # int32, slot of the row; 0 where the document has none
  segments_RBS: Array  # int32, the prompt_id; 0 = no token
  places_RBL: Array  # int32, slot in document j; meaningful where is_in
  is_in_RBL: Array  # bool, whether document j has the slot
  own_RBL: Array  # bool, document whose output counts: one, or none of padding
  is_lost_RL: Array  # bool, tokens for which the documents had no room


# (q_NSHK, k_NSGK, v_NSGK, segments_NS) -> out_NSHK; causal within segments. The
# modules of kernels have it as `attend`, with constants besides:
#   S           slots, a multiple of TILE;
#   segments_NS ascending from 1, 0 after the last token; a query sees keys of
#               its own;
#   scale       factor on the dot products;
#   window      a query sees fewer than this many slots back; None = no limit;
#   softcap     scores become softcap * tanh(scores / softcap); None = off.
Kernel = Callable[[Array, Array, Array, Array], Array]


def num_slots(longest: int) -> int:
  """Slots of a document whose tokens are at most `longest`."""
  return -(-longest // TILE) * TILE


def make_documents(rows: Rows, branches: int, slots: int) -> Documents:
  """Places rows in documents.

  Args:
    rows: prompts and branches [R, L].
    branches: B, most branches of a prompt.
    slots: S, of a document.
  """
  length = rows.branch.shape[1]
  branch_RBL = rows.branch[:, None]
  is_real_RBL = rows.prompt_id[:, None] > 0
  document_B1 = jnp.arange(1, branches + 1, dtype=jnp.int32)[:, None]
  is_in_RBL = is_real_RBL & ((branch_RBL == 0) | (branch_RBL == document_B1))
  places_RBL = jnp.cumsum(is_in_RBL, axis=2, dtype=jnp.int32) - 1
  is_in_RBL &= places_RBL < slots
  own_RBL = is_in_RBL & (jnp.maximum(branch_RBL, 1) == document_B1)
  # Slots of the row in the order of the document; `slots` is out of bounds.
  into_RBL = jnp.where(is_in_RBL, places_RBL, slots)
  numbers_RBL = jnp.broadcast_to(
    jnp.arange(length, dtype=jnp.int32), into_RBL.shape
  )
  source_RBS = _put(numbers_RBL, into_RBL, slots)
  prompts_RBL = jnp.broadcast_to(rows.prompt_id[:, None], into_RBL.shape)
  return Documents(
    source_RBS=source_RBS,
    segments_RBS=_put(prompts_RBL, into_RBL, slots),
    places_RBL=jnp.clip(places_RBL, 0, slots - 1),
    is_in_RBL=is_in_RBL,
    own_RBL=own_RBL,
    is_lost_RL=(rows.prompt_id > 0) & ~own_RBL.any(axis=1),
  )


def attend(
  kernel: Kernel, q_RLHK: Array, k_RLGK: Array, v_RLGK: Array, docs: Documents
) -> Array:
  """Attention under the branch rule by a kernel for causal documents.

  Padding gives 0. A token for which there was no room gives NaN: rows with
  more branches or longer texts than was said must not train in silence.

  Returns:
    [R, L, H, K].
  """
  R, B, S = docs.source_RBS.shape

  def to_documents(x_RLHK):
    x_RBSHK = _gather(x_RLHK, docs)
    return x_RBSHK.reshape(R * B, S, *x_RLHK.shape[2:])

  out_NSHK = kernel(
    to_documents(q_RLHK),
    to_documents(k_RLGK),
    to_documents(v_RLGK),
    docs.segments_RBS.reshape(R * B, S),
  )
  out_RLHK = _collect(out_NSHK.reshape(R, B, S, *out_NSHK.shape[2:]), docs)
  return jnp.where(docs.is_lost_RL[..., None, None], jnp.nan, out_RLHK)


@jax.custom_vjp
def _gather(x_RLHK: Array, docs: Documents) -> Array:
  """[R, B, S, H, K]: the slots of a row in the order of its documents."""
  R, B, S = docs.source_RBS.shape
  index = docs.source_RBS.reshape(R, B * S)
  return _take(x_RLHK, index).reshape(R, B, S, *x_RLHK.shape[2:])


def _gather_fwd(x_RLHK, docs):
  return _gather(x_RLHK, docs), docs


def _gather_bwd(docs, out_RBSHK):
  # A sum of gathers in place of the transposed scatter, which is serial on TPU.
  return _sum_of(out_RBSHK, docs, docs.is_in_RBL), None


@jax.custom_vjp
def _collect(x_RBSHK: Array, docs: Documents) -> Array:
  """[R, L, H, K]: each slot's own output; 0 for a slot without one."""
  return _sum_of(x_RBSHK, docs, docs.own_RBL)


def _collect_fwd(x_RBSHK, docs):
  return _collect(x_RBSHK, docs), docs


def _collect_bwd(docs, out_RLHK):
  R, B, S = docs.source_RBS.shape
  own_RBS = jnp.take_along_axis(docs.own_RBL, docs.source_RBS, axis=2)
  own_RBS &= docs.segments_RBS > 0
  return jnp.where(own_RBS[..., None, None], _gather(out_RLHK, docs), 0), None


_gather.defvjp(_gather_fwd, _gather_bwd)
_collect.defvjp(_collect_fwd, _collect_bwd)


def _sum_of(x_RBSHK: Array, docs: Documents, counts_RBL: Array) -> Array:
  """Sums the documents' values of each slot, those that count; float32 sums."""
  total = 0.0
  for j in range(x_RBSHK.shape[1]):
    x_RLHK = _take(x_RBSHK[:, j], docs.places_RBL[:, j]).astype(jnp.float32)
    total += jnp.where(counts_RBL[:, j, :, None, None], x_RLHK, 0)
  return total.astype(x_RBSHK.dtype)


def _take(x_RSHK: Array, index_RL: Array) -> Array:
  return jnp.take_along_axis(
    x_RSHK, index_RL[..., None, None], axis=1, mode='clip'
  )


def _put(values_RBL: Array, into_RBL: Array, slots: int) -> Array:
  """[R, B, slots]: values at the given slots, 0 elsewhere."""

  def put(values, into):
    return jnp.zeros(slots, values.dtype).at[into].set(values, mode='drop')

  return jax.vmap(jax.vmap(put))(values_RBL, into_RBL)
