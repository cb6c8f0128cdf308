"""Preference losses: one file a family, one registry.

`names()` and `get(name)` list and find them, `option_names()` and
`get_option(name)` the options; `make_objective` mixes them.
"""

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
from dpo_jax.losses.table import table
from dpo_jax.losses.views import LabelledScores, ListScores

# Published mixes of terms, {name: ({term: weight}, source)}.
MIXES = {
  'rpo': (
    {'sigmoid': 1.0, 'nll': 1.0},
    'Pang et al. 2024, arXiv:2404.19733; Liu et al. 2024, arXiv:2405.16436',
  ),
  'mpo': (
    {'sigmoid': 0.8, 'bco_pair': 0.2, 'nll': 1.0},
    'Wang et al. 2024, arXiv:2411.10442',
  ),
}

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
  'register',
  'register_option',
  'static_names',
  'table',
  'token_level',
  'transport',
  'unpaired',
]
