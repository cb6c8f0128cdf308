"""FlashAttention 4 by fa4-jax, on shared rows with a mask in its kernel.

Comes in: queries, keys and values of rows, their intervals and positions. Goes
out: the attended values. Needs the package fa4-jax (Python 3.12) and a GPU.
Keys after the query are skipped; hidden keys before it are computed and masked.
"""

import dataclasses
import functools

from dpo_jax.models.kernels import intervals
from dpo_jax.types import Array


def attend(
  q_RLHK: Array,
  k_RLGK: Array,
  v_RLGK: Array,
  bounds: intervals.Intervals,
  positions_RL: Array,
  *,
  scale: float,
  window: int | None,
  softcap: float | None,
  backend: str | None = None,
) -> Array:
  """Attention under the branch rule on rows as they are.

  Args:
    q_RLHK: queries.
    k_RLGK: keys.
    v_RLGK: values.
    bounds: of the rows.
    positions_RL: a window counts these.
    scale: factor on the dot products.
    window: a query sees only keys fewer positions back; None = no limit.
    softcap: None; registry.problem refuses others.
    backend: of fa4_jax; 'reference' runs on any device.
  """
  import fa4_jax

  del softcap
  arrays = (*bounds, positions_RL)
  return fa4_jax.flash_attn(
    q_RLHK,
    k_RLGK,
    v_RLGK,
    causal=True,
    scale=scale,
    mask_mod=_mask_class()(*arrays, window or 2**30),
    backend=backend,
  )


@functools.cache
def _mask_class():
  """The class of the mask; one object, because fa4_jax compiles per class."""
  import fa4_jax

  @dataclasses.dataclass(frozen=True)
  class BranchMask(fa4_jax.MaskMod):
    k_start: Array
    q_end: Array
    positions: Array
    window: int = fa4_jax.static()

    def __call__(self, b, h, q, k):
      seen = (k >= self.k_start[b, q]) & (q < self.q_end[b, k])
      return seen & (self.positions[b, q] - self.positions[b, k] < self.window)

  return BranchMask
