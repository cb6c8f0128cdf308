"""The branch rule of `types.Rows` as two numbers per slot.

Comes in: Rows [R, L]. Goes out: int32 arrays [R, L], from which a kernel
decides whether a query sees a key without an [L, L] mask. Knows no windows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.types import Array, Rows


class Intervals(NamedTuple):
  """Query q sees key k if `k_start[q] <= k <= q` and `q < q_end[k]`.

  A row holds each prompt, and each branch of it, in one piece. Hence a query
  sees no key before its prompt, and a key is seen up to the end of its branch,
  or of its prompt if it is in the trunk. Padding is a prompt of its own.
  """

  k_start_RL: Array  # int32, first slot of the query's prompt
  q_end_RL: Array  # int32, first slot after the last query that sees the key


def make_intervals(rows: Rows) -> Intervals:
  """Returns the intervals of rows, O(L) numbers per row."""
  prompt_RL, branch_RL = rows.prompt_id, rows.branch
  new_prompt_RL = _differs(prompt_RL)
  new_piece_RL = new_prompt_RL | _differs(branch_RL)
  prompt_end_RL = _next(new_prompt_RL)
  piece_end_RL = _next(new_piece_RL)
  return Intervals(
    k_start_RL=first_slots(prompt_RL),
    q_end_RL=jnp.where(branch_RL == 0, prompt_end_RL, piece_end_RL),
  )


def sees(query, key, k_start, q_end):
  """The rule of `Intervals` for slots, elementwise."""
  return (k_start <= key) & (key <= query) & (query < q_end)


def first_slots(ids_RL: Array) -> Array:
  """Returns the first slot of the piece of equal ids that each slot is in."""
  return _last(_differs(ids_RL))


def _differs(ids_RL: Array) -> Array:
  """Bool: whether a slot's id is not that of the slot before it."""
  first = jnp.ones_like(ids_RL[:, :1], bool)
  return jnp.concatenate([first, ids_RL[:, 1:] != ids_RL[:, :-1]], axis=1)


def _last(marks_RL: Array) -> Array:
  """The last marked slot up to each slot."""
  slots_RL = jnp.where(marks_RL, _slots(marks_RL), 0)
  return jax.lax.cummax(slots_RL, axis=1)


def _next(marks_RL: Array) -> Array:
  """The first marked slot after each slot; L if there is none."""
  length = marks_RL.shape[1]
  slots_RL = jnp.where(marks_RL, _slots(marks_RL), length)
  slots_RL = jax.lax.cummin(slots_RL, axis=1, reverse=True)
  return jnp.pad(slots_RL[:, 1:], ((0, 0), (0, 1)), constant_values=length)


def _slots(like_RL: Array) -> Array:
  return jax.lax.broadcasted_iota(jnp.int32, like_RL.shape, 1)
