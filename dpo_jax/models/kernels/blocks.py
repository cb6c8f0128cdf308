"""Attention that visits only the blocks of keys that a block of queries sees.

Comes in: queries, keys, values and Intervals of shared rows. Goes out: the
attended values. Plain XLA, with softmax kept online over blocks of keys (Dao et
al. 2022, arXiv:2205.14135, algorithms 1 and 4). Blocks of other prompts, of
other branches and beyond a window cost no arithmetic. On a CPU the scores of
one pair of blocks stay in the cache of the core; those of dense attention
travel through memory several times.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import ad_checkpoint

from dpo_jax.models.kernels import intervals
from dpo_jax.types import Array

# Slots of a block at most: 64 x 64 scores of 8 heads are 128 KiB.
_BLOCK = 64
# Added to the score of a hidden key: finite, so that no row of scores is NaN.
_HIDDEN = -1e30


class _Shape(NamedTuple):
  """Constants of a program."""

  length: int
  block: int
  num_blocks: int  # of a row
  num_kv_heads: int
  group: int  # query heads per key head
  window: int | None
  softcap: float | None


class _Visits(NamedTuple):
  """Pairs of a block of queries and a block of keys, in order of the queries.

  Blocks of all rows are numbered through: R * B of them.
  """

  query_T: Array  # int32
  key_T: Array  # int32
  first_N: Array  # int32, first visit of each block of queries
  count_N: Array  # int32, its visits; the rest of the T pairs is not visited
  # Slot, key start, query end and position of each slot, [N, block] each.
  slots: tuple[Array, Array, Array, Array]


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
) -> Array:
  """Softmax attention under the branch rule, as attention.branch_attention.

  Args:
    q_RLHK: queries; head h reads key head h // (H // G).
    k_RLGK: keys.
    v_RLGK: values.
    plan: which keys a query sees.
    positions_RL: for windows.
    scale: factor on the dot products.
    window: a query sees only keys fewer than this many positions back; None =
      no limit.
    softcap: scores become softcap * tanh(scores / softcap); None = off.

  Returns:
    [R, L, H, K] in the dtype of `v_RLGK`.
  """
  length, num_heads = q_RLHK.shape[1:3]
  num_blocks = -(-length // _BLOCK)
  # Equal blocks, of a multiple of 8 slots: a last one is not almost empty.
  block = -(-length // (8 * num_blocks)) * 8
  G = k_RLGK.shape[2]
  shape = _Shape(length, block, num_blocks, G, num_heads // G, window, softcap)
  visits = _visits(shape, plan, positions_RL)
  return _attend(shape, q_RLHK * scale, k_RLGK, v_RLGK, visits)


def _visits(shape: _Shape, plan, positions_RL) -> _Visits:
  """The pairs of blocks in which some query sees some key, or might."""
  R = positions_RL.shape[0]
  total = shape.block * shape.num_blocks

  def split(x_RL, beyond):
    x_RL = jnp.pad(x_RL, ((0, 0), (0, total - shape.length)))
    x_RL = jnp.where(jnp.arange(total) < shape.length, x_RL, beyond)
    return x_RL.reshape(R, shape.num_blocks, shape.block)

  # A slot beyond the row sees itself alone, so that nothing of it is NaN.
  slot = jnp.arange(total)
  slots = (
    split(jnp.broadcast_to(slot[: shape.length], positions_RL.shape), slot),
    split(plan.k_start_RL, slot),
    split(plan.q_end_RL, slot + 1),
    split(positions_RL, 0),
  )
  places, starts, ends, positions = slots
  # By the bounds of a block: of a pair too many the rule hides all keys.
  sees = starts.min(-1)[:, :, None] <= places[:, None, :, -1]
  sees &= places[:, :, None, 0] < ends.max(-1)[:, None]
  if shape.window is not None:
    back = positions.min(-1)[:, :, None] - positions.max(-1)[:, None]
    sees &= back < shape.window
  index = jnp.arange(shape.num_blocks)
  sees = (sees & (index[:, None] > index)) | (index[:, None] == index)
  count = sees.sum(-1, dtype=jnp.int32).reshape(-1)
  order = jnp.argsort(~sees.reshape(-1), stable=True).astype(jnp.int32)
  row, pair = jnp.divmod(order, shape.num_blocks**2)
  query, key = jnp.divmod(pair, shape.num_blocks)
  return _Visits(
    query_T=row * shape.num_blocks + query,
    key_T=row * shape.num_blocks + key,
    first_N=jnp.cumsum(count) - count,
    count_N=count,
    slots=tuple(x.reshape(-1, shape.block) for x in slots),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape, q_RLHK, k_RLGK, v_RLGK, visits):
  return _forward(shape, q_RLHK, k_RLGK, v_RLGK, visits)[0]


def _forward(shape, q_RLHK, k_RLGK, v_RLGK, visits):
  """The attended values [R, L, H, K], and log-sum-exps [N, G, Q, 1]."""
  q, k, v = _queries(shape, q_RLHK), _keys(shape, k_RLGK), _keys(shape, v_RLGK)

  def attend_block(query):
    def visit(t, carry):
      highest, total, out = carry
      key = _at(visits.key_T, t)
      scores = _scores(shape, visits, query, key, _at(q, query), _at(k, key))
      new = jnp.maximum(highest, scores.max(-1, keepdims=True))
      weights, shrink = jnp.exp(scores - new), jnp.exp(highest - new)
      total = total * shrink + weights.sum(-1, keepdims=True)
      step = _dot('gqs,gsk->gqk', weights.astype(v.dtype), _at(v, key))
      return new, total, out * shrink + step

    zeros = jnp.zeros(q.shape[1:], jnp.float32)
    carry = jnp.full_like(zeros[..., :1], _HIDDEN), zeros[..., :1], zeros
    first = _at(visits.first_N, query)
    last = first + _at(visits.count_N, query)
    highest, total, out = jax.lax.fori_loop(first, last, visit, carry)
    return (out / total).astype(v.dtype), highest + jnp.log(total)

  out, log_sums = jax.lax.map(attend_block, jnp.arange(len(q)))
  return _rows_of_queries(shape, out), log_sums


def _attend_fwd(shape, q_RLHK, k_RLGK, v_RLGK, visits):
  out_RLHK, log_sums = _forward(shape, q_RLHK, k_RLGK, v_RLGK, visits)
  # The name by which remat policies keep what the backward pass reads.
  out_RLHK, log_sums = (
    ad_checkpoint.checkpoint_name(x, 'attention') for x in (out_RLHK, log_sums)
  )
  return out_RLHK, (q_RLHK, k_RLGK, v_RLGK, visits, out_RLHK, log_sums)


def _attend_bwd(shape, residuals, bar_RLHK):
  q_RLHK, k_RLGK, v_RLGK, visits, out_RLHK, log_sums = residuals
  q, k, v = _queries(shape, q_RLHK), _keys(shape, k_RLGK), _keys(shape, v_RLGK)
  bar = _queries(shape, bar_RLHK)
  dots = (bar_RLHK.astype(jnp.float32) * out_RLHK).sum(-1, keepdims=True)
  dots = _queries(shape, dots)
  # Products whose results have the keys in their last, wide axis.
  q_columns, bar_columns = q.swapaxes(-1, -2), bar.swapaxes(-1, -2)

  def visit(t, carry):
    q_bar, k_bar, v_bar = carry
    query, key = _at(visits.query_T, t), _at(visits.key_T, t)
    scores = _scores(shape, visits, query, key, _at(q, query), _at(k, key))
    weights = jnp.exp(scores - _at(log_sums, query))
    scores_bar = _dot('gqk,gsk->gqs', _at(bar, query), _at(v, key))
    scores_bar = weights * (scores_bar - _at(dots, query))
    if shape.softcap is not None:
      # Clipped for hidden keys, whose cotangent is 0 as their weight is.
      scores_bar *= 1 - jnp.clip(scores / shape.softcap, -1, 1) ** 2
    weights, scores_bar = (x.astype(v.dtype) for x in (weights, scores_bar))
    return (
      _add(q_bar, query, _dot('gqs,gsk->gqk', scores_bar, _at(k, key))),
      _add(k_bar, key, _dot('gkq,gqs->gks', _at(q_columns, query), scores_bar)),
      _add(v_bar, key, _dot('gkq,gqs->gks', _at(bar_columns, query), weights)),
    )

  columns = jnp.zeros(k.swapaxes(-1, -2).shape, jnp.float32)
  q_bar, k_bar, v_bar = jax.lax.fori_loop(
    0,
    visits.count_N.sum(),
    visit,
    (jnp.zeros(q.shape, jnp.float32), columns, columns),
  )
  return (
    _rows_of_queries(shape, q_bar).astype(q_RLHK.dtype),
    _rows_of_keys(shape, k_bar).astype(k_RLGK.dtype),
    _rows_of_keys(shape, v_bar).astype(v_RLGK.dtype),
    None,
  )


_attend.defvjp(_attend_fwd, _attend_bwd)


def _scores(shape, visits, query, key, q_GQK, k_GSK):
  """Capped dot products [G, Q, S] of two blocks; hidden ones are very low."""
  place, start, _, position = (_at(x, query)[:, None] for x in visits.slots)
  key_place, _, end, key_position = (_at(x, key) for x in visits.slots)
  sees = intervals.sees(place, key_place, start, end)
  if shape.window is not None:
    sees &= position - key_position < shape.window
  scores = _dot('gqk,gsk->gqs', q_GQK, k_GSK)
  if shape.softcap is not None:
    scores = shape.softcap * jnp.tanh(scores / shape.softcap)
  by_head = scores.reshape(shape.num_kv_heads, shape.group, *sees.shape)
  # An added bias, not a select: XLA:CPU fuses it into the product.
  return (by_head + jnp.where(sees, 0.0, _HIDDEN)).reshape(scores.shape)


def _dot(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _at(x, i):
  # A dynamic slice: `x[i]` would be a gather, several times as slow here.
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _add(total, i, step):
  return jax.lax.dynamic_update_index_in_dim(total, _at(total, i) + step, i, 0)


def _split(shape, x_RLNK):
  """Slots as blocks: [R, B, block, heads, K]."""
  padding = shape.block * shape.num_blocks - shape.length
  x_RLNK = jnp.pad(x_RLNK, ((0, 0), (0, padding), (0, 0), (0, 0)))
  return x_RLNK.reshape(-1, shape.num_blocks, shape.block, *x_RLNK.shape[2:])


def _queries(shape, x_RLHK):
  """Blocks [N, G, group * block, K]: heads of a key head are one matrix."""
  x = _split(shape, x_RLHK)
  x = x.reshape(*x.shape[:3], shape.num_kv_heads, shape.group, x.shape[-1])
  x = x.transpose(0, 1, 3, 4, 2, 5)
  return x.reshape(
    -1, shape.num_kv_heads, shape.group * shape.block, x.shape[-1]
  )


def _keys(shape, x_RLGK):
  """Blocks [N, G, block, K]."""
  x = _split(shape, x_RLGK).swapaxes(2, 3)
  return x.reshape(-1, *x.shape[2:])


def _rows_of_queries(shape, x_NGQK):
  """Blocks of queries as rows, [R, L, H, K]."""
  x = x_NGQK.reshape(
    -1,
    shape.num_blocks,
    shape.num_kv_heads,
    shape.group,
    shape.block,
    x_NGQK.shape[-1],
  )
  x = x.transpose(0, 1, 4, 2, 3, 5)
  rows = x.shape[0], shape.num_blocks * shape.block
  x = x.reshape(*rows, shape.num_kv_heads * shape.group, x.shape[-1])
  return x[:, : shape.length]


def _rows_of_keys(shape, x_NGKS):
  """Blocks of keys, with slots in the last axis, as rows [R, L, G, K]."""
  x = x_NGKS.reshape(-1, shape.num_blocks, *x_NGKS.shape[1:])
  x = x.transpose(0, 1, 4, 2, 3)
  x = x.reshape(x.shape[0], -1, *x.shape[3:])
  return x[:, : shape.length]
