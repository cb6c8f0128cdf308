"""What several runs of one process have in common, made once.

Comes in: the config of a run, and how to make a thing. Goes out: the thing,
from the first run that asked for it. The compiled programs, the records and the
reference of runs that differ in traced numbers only are the same; a run of its
own has a fresh Shared, and shares with nobody.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import types
from dpo_jax.storage import files

# Bytes of batches that the runs of a sweep keep for one another.
BATCH_BYTES = 256 * 2**20


class Shared:
  """Things by kind and key, of the latest graph only.

  Args:
    cache_dir: folder of token and score caches; None = as the config says.
    group: name of the runs together, for a tracker; '' = none.
    mesh: of every run; None = as its config says.
    batch_bytes: of batches to keep at most, on the host.
  """

  def __init__(
    self,
    cache_dir: files.AnyPath | None = None,
    group: str = '',
    mesh: Any = None,
    batch_bytes: int = 0,
  ):
    """Holds nothing yet."""
    self.cache_dir, self.group, self.mesh = cache_dir, group, mesh
    self._graph: tuple | None = None
    self._kept: dict[tuple, Any] = {}
    self._batches: dict[tuple, Any] = {}
    self._batch_bytes = self._room = batch_bytes

  def get(
    self,
    config: ConfigDict,
    kind: str,
    key: Hashable,
    make: Callable[[], Any],
  ) -> Any:
    """Returns what `make` returned for the first run that asked.

    Args:
      config: of the run. Another graph drops all that was kept: its arrays
        would fill the memory of the devices.
      kind: of the thing.
      key: all that it depends on, besides the graph of the config.
      make: makes it.
    """
    graph = (
      config_lib.graph(config),
      *config.mesh.values(),
      config.reference.offload,
    )
    if graph != self._graph:
      self._graph = graph
      self._kept.clear()
      self._batches.clear()
      self._room = self._batch_bytes
    if (kind, key) not in self._kept:
      self._kept[kind, key] = make()
    return self._kept[kind, key]

  def batch(
    self, sources: tuple, step: int, make: Callable[[], types.Batch]
  ) -> types.Batch:
    """Returns what `make` returned for the first run that asked, if kept.

    The first batches that fit into `batch_bytes` are kept: they are all of
    short runs, of which a sweep has many.

    Args:
      sources: the objects that a batch is made of, by identity.
      step: of the batch.
      make: makes it, as numpy arrays.
    """
    key = *map(id, sources), step
    if key in self._batches:
      return self._batches[key][1]
    made = make()
    size = sum(x.nbytes for x in jax.tree.leaves(made))
    if size <= self._room:
      self._room -= size
      # Sources that live on keep their ids.
      self._batches[key] = sources, made
    return made
