"""Preference optimisation research in JAX.

`open_policy(RUN or FOLDER)` gives a model with `score` and `sample`, and
`read_run(RUN)` the metrics and per-example scores of a run as arrays.
`Search(EXPERIMENT, FOLDER)` trains the points of a sweep one by one. They are
imported on use: importing the package imports no jax.
"""

import importlib
from typing import Any

_HOMES = {
  'Search': 'sweeps.search',
  'open_policy': 'run.policy',
  'read_run': 'results.arrays',
}


def __getattr__(name: str) -> Any:
  """Imports a public function on its first use."""
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_HOMES[name]}')
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_HOMES])
