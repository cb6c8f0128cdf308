"""How the devices of a mesh share the output head.

Comes in: a mesh, the head's weights and positions. Goes out: a form of the same
arrays on which output_head.py computes.

The vocabulary is split over `tensor` and `fsdp`: a device has some rows of the
head, whole, and their gradient. The states of a chunk, far smaller than the
head, are gathered over `fsdp` instead. The devices of one index of `data` work
on a chunk together, each on [chunk, V / devices] logits.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpo_jax.types import Array

# Fewest positions of a device in a chunk that several devices share.
LEAST = 128
# Logit of the rows that make the vocabulary a multiple of the devices. Finite,
# because 0 * inf is NaN in a mean over the vocabulary.
_NEVER = -1e30


class Parts(NamedTuple):
  """How a chunk and the vocabulary are split; the default is one device."""

  rows: int = 1  # parts of the rows, S: one for each index of `fsdp`
  axes: tuple[str, ...] = ()  # of the mesh, those that split the vocabulary
  vocab_size: int = 0  # without the rows that fill it up to the axes
  mesh: Mesh | None = None  # None: one device, or the mesh of a shard_map

  def chunk(self, size: int) -> int:
    """Returns the positions that each part gives to a chunk of `size`."""
    return chunk_of_part(size, self.rows)

  def place(self, x: Array, *spec: Any) -> Array:
    """Returns the array split by these axes of the mesh."""
    if not self.axes:
      return x
    where = PartitionSpec(*spec)
    if self.mesh is not None:
      where = NamedSharding(self.mesh, where)
    return jax.lax.with_sharding_constraint(x, where)

  def by_part(self, x: Array, size: int, padding: int) -> Array:
    """Returns [R, L, ..] as [N, ..], or [S, N, ..] of several parts."""
    x = x.reshape(self.rows, size, *x.shape[2:])
    x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)))
    return self.place(x, 'fsdp') if self.rows > 1 else x[0]

  def take(self, x: Array, index: Array) -> Array:
    """Returns x[index], or that of all parts on every device of the group."""
    if self.rows == 1:
      return x[index]
    taken = jax.vmap(lambda x, index: x[index])(x, index)
    taken = self.place(taken, 'fsdp')
    return self.place(taken.reshape(-1, *taken.shape[2:]))

  def put(self, x: Array, index: Array, values: Array) -> Array:
    """Returns x with x[index] = values: the opposite of `take`."""
    if self.rows == 1:
      return x.at[index].set(values)
    values = values.reshape(self.rows, -1, *values.shape[1:])
    put = jax.vmap(lambda x, index, values: x.at[index].set(values))
    return self.place(put(x, index, self.place(values, 'fsdp')), 'fsdp')

  def split_vocabulary(self, weights: Any) -> Any:
    """Returns arrays [V, ..] split by rows, filled up to a multiple."""
    padding = -self.vocab_size % self._num_shards() if self.axes else 0

    def split(x):
      x = jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1)))
      # A table that `tensor` does not split is exchanged over `fsdp` first: in
      # one step the compiler would gather it whole.
      if self.axes[0] == 'fsdp':
        x = self.place(x, 'fsdp')
      return self.place(x, self.axes)

    return jax.tree.map(split, weights) if self.axes else weights

  def hide_filling(self, logits_NV: Array) -> Array:
    """Returns logits whose filling has no probability, split by words."""
    if 0 < self.vocab_size < logits_NV.shape[1]:
      is_word = jnp.arange(logits_NV.shape[1]) < self.vocab_size
      logits_NV = jnp.where(is_word, logits_NV, _NEVER)
    return logits_NV

  def _num_shards(self):
    mesh = self.mesh or jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in self.axes)


def chunk_of_part(size: int, parts: int) -> int:
  """Returns the positions that each of `parts` gives to a chunk of `size`."""
  return size if parts == 1 else max(-(-size // parts), LEAST)


def on_mesh(mesh: Mesh, vocab_size: int) -> Parts:
  """Returns the parts of a head of `vocab_size` words on a mesh."""
  axes = ('tensor', 'fsdp')
  # As the weights are stored, where `tensor` splits their rows.
  if vocab_size % mesh.shape['tensor']:
    axes = axes[::-1]
  return Parts(
    rows=mesh.shape['fsdp'],
    axes=tuple(axis for axis in axes if mesh.shape[axis] > 1),
    vocab_size=vocab_size,
    mesh=mesh if mesh.shape['data'] == 1 else None,
  )


def over_data(run, mesh: Mesh, frozen_specs: Any):
  """Runs the function apart for each index of `data`; rows are split over it.

  They share nothing but the head: they may have different numbers of chunks,
  and the head's gradient is summed once, after the loop. The other axes stay
  with the compiler.

  Args:
    run: takes (weights, hidden, frozen, targets, mask).
    mesh: of all devices.
    frozen_specs: PartitionSpecs of `frozen`.
  """
  if mesh.shape['data'] == 1:
    return run
  rows = PartitionSpec('data')
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(PartitionSpec(), rows, frozen_specs, rows, rows),
    out_specs=rows,
    axis_names={'data'},
    check_vma=False,
  )
