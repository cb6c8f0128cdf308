"""Preference losses: one file a family, one registry.

`names()` and `get(name)` list and find them; `make_objective` mixes them.
"""

from dpo_jax.losses import likelihood, pairwise
from dpo_jax.losses.objective import Objective, default_hyper, make_objective
from dpo_jax.losses.pairs import PairScores
from dpo_jax.losses.registry import (
  Loss,
  get,
  hyper_names,
  names,
  register,
  static_names,
)

__all__ = [
  'Loss',
  'Objective',
  'PairScores',
  'default_hyper',
  'get',
  'hyper_names',
  'likelihood',
  'make_objective',
  'names',
  'pairwise',
  'register',
  'static_names',
]
