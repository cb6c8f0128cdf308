"""Groups -> row labels: the differences between configs, in few words.

Comes in: the configs of groups of runs (nested dicts). Goes out: the config
keys that tell the groups apart, their short names, and each group's values as
text. Knows nothing of metrics.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from dpo_jax.results import collect
from dpo_jax.storage import files

# Up to so many differing keys, each is a column; beyond, only as many as tell
# the groups apart.
MAX_COLUMNS = 5
ABSENT = '-'
# A mapping that is one value: shown as a sum.
_LEAVES = ('loss.terms',)
# Keys and sections that say most about a run, first to be chosen.
_PRIORITY = (
  'stage',
  'loss.terms',
  'loss',
  'model',
  'reference',
  'adapter',
  'optim',
  'data',
)


class Labels(NamedTuple):
  """The label columns of a table."""

  keys: tuple[str, ...]  # dotted config keys that are columns
  names: tuple[str, ...]  # their short names
  values: tuple[tuple[str, ...], ...]  # per group, one text per column
  numbers: tuple[float, ...] | None  # the only column's values, if numeric
  left_out: tuple[str, ...]  # keys that differ too, but tell no more apart


def make_labels(groups: Sequence[collect.Group]) -> Labels:
  """Labels for groups, in their order.

  A single group differs from nothing: its label is its run's folder.
  """
  if len(groups) == 1:
    path = groups[0].runs[0].path
    return Labels((), ('run',), ((path.name,),), None, ())
  given = [
    files.flatten(group.runs[0].config, keep=_LEAVES) for group in groups
  ]
  # A key that one config has and another lacks is at its default there.
  counted = [collect.counted(group.runs[0].config) for group in groups]
  flat = [
    {key: own.get(key, value) for key, value in full.items()}
    for own, full in zip(given, counted)
  ]
  all_keys = list(dict.fromkeys(key for config in given for key in config))
  all_keys = [
    key for key in all_keys if key != 'seed' and any(key in c for c in flat)
  ]
  # repr tells 1 from true and from '1'.
  differing = [
    key
    for key in all_keys
    if len({repr(config.get(key, ABSENT)) for config in flat}) > 1
  ]
  keys = _choose(differing, flat)
  columns = [
    _texts([config.get(key, ABSENT) for config in flat]) for key in keys
  ]
  return Labels(
    tuple(keys),
    tuple(_short(key, all_keys) for key in keys),
    tuple(zip(*columns)),
    _numbers(flat, keys),
    tuple(key for key in differing if key not in keys),
  )


def ordered(groups: Sequence[collect.Group]) -> list[collect.Group]:
  """Groups in order of argument; below one argument, in order of label."""
  labels = make_labels(groups)
  rank = {
    id(group): (
      min(run.order for run in group.runs),
      # SFT comes before the runs that start from it.
      [(value != 'sft', _natural(value)) for value in values],
    )
    for group, values in zip(groups, labels.values)
  }
  return sorted(groups, key=lambda group: rank[id(group)])


def _choose(differing: list[str], flat: list[dict]) -> list[str]:
  """All keys if few; else important ones first, until all groups differ."""
  if len(differing) <= MAX_COLUMNS:
    return differing
  order = sorted(differing, key=_importance)
  chosen, num_distinct = [], 1
  for key in order:
    rows = {
      tuple(repr(config.get(each, ABSENT)) for each in [*chosen, key])
      for config in flat
    }
    if len(rows) > num_distinct:
      chosen, num_distinct = [*chosen, key], len(rows)
  return [key for key in differing if key in chosen]


def _importance(key: str) -> int:
  head = key if key in _PRIORITY else key.split('.')[0]
  return _PRIORITY.index(head) if head in _PRIORITY else len(_PRIORITY)


def _short(key: str, all_keys: list[str]) -> str:
  """The shortest dotted ending of `key` that no other config key has."""
  parts = key.split('.')
  for start in range(len(parts) - 1, 0, -1):
    ending = '.'.join(parts[start:])
    others = [
      other
      for other in all_keys
      if other != key and f'.{other}'.endswith(f'.{ending}')
    ]
    if not others:
      return ending
  return key


def _texts(values: list[Any]) -> list[str]:
  """Values of one key as text; paths by last part, if those differ."""
  texts = [_text(value) for value in values]
  # Paths are long; their last part is enough if it tells as many apart.
  if all('/' in text or text in (ABSENT, 'none') for text in texts):
    last = [text.rstrip('/').split('/')[-1] for text in texts]
    if len(set(last)) == len(set(texts)):
      return last
  return texts


def _text(value: Any) -> str:
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    return f'{value:.12g}'
  if isinstance(value, list):
    return ', '.join(_text(item) for item in value)
  if isinstance(value, dict):  # loss.terms: name -> weight
    terms = [
      name if weight == 1 else f'{_text(weight)} {name}'
      for name, weight in value.items()
    ]
    return ' + '.join(terms) or 'none'
  return ' '.join(str(value).split())


def _numbers(flat: list[dict], keys: list[str]) -> tuple[float, ...] | None:
  """Values of the only key as numbers; None if there are more, or texts."""
  if len(keys) != 1:
    return None
  values = [config.get(keys[0]) for config in flat]
  if any(type(value) not in (int, float) for value in values):
    return None
  return tuple(float(value) for value in values)


def _natural(text: str) -> list[tuple]:
  """Sort key in which 0.05 < 0.1 and run2 < run10."""
  # Every second part is a number.
  parts = re.split(r'(\d+(?:\.\d+)?(?:e[-+]?\d+)?)', text)
  return [
    (0, float(part), '') if index % 2 else (1, 0.0, part)
    for index, part in enumerate(parts)
    if part
  ]
