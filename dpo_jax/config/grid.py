"""Lists of settings -> the points of an experiment's `sweep()`.

Comes in: {dotted key: values}, or points. Goes out: points, each `(argument of
the experiment, {dotted key: value})`. The key 'arg' stands for the argument.
Checks no key: loading the point's config does.
"""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

Setting = tuple[str, dict[str, Any]]  # (argument, {dotted key: value})


def product(
  *parts: Mapping[str, Iterable] | Iterable[Setting],
) -> list[Setting]:
  """Returns every combination of the parts, the last one varying fastest.

  Args:
    *parts: {key: values}, which gives every combination of its values; or
      points, such as those of `zipped`.
  """
  lists = []
  for part in parts:
    if not isinstance(part, Mapping):
      lists.append(list(part))
      continue
    lists += [
      [_setting({key: value}) for value in values]
      for key, values in part.items()
    ]
  return [_joined(combination) for combination in itertools.product(*lists)]


def zipped(values: Mapping[str, Iterable]) -> list[Setting]:
  """Returns the first value of each key, then the second of each, and so on.

  Raises:
    ValueError: the keys have unequal numbers of values.
  """
  columns = {key: list(column) for key, column in values.items()}
  rows = zip(*columns.values(), strict=True)
  return [_setting(dict(zip(columns, row))) for row in rows]


def chain(*parts: Iterable[Setting]) -> list[Setting]:
  """Returns the points of one part after those of the other."""
  return list(itertools.chain(*parts))


def _setting(values: dict[str, Any]) -> Setting:
  rest = {key: value for key, value in values.items() if key != 'arg'}
  return str(values.get('arg', '')), rest


def _joined(settings: Iterable[Setting]) -> Setting:
  """One point of several: arguments with commas between, all values."""
  arguments, values = [], {}
  for argument, own in settings:
    arguments += [argument] if argument else []
    values |= own
  return ','.join(arguments), values
