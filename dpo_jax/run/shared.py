"""What several runs of one process have in common, made once.

Comes in: the config of a run, and how to make a thing. Goes out: the thing,
from the first run that asked for it. The compiled programs, the records and the
reference of runs that differ in traced numbers only are the same; a run of its
own has a fresh Shared, and shares with nobody.
"""

from collections.abc import Callable, Hashable
from typing import Any

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax.storage import files


class Shared:
  """Things by kind and key, of the latest graph only.

  Args:
    cache_dir: folder of token and score caches; None = as the config says.
    group: name of the runs together, for a tracker; '' = none.
    mesh: of every run; None = as its config says.
  """

  def __init__(
    self,
    cache_dir: files.AnyPath | None = None,
    group: str = '',
    mesh: Any = None,
  ):
    """Holds nothing yet."""
    self.cache_dir, self.group, self.mesh = cache_dir, group, mesh
    self._graph = ''
    self._kept: dict[tuple, Any] = {}

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
    graph = config_lib.graph(config)
    if graph != self._graph:
      self._graph = graph
      self._kept.clear()
    if (kind, key) not in self._kept:
      self._kept[kind, key] = make()
    return self._kept[kind, key]
