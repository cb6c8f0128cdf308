"""column -> checked value: one row of a data file, read column by column.

Comes in: a row's columns and where it was found. Goes out: the value of one
column, or a types.InputError that names the column, the problem and the fix.
Does not know which columns belong together: see formats.py.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.sources import conversations, foreign
from dpo_jax.types import InputError

MAX_NUMBER = 1e38  # numbers and their differences must fit in float32
_MAX_TOKEN = 2**31 - 1

# Takes (value, column name, where); returns the checked value.
Reader = Callable[[Any, str, str], Any]


class Row(NamedTuple):
  """One row, whose columns are checked when they are read."""

  columns: dict[str, Any]
  where: str  # `path:line` or `source[index]`, for messages
  known: frozenset[str]  # columns of all formats: none of them is misspelt

  def __contains__(self, key: str) -> bool:
    """Whether the row has the column, with a value that is not null."""
    return self.columns.get(key) is not None

  def get(self, key: str) -> Any:
    """Returns the column's value, which must not be null."""
    value = self.columns.get(key)
    if value is not None:
      return value
    if key in self.columns:
      raise self.refuse(
        f'{key!r} is null', f'give {key!r} a value, or drop the row'
      )
    raise self.refuse(*missing(key, self.columns, self.known))

  def read(self, key: str, reader: Reader) -> Any:
    """Returns the column's value as `reader` checks it."""
    return reader(self.get(key), key, self.where)

  def text(self, key: str) -> str:
    """Returns a string, which may be empty."""
    return self.read(key, conversations.text)

  def messages(self, key: str) -> conversations.Messages:
    """Returns a list of messages as a tuple."""
    return self.read(key, conversations.messages)

  def number(self, key: str) -> float:
    """Returns a finite number."""
    return self.read(key, number)

  def each(self, key: str, reader: Reader) -> tuple[Any, ...]:
    """Returns the elements of a list that is not empty, each checked."""
    value = self.get(key)
    if not isinstance(value, list) or not value:
      raise errors.wrong_type(
        key, value, 'a list that is not empty', self.where
      )
    return tuple(
      reader(element, f'{key}[{i}]', self.where)
      for i, element in enumerate(value)
    )

  def refuse(self, problem: str, fix: str) -> InputError:
    """Returns the error that refuses this row."""
    return errors.refuse(self.where, problem, fix)


def number(value: Any, key: str, where: str) -> float:
  """Checks a finite number."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.wrong_type(key, value, 'a number', where)
  # Written so that NaN, for which both comparisons are false, is refused too.
  if not -MAX_NUMBER <= value <= MAX_NUMBER:
    raise errors.refuse(
      where,
      f'{key!r} is {errors.show(value)}, not a finite number',
      f'give a finite number within {MAX_NUMBER:g}, or drop the row',
    )
  return float(value)


def token_ids(value: Any, key: str, where: str) -> tuple[int, ...]:
  """Checks a list of token ids, which may be empty."""
  if not isinstance(value, list):
    raise errors.wrong_type(key, value, 'a list of token ids', where)
  for i, token in enumerate(value):
    # Not isinstance: True is an int in Python, and no token id.
    if type(token) is not int or not 0 <= token <= _MAX_TOKEN:
      raise errors.wrong_type(f'{key}[{i}]', token, 'an int from 0', where)
  return tuple(value)


def misspelt(
  name: str, keys: Iterable[str], known: frozenset[str], cutoff: float = 0.8
) -> str:
  """Returns the unknown column that was most likely meant as `name`, or ''."""
  return errors.nearest(name, [k for k in keys if k not in known], cutoff)


def missing(
  name: str, keys: Iterable[str], known: frozenset[str], cutoff: float = 0.6
) -> tuple[str, str]:
  """Returns (problem, fix) for a column that is missing.

  Args:
    name: the missing column.
    keys: the columns that the row has.
    known: columns of all formats: none of them is misspelt.
    cutoff: how alike a misspelt one must be.
  """
  problem = f'key {name!r} is missing'
  key = misspelt(name, keys, known, cutoff)
  suggested = foreign.suggestion(keys)
  # Names such as 'rejected_response' are another trainer's, not misspelt.
  if key and f'={key}' not in suggested:
    return problem, (
      f'did you mean {name!r} by {key!r}? rename {key!r} to {name!r}'
    )
  hint = (
    f'set {foreign.KEY}={suggested} if that is it, or ' if suggested else ''
  )
  return problem, f'{hint}add {name!r} to this row'
