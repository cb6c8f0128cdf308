"""Groups -> row labels: the differences between configs, in few words.

Comes in: the configs of groups of runs (nested dicts). Goes out: the config
keys that tell the groups apart, their short names, and each group's values as
text; the labels of losses are those of their registry. Knows nothing of
metrics.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.losses import catalogue
from dpo_jax.results import collect, options
from dpo_jax.storage import files
from dpo_jax.types import InputError

# Up to so many differing keys, each is a column; beyond, only as many as tell
# the groups apart.
MAX_COLUMNS = 5
ABSENT = '-'
# A mapping that is one value: shown as a sum.
_LEAVES = ('loss.terms',)
_NAMES = {'loss.terms': 'Loss'}
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
  implied: tuple[str, ...] = ()  # keys that differ as the losses' defaults do


def make_labels(
  groups: Sequence[collect.Group], keys: Sequence[str] | None = None
) -> Labels:
  """Labels for groups, in their order.

  A single group differs from nothing: its label is its run's folder.

  Args:
    groups: at least one.
    keys: the columns, as dotted config keys; None takes those in which groups
      differ, without those that follow from the loss.
  """
  if len(groups) == 1 and keys is None:
    path = groups[0].runs[0].path
    return Labels((), ('run',), ((path.name,),), None, ())
  flat = [settings(group.runs[0].config) for group in groups]
  # In the order of the configs.
  all_keys = list(dict.fromkeys(key for config in flat for key in config))
  all_keys = [key for key in all_keys if key != 'seed']
  # repr tells 1 from true and from '1'.
  differing = [
    key
    for key in all_keys
    if len({repr(config.get(key, ABSENT)) for config in flat}) > 1
  ]
  implied = _implied(differing, flat)
  if keys is None:
    keys = _choose([key for key in differing if key not in implied], flat)
  columns = [
    texts_of([config.get(key, ABSENT) for config in flat]) for key in keys
  ]
  return Labels(
    tuple(keys),
    tuple(_NAMES.get(key) or _short(key, all_keys) for key in keys),
    tuple(zip(*columns)) if keys else ((),) * len(groups),
    _numbers(flat, keys),
    tuple(key for key in differing if key not in (*keys, *implied)),
    tuple(key for key in implied if key not in keys),
  )


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """{dotted key: value} of what numbers depend on, in the config's order.

  A key that one config has and another lacks is at its default there.
  """
  given = files.flatten(config, keep=_LEAVES)
  counted = collect.counted(config)
  order = [*(key for key in given if key in counted), *counted]
  return {key: given.get(key, counted[key]) for key in dict.fromkeys(order)}


def resolve(name: str, known: Iterable[str], where: str) -> str:
  """The config key of a name: dotted, its last parts, or `loss`.

  Args:
    name: as a user writes it.
    known: dotted keys.
    where: the flag, for messages.

  Raises:
    InputError: no such key, or several that end so.
  """
  known = list(dict.fromkeys(known))
  if name in known:
    return name
  if name.lower() == 'loss':
    return 'loss.terms'
  fitting = [key for key in known if f'.{key}'.endswith(f'.{name}')]
  if len(fitting) == 1:
    return fitting[0]
  if fitting:
    problem = f'{name!r} is the end of several keys'
    raise errors.refuse(where, problem, f'use {" or ".join(fitting)}')
  short = [key.rpartition('.')[2] for key in known]
  raise errors.refuse(
    where,
    f'{name!r} is no config key of these runs',
    f'{errors.did_you_mean(name, [*short, *known])}use a key of config.json, '
    'such as loss, beta or optim.learning_rate',
  )


def unclear(
  names: Sequence[str], label: Sequence[str], more: Sequence[str]
) -> InputError:
  """The error of two rows with one label.

  Args:
    names: of the columns.
    label: of the rows.
    more: keys in which rows differ besides.
  """
  return errors.refuse(
    '--columns',
    f'several rows are {joined(names, label) or "without a label"}',
    f'name another column, such as {", ".join(more[:3]) or "beta"}',
  )


def joined(names: Sequence[str], label: Sequence[str]) -> str:
  """A label as 'Loss=IPO, beta=0.1'."""
  return ', '.join(f'{name}={value}' for name, value in zip(names, label))


def matches(value: Any, text: str) -> bool:
  """Whether a config value is what a user wrote: DPO, sigmoid, .1, hh.jsonl."""
  texts = {value_text(value), options.as_text(value)}
  if isinstance(value, Mapping):  # loss.terms
    texts |= {loss_label(value), '+'.join(value)}
  if isinstance(value, str):
    texts.add(value.rstrip('/').rpartition('/')[2])
  if text in texts:
    return True
  try:
    return type(value) in (int, float) and float(text) == value
  except ValueError:
    return False


def loss_label(terms: Mapping[str, float]) -> str:
  """The label of the registry, such as DPO; weights in front of the terms."""
  losses = catalogue.read()
  parts = []
  for name, weight in terms.items():
    label = losses[name].label if name in losses else name
    parts.append(label if weight == 1 else f'{value_text(weight)} {label}')
  return ' + '.join(parts) or 'none'


def ordered(groups: Sequence[collect.Group]) -> list[collect.Group]:
  """Groups in order of argument; below one argument, in order of label."""
  labels = make_labels(groups)
  rank = {
    id(group): (
      min(run.order for run in group.runs),
      # SFT comes before the runs that start from it.
      [(value != 'sft', natural(value)) for value in values],
    )
    for group, values in zip(groups, labels.values)
  }
  return sorted(groups, key=lambda group: rank[id(group)])


def _implied(differing: list[str], flat: list[dict]) -> list[str]:
  """Keys that follow from the row's losses.

  Those of losses that have everywhere the default of the row's losses; and the
  mode of the reference, where it is 'none' just for losses that read none.
  """
  if 'loss.terms' not in differing:
    return []
  modes = [config.get('reference.mode') for config in flat]
  reads = [_reads_reference(config) for config in flat]
  own = {mode for mode, is_read in zip(modes, reads) if is_read}
  follows = len(own) == 1 and all(
    is_read or mode == 'none' for mode, is_read in zip(modes, reads)
  )
  defaults = [_defaults(config) for config in flat]
  return [key for key in differing if key == 'reference.mode' and follows] + [
    key
    for key in differing
    if key.startswith('loss.')
    and key not in ('loss.terms', *_options())
    and all(
      config.get(key) == default.get(key)
      for config, default in zip(flat, defaults)
    )
  ]


def _reads_reference(config: dict) -> bool:
  """Whether a loss of the row needs the reference; True if one is unknown."""
  known = catalogue.read()
  terms = config.get('loss.terms') or {}
  return any(
    name not in known or 'reference' in known[name].needs for name in terms
  )


def _defaults(config: dict) -> dict[str, Any]:
  """The keys of losses, if only the losses and the options are given."""
  given = {'loss.terms': config.get('loss.terms')}
  given |= {key: config.get(key) for key in _options()}
  loss = {key.removeprefix('loss.'): value for key, value in given.items()}
  return settings({'loss': loss})


@functools.cache
def _options() -> tuple[str, ...]:
  return tuple(f'loss.{name}' for name in catalogue.read_options())


def _choose(differing: list[str], flat: list[dict]) -> list[str]:
  """All keys if few, else as many as tell the groups apart; by importance."""
  order = sorted(differing, key=_importance)
  if len(differing) <= MAX_COLUMNS:
    return order
  chosen, num_distinct = [], 1
  for key in order:
    rows = {
      tuple(repr(config.get(each, ABSENT)) for each in [*chosen, key])
      for config in flat
    }
    if len(rows) > num_distinct:
      chosen, num_distinct = [*chosen, key], len(rows)
  return chosen


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


def texts_of(values: list[Any]) -> list[str]:
  """Values of one key as text; paths by last part, if those differ."""
  texts = [value_text(value) for value in values]
  # Paths are long; their last part is enough if it tells as many apart.
  if all('/' in text or text in (ABSENT, 'none') for text in texts):
    last = [text.rstrip('/').split('/')[-1] for text in texts]
    if len(set(last)) == len(set(texts)):
      return last
  return texts


def value_text(value: Any) -> str:
  """A config value as labels write it."""
  if value is None or isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    return f'{value:.12g}'
  if isinstance(value, list):
    return ', '.join(value_text(item) for item in value)
  if isinstance(value, dict):  # loss.terms: name -> weight
    return loss_label(value)
  return ' '.join(str(value).split())


def _numbers(flat: list[dict], keys: list[str]) -> tuple[float, ...] | None:
  """Values of the only key as numbers; None if there are more, or texts."""
  if len(keys) != 1:
    return None
  values = [config.get(keys[0]) for config in flat]
  if any(type(value) not in (int, float) for value in values):
    return None
  return tuple(float(value) for value in values)


def natural(text: str) -> list[tuple]:
  """Sort key in which 0.05 < 0.1 and run2 < run10."""
  # Every second part is a number.
  parts = re.split(r'(\d+(?:\.\d+)?(?:e[-+]?\d+)?)', text)
  return [
    (0, float(part), '') if index % 2 else (1, 0.0, part)
    for index, part in enumerate(parts)
    if part
  ]
