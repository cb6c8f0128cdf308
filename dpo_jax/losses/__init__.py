"""Preference losses: one file a family, one registry.

`names()` and `get(name)` list and find them, `option_names()` and
`get_option(name)` the options; `make_objective` mixes them.
"""

from dpo_jax.loss_rules import MIXES
from dpo_jax.losses import (
  absolute,
  likelihood,
  listwise,
  options,
  pairwise,
  reference_free,
  token_level,
  transport,
  unpaired,
)
from dpo_jax.losses.objective import Objective, default_hyper, make_objective
from dpo_jax.losses.pairs import PairScores
from dpo_jax.losses.registry import (
  Loss,
  Option,
  get,
  get_option,
  hyper_names,
  names,
  option_names,
  register,
  register_option,
  static_names,
)
from dpo_jax.losses.table import refresh_table, table
from dpo_jax.losses.views import LabelledScores, ListScores

__all__ = [
  'MIXES',
  'LabelledScores',
  'ListScores',
  'Loss',
  'Objective',
  'Option',
  'PairScores',
  'absolute',
  'default_hyper',
  'get',
  'get_option',
  'hyper_names',
  'likelihood',
  'listwise',
  'make_objective',
  'names',
  'option_names',
  'options',
  'pairwise',
  'reference_free',
  'refresh_table',
  'register',
  'register_option',
  'static_names',
  'table',
  'token_level',
  'transport',
  'unpaired',
]
