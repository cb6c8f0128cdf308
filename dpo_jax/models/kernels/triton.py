"""Flash attention under the branch rule, a Triton kernel by Pallas, for GPUs.

Comes in: queries, keys, values and Intervals of shared rows. Goes out: the
attended values. Softmax is kept online over blocks of keys (Dao 2023,
arXiv:2307.08691, algorithms 1 and 2). A block of queries visits the blocks of
keys from the first of its prompts to its own; a block of keys those of queries
up to the last that sees it. The rows stay as they are: nothing is gathered, and
no prompt is attended to twice. On CPU the kernels are interpreted: slow, for
proofs.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from dpo_jax.models.kernels import intervals
from dpo_jax.types import Array

# Slots of a block; rows are padded to a multiple.
BLOCK = 64
# Score of a hidden key: finite, so that no row of scores is NaN.
_HIDDEN = -1e30
# Exponentials are powers of 2, which the device computes at once.
_LOG2_E = math.log2(math.e)


class _Shape(NamedTuple):
  """Constants of a program."""

  scale: float
  window: int | None
  softcap: float | None
  interpret: bool


def attend(
  q_RLHK: Array,
  k_RLGK: Array,
  v_RLGK: Array,
  plan: intervals.Intervals,
  positions_RL: Array,
  *,
  scale: float,
  window: int | None,
  softcap: float | None,
  interpret: bool,
) -> Array:
  """Softmax attention under the branch rule, as attention.branch_attention.

  Args:
    q_RLHK: queries; head h reads key head h // (H // G). K is a power of 2.
    k_RLGK: keys.
    v_RLGK: values.
    plan: which keys a query sees.
    positions_RL: for windows.
    scale: factor on the dot products.
    window: a query sees only keys fewer than this many positions back; None =
      no limit.
    softcap: scores become softcap * tanh(scores / softcap); None = off.
    interpret: whether to run without a GPU.

  Returns:
    [R, L, H, K] in the dtype of `v_RLGK`.
  """
  length = q_RLHK.shape[1]
  padding = -length % BLOCK
  # A slot beyond the row sees itself alone, so that nothing of it is NaN.
  beyond = jnp.arange(length, length + padding, dtype=jnp.int32)

  def padded(x_RL, values):
    values = jnp.broadcast_to(values, (x_RL.shape[0], padding))
    return jnp.concatenate([x_RL, values], axis=1)

  starts, ends = plan
  slots = (
    padded(starts, beyond),
    padded(ends, beyond + 1),
    padded(positions_RL, jnp.zeros_like(beyond)),
  )
  qkv = [
    jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))
    for x in (q_RLHK, k_RLGK, v_RLGK)
  ]
  shape = _Shape(scale, window, softcap, interpret)
  return _attend(shape, *qkv, slots)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape, q_RLHK, k_RLGK, v_RLGK, slots):
  return _forward(shape, q_RLHK, k_RLGK, v_RLGK, slots)[0]


def _forward(shape, q_RLHK, k_RLGK, v_RLGK, slots):
  """The attended values, and log-sum-exps [R, H, L] to the base 2."""
  R, L, H, K = q_RLHK.shape
  group = H // k_RLGK.shape[2]
  return pl.pallas_call(
    functools.partial(_forward_block, shape),
    grid=(L // BLOCK, H, R),
    in_specs=[
      *_slot_specs(L),
      _block_of_head(K),
      _row_of_head(L, K, group),
      _row_of_head(L, K, group),
    ],
    out_specs=[_block_of_head(K), _numbers_of_block()],
    out_shape=[
      jax.ShapeDtypeStruct(q_RLHK.shape, v_RLGK.dtype),
      jax.ShapeDtypeStruct((R, H, L), jnp.float32),
    ],
    **_options(shape, 'branch_attention'),
  )(*slots, q_RLHK, k_RLGK, v_RLGK)


def _attend_fwd(shape, q_RLHK, k_RLGK, v_RLGK, slots):
  out_RLHK, log_sums = _forward(shape, q_RLHK, k_RLGK, v_RLGK, slots)
  # The name by which remat policies keep what the backward pass reads.
  out_RLHK, log_sums = (
    ad_checkpoint.checkpoint_name(x, 'attention') for x in (out_RLHK, log_sums)
  )
  return out_RLHK, (q_RLHK, k_RLGK, v_RLGK, slots, out_RLHK, log_sums)


def _attend_bwd(shape, residuals, bar_RLHK):
  q_RLHK, k_RLGK, v_RLGK, slots, out_RLHK, log_sums = residuals
  R, L, H, K = q_RLHK.shape
  group = H // k_RLGK.shape[2]
  dots = (bar_RLHK.astype(jnp.float32) * out_RLHK.astype(jnp.float32)).sum(-1)
  read = (q_RLHK, k_RLGK, v_RLGK, bar_RLHK, log_sums, dots.swapaxes(1, 2))
  q_bar = pl.pallas_call(
    functools.partial(_query_block, shape),
    grid=(L // BLOCK, H, R),
    in_specs=[
      *_slot_specs(L),
      _block_of_head(K),
      _row_of_head(L, K, group),
      _row_of_head(L, K, group),
      _block_of_head(K),
      _numbers_of_block(),
      _numbers_of_block(),
    ],
    out_specs=_block_of_head(K),
    out_shape=jax.ShapeDtypeStruct(q_RLHK.shape, q_RLHK.dtype),
    **_options(shape, 'branch_attention_queries'),
  )(*slots, *read)
  # A block of keys has the query heads of its own head.
  of_heads = pl.BlockSpec((None, L, group, K), lambda i, g, r: (r, 0, g, 0))
  numbers = pl.BlockSpec((None, group, L), lambda i, g, r: (r, g, 0))
  k_bar, v_bar = pl.pallas_call(
    functools.partial(_key_block, shape),
    grid=(L // BLOCK, H // group, R),
    in_specs=[
      *_slot_specs(L),
      of_heads,
      _block_of_head(K),
      _block_of_head(K),
      of_heads,
      numbers,
      numbers,
    ],
    out_specs=[_block_of_head(K), _block_of_head(K)],
    out_shape=[
      jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_RLGK, v_RLGK)
    ],
    **_options(shape, 'branch_attention_keys'),
  )(*slots, *read)
  return q_bar, k_bar, v_bar, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _slot_specs(length):
  """Key starts, query ends and positions of a row, whole."""
  return [pl.BlockSpec((None, length), lambda i, h, r: (r, 0))] * 3


def _block_of_head(size):
  return pl.BlockSpec((None, BLOCK, None, size), lambda i, h, r: (r, i, h, 0))


def _row_of_head(length, size, group):
  """The key head of a query head."""
  return pl.BlockSpec(
    (None, length, None, size), lambda i, h, r: (r, 0, h // group, 0)
  )


def _numbers_of_block():
  return pl.BlockSpec((None, None, BLOCK), lambda i, h, r: (r, h, i))


def _options(shape, name):
  return {
    'compiler_params': pallas_triton.CompilerParams(num_warps=4, num_stages=2),
    'interpret': shape.interpret,
    'name': name,
  }


def _forward_block(
  shape, starts, ends, positions, q_ref, k_ref, v_ref, out_ref, log_sums_ref
):
  """One block of queries of one head."""
  query = pl.program_id(0)
  q = q_ref[...]

  def visit(key, carry):
    highest, total, out = carry
    at = pl.ds(key * BLOCK, BLOCK)
    scores, _ = _scores(
      shape, starts, ends, positions, query, key, q, k_ref[at, :]
    )
    new = jnp.maximum(highest, scores.max(axis=1))
    weights = jnp.exp2(scores - new[:, None])
    shrink = jnp.exp2(highest - new)
    total = total * shrink + weights.sum(axis=1)
    step = _dot(weights.astype(v_ref.dtype), v_ref[at, :])
    return new, total, out * shrink[:, None] + step

  carry = (
    jnp.full(BLOCK, _HIDDEN, jnp.float32),
    jnp.zeros(BLOCK, jnp.float32),
    jnp.zeros(q.shape, jnp.float32),
  )
  first = _first_key_block(starts, query)
  highest, total, out = jax.lax.fori_loop(first, query + 1, visit, carry)
  out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
  log_sums_ref[...] = highest + jnp.log2(total)


def _query_block(
  shape,
  starts,
  ends,
  positions,
  q_ref,
  k_ref,
  v_ref,
  bar_ref,
  log_sums_ref,
  dots_ref,
  q_bar_ref,
):
  """The cotangent of one block of queries of one head."""
  query = pl.program_id(0)
  q, bar = q_ref[...], bar_ref[...]
  log_sums, dots = log_sums_ref[...], dots_ref[...]

  def visit(key, q_bar):
    at = pl.ds(key * BLOCK, BLOCK)
    k = k_ref[at, :]
    _, step = _pulled(
      *(shape, starts, ends, positions, query, key),
      *(q, k, v_ref[at, :], bar, log_sums, dots),
    )
    return q_bar + _dot(step.astype(k.dtype), k)

  first = _first_key_block(starts, query)
  q_bar = jnp.zeros(q.shape, jnp.float32)
  q_bar = jax.lax.fori_loop(first, query + 1, visit, q_bar)
  q_bar_ref[...] = (q_bar * shape.scale).astype(q_bar_ref.dtype)


def _key_block(
  shape,
  starts,
  ends,
  positions,
  q_ref,
  k_ref,
  v_ref,
  bar_ref,
  log_sums_ref,
  dots_ref,
  k_bar_ref,
  v_bar_ref,
):
  """The cotangents of one block of keys and values of one key head."""
  key = pl.program_id(0)
  k, v = k_ref[...], v_ref[...]
  zeros = jnp.zeros(k.shape, jnp.float32)
  carry = zeros, zeros
  last = ends[pl.ds(key * BLOCK, BLOCK)].max()
  stop = jax.lax.div(last + BLOCK - 1, BLOCK)
  for head in range(q_ref.shape[1]):

    def visit(query, carry, head=head):
      k_bar, v_bar = carry
      at = pl.ds(query * BLOCK, BLOCK)
      q, bar = q_ref[at, head, :], bar_ref[at, head, :]
      weights, step = _pulled(
        *(shape, starts, ends, positions, query, key),
        *(q, k, v, bar, log_sums_ref[head, at], dots_ref[head, at]),
      )
      k_bar += _dot(step.astype(q.dtype).T, q)
      v_bar += _dot(weights.astype(bar.dtype).T, bar)
      return k_bar, v_bar

    carry = jax.lax.fori_loop(key, stop, visit, carry)
  k_bar, v_bar = carry
  k_bar_ref[...] = (k_bar * shape.scale).astype(k_bar_ref.dtype)
  v_bar_ref[...] = v_bar.astype(v_bar_ref.dtype)


def _first_key_block(starts, query):
  """The block with the first key that a block of queries sees."""
  return jax.lax.div(starts[pl.ds(query * BLOCK, BLOCK)].min(), BLOCK)


def _pulled(
  shape, starts, ends, positions, query, key, q, k, v, bar, log_sums, dots
):
  """Softmax weights of a pair of blocks, and the cotangent of q.k scale."""
  scores, slope = _scores(shape, starts, ends, positions, query, key, q, k)
  weights = jnp.exp2(scores - log_sums[:, None])
  return weights, weights * (_dot(bar, v, 1) - dots[:, None]) * slope


def _scores(shape, starts, ends, positions, query, key, q, k):
  """Scores of a pair of blocks to the base 2, hidden ones very low.

  Also their derivative by the dot product times `scale`, 1 without a soft cap.
  """
  of_query, of_key = pl.ds(query * BLOCK, BLOCK), pl.ds(key * BLOCK, BLOCK)
  slots = jnp.arange(BLOCK)
  sees = intervals.sees(
    (query * BLOCK + slots)[:, None],
    (key * BLOCK + slots)[None, :],
    starts[of_query][:, None],
    ends[of_key][None, :],
  )
  if shape.window is not None:
    back = positions[of_query][:, None] - positions[of_key][None, :]
    sees &= back < shape.window
  scores, slope = _dot(q, k, 1) * shape.scale, 1.0
  if shape.softcap is not None:
    capped = jnp.tanh(scores / shape.softcap)
    scores, slope = shape.softcap * capped, 1 - capped * capped
  return jnp.where(sees, scores * _LOG2_E, _HIDDEN), slope


def _dot(x, y, axis=0):
  """Product over the last axis of x and an axis of y, float32."""
  # A GPU would multiply float32 with 10 bits.
  precision = 'highest' if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    x,
    y,
    (((1,), (axis,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
