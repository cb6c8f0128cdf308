"""Two versions of a file -> the values that differ, by name.

Comes in: texts or plain values, as they are and as they follow from the runs.
Goes out: (name, what is there, what follows). Reads no files.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from dpo_jax import errors

# Fields by which an entry of a list is known to a reader.
_NAMES = ('row', 'minus', 'column', 'metric', 'when', 'label', 'name', 'scope')
_LONGEST = 120  # characters of a value in a line


def of_values(old: Any, new: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
  """Yields (names from the outside, what is there, what follows).

  Args:
    old: plain values, as JSON has them.
    new: the same, made again.
  """
  before, now = dict(_leaves(old)), dict(_leaves(new))
  labels = _labels(new)
  for key in dict.fromkeys([*before, *now]):
    # 1 and 1.0 are one number of JSON; 1 and true are not.
    one, two = before.get(key), now.get(key)
    if one != two or isinstance(one, bool) != isinstance(two, bool):
      yield tuple(labels.get(key[:n], key[n - 1]) for n in _to(key)), one, two


def of_lines(
  old: str, new: str, separator: str
) -> Iterator[tuple[int, str, str, str]]:
  """Yields (number of the line, its label, what is there, what follows).

  Args:
    old: a table as text.
    new: the same, made again.
    separator: between the fields of a line. The first field that differs tells
      more than the line.
  """
  lines = old.split('\n')
  pairs = itertools.zip_longest(lines, new.split('\n'), fillvalue='')
  for number, (has, gives) in enumerate(pairs, 1):
    if has == gives:
      continue
    fields = has.split(separator)
    label = next((part.strip() for part in fields if part.strip()), '')
    parts = [
      (one.strip(), two.strip())
      for one, two in itertools.zip_longest(
        fields, gives.split(separator), fillvalue=''
      )
      if one.strip() != two.strip()
    ]
    yield number, label, *(parts[0] if parts else (has, gives))


def show(value: Any) -> str:
  """A value in a line."""
  if value is None:
    return 'nothing'
  return errors.show(value, _LONGEST)


def _to(key: tuple) -> range:
  return range(1, len(key) + 1)


def _leaves(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
  """Yields (names from the outside, value) of all plain values."""
  if isinstance(value, dict | list):
    for key, each in _items(value):
      yield from _leaves(each, (*path, key))
    if not value:
      yield path, 'empty'
  else:
    yield path, value


def _labels(value: Any, path: tuple = ()) -> dict[tuple, str]:
  """What the entries of lists are called, by their names from the outside."""
  labels = {}
  if isinstance(value, dict | list):
    for key, each in _items(value):
      labels |= _labels(each, (*path, key))
      if isinstance(value, list) and isinstance(each, dict):
        words = [each[n] for n in _NAMES if isinstance(each.get(n), str)]
        if words:
          labels[*path, key] = f'{key} ({", ".join(words)})'
  return labels


def _items(value: dict | list) -> Iterator[tuple[str, Any]]:
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, each in items:
    yield str(key), each
