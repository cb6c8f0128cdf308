"""Preference losses: families, registry, objective, options and their rules.

`names()` and `get(name)` list and find losses, `option_names()` and
`get_option(name)` options; `make_objective` mixes them. The families, and jax
with them, are imported on first use: `dpo_jax.losses.rules` and `.catalogue`
import without jax, so that a refusal does not wait for it.

To read: pairwise.py shows a loss, views.py what it reads, objective.py how
losses and options become one number. records.py has the words of
`@register(...)`, rules.py what may be combined.
"""

import importlib

# The files with registered functions.
FAMILIES = (
  'absolute',
  'adaptive',
  'batch_options',
  'classifier',
  'likelihood',
  'listwise',
  'options',
  'pairwise',
  'quantile',
  'reference_free',
  'token_level',
  'transport',
  'unlearning',
  'unpaired',
)
# {public name: the module that has it}
_HOMES = {
  'get': 'registry',
  'get_option': 'registry',
  'names': 'registry',
  'option_names': 'registry',
  'register': 'registry',
  'register_option': 'registry',
  'Loss': 'records',
  'Option': 'records',
  'hyper_names': 'catalogue',
  'MIXES': 'rules',
  'Objective': 'objective',
  'default_hyper': 'objective',
  'make_objective': 'objective',
  'PairScores': 'views',
  'LabelledScores': 'views',
  'ListScores': 'views',
  'refresh_table': 'table',
  'table': 'table',
}

__all__ = [*FAMILIES, *_HOMES]  # noqa: PLE0604


def __getattr__(name: str):
  """Imports a family, or a public name from its home, on first use."""
  if name in FAMILIES:
    return importlib.import_module(f'{__name__}.{name}')
  if name in _HOMES:
    home = importlib.import_module(f'{__name__}.{_HOMES[name]}')
    return getattr(home, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
