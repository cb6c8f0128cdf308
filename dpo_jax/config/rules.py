"""Knobs and the rules of their values, each rule with its words.

Comes in: a default and limits. Goes out: a Knob, or the refusal of a value or
of a key. Knows no key: `knobs.py` names them. Combinations of values belong to
`check.py`.

A default of None or '' means "not set", and is allowed whatever the rule says.
"""

import datetime
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.config import hints
from dpo_jax.storage import files
from dpo_jax.types import InputError

# A device counts in 32 bits.
_INT_END = 2**31
# The least normal float32 (smaller ones count as 0), and the largest.
_LEAST, _MOST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
_MOST_COPIES = 10_000  # of a source, in a mixture
_FIRST = object()  # None and '' are defaults that a choice can have


class Rule(NamedTuple):
  """The allowed values of a knob."""

  allowed: str  # in words, to follow 'use'
  holds: Callable[[Any], bool]
  choices: tuple[str, ...] = ()  # for the nearest match


class Knob(NamedTuple):
  """One key of the config: its default, its rule, its type."""

  default: Any  # None = not set
  rule: Rule
  kind: type  # of its values; object = more than one type


def whole(
  default: int,
  *,
  least: int = 0,
  most: int = _INT_END - 1,
  zero: str = '',
  like: int = 0,
) -> Knob:
  """A whole number from `least`.

  Args:
    default: its default.
    least: its least value.
    most: its largest value, of a size that no machine has room for.
    zero: the meaning of 0, in words.
    like: an example; the default is one if it is above `least`.
  """
  example = like or (default if default > least else 0)
  words = f'a whole number >= {least}'
  words += f' and <= {most}' if most < _INT_END - 1 else ''
  words += f', e.g. {example}' if example else ''
  words += f' (0 = {zero})' if zero else ''
  return _knob(
    default, int, words, lambda v: type(v) is int and least <= v <= most
  )


def whole_or_auto(*, like: int) -> Knob:
  """'auto', its default, or a whole number from 0; `like` is an example."""
  return _knob(
    'auto',
    object,
    f"'auto' or a whole number >= 0, e.g. {like}",
    lambda v: v == 'auto' or (type(v) is int and 0 <= v < _INT_END),
  )


def seed(default: int) -> Knob:
  """A seed of a random number generator: an unsigned integer of 32 bits."""
  return _knob(
    default,
    int,
    'a whole number in [0, 2**32)',
    lambda v: type(v) is int and 0 <= v < 2**32,
  )


def num_parts(default: int) -> Knob:
  """The size of a mesh axis; -1 takes the devices that are left."""
  return _knob(
    default,
    int,
    'a whole number >= 1, or -1 for the rest',
    lambda v: type(v) is int and (v == -1 or v >= 1),
  )


def number(default: float | None) -> Knob:
  """Any finite number."""
  return _knob(default, float, 'a finite number', _is_number)


def above(default: float | None, low: float, *, like: float = 0) -> Knob:
  """A number above `low`; `like` is an example, else the default is."""
  words = f'a number > {low:g}, e.g. {like or default:g}'
  return _knob(default, float, words, lambda v: _is_number(v) and v > low)


def at_least(default: float | None, low: float, *, zero: str = '') -> Knob:
  """A number from `low`; `zero` is the meaning of 0, in words."""
  words = f'a number >= {low:g}{f" (0 = {zero})" if zero else ""}'
  return _knob(default, float, words, lambda v: _is_number(v) and v >= low)


def within(default: float | None, low: float, high: float) -> Knob:
  """A number in [low, high)."""
  return _knob(
    default,
    float,
    f'a number in [{low:g}, {high:g})',
    lambda v: _is_number(v) and low <= v < high,
  )


def share(default: float) -> Knob:
  """A number in (0, 1]."""
  return _knob(
    default,
    float,
    'a number in (0, 1]',
    lambda v: _is_number(v) and 0 < v <= 1,
  )


def flag(default: bool | None) -> Knob:
  """True or False."""
  return _knob(default, bool, 'true or false', lambda v: type(v) is bool)


def choice(*choices: Any, default: Any = _FIRST) -> Knob:
  """One of some words; the first is the default unless another is given."""
  default = choices[0] if default is _FIRST else default
  words = f'one of {", ".join(choices)}'
  knob = _knob(default, type(choices[0]), words, choices.__contains__)
  return knob._replace(rule=knob.rule._replace(choices=choices))


def text(words: str) -> Knob:
  """A text of any form, such as a path; '' by default."""
  return _knob('', str, words, lambda v: isinstance(v, str))


def folder(words: str = 'a folder') -> Knob:
  """The path of a folder; '' by default."""
  return text(words)


def json_text(example: str) -> Knob:
  """A JSON object as text; '' by default, the empty one."""
  return _knob(
    '',
    str,
    f'a JSON object, e.g. {example}',
    lambda v: isinstance(v, str) and files.parse_object(v) is not None,
  )


def steps() -> Knob:
  """A range of updates as text; '' by default, none."""
  return _knob(
    '', str, "updates as 10:15, or ''", lambda v: v == '' or _is_range(v)
  )


def day(default: str) -> Knob:
  """A date; load.load replaces 'today'."""
  return _knob(default, str, "a date as 2024-07-26, or 'today'", _is_date)


def name(default: str, words: str) -> Knob:
  """One name, without a comma."""
  return _knob(
    default,
    str,
    words,
    lambda v: isinstance(v, str) and len(split_names(v)) == 1,
  )


def names(words: str) -> Knob:
  """One or more names, as 'a,b' or a tuple; '' by default."""

  def holds(value: Any) -> bool:
    if not isinstance(value, str | tuple) or not split_names(value):
      return False
    return all(isinstance(part, str) for part in split_names(value))

  return _knob('', object, words, holds)


def numbers(words: str) -> Knob:
  """Numbers from 0, as '1,0.5', one number or a tuple; '' by default."""

  def holds(value: Any) -> bool:
    try:
      return all(0 <= n <= _MOST_COPIES for n in split_numbers(value))
    except (TypeError, ValueError):
      return False

  return _knob('', object, words, holds)


def required(knob: Knob) -> Knob:
  """The knob with its default refused: an experiment has to set it."""
  holds = knob.rule.holds
  rule = knob.rule._replace(holds=lambda v: v != knob.default and holds(v))
  return knob._replace(rule=rule)


def flatten(config: ConfigDict) -> dict[str, Any]:
  """{dotted key: value} of every leaf; an empty section has no leaf."""
  leaves = files.flatten(config).items()
  return {key: v for key, v in leaves if not isinstance(v, ConfigDict)}


def split_names(value: str | tuple[str, ...]) -> tuple[str, ...]:
  """Returns a tuple as it is, and the parts of a text between its commas."""
  if isinstance(value, str):
    return tuple(part.strip() for part in value.split(',') if part.strip())
  return tuple(value)


def split_numbers(value: Any) -> tuple[float, ...]:
  """Returns the numbers of a tuple or of a text; ValueError for a word."""
  parts = value.split(',') if isinstance(value, str) else value
  parts = [parts] if isinstance(parts, int | float) else parts
  return tuple(float(part) for part in parts if part != '')


def in_float32(value: float) -> bool:
  """Returns whether a number is 0, or neither 0 nor infinite in float32."""
  return value == 0 or _LEAST <= abs(value) <= _MOST


def refused(key: str, value: Any, rule: Rule) -> InputError:
  """The refusal of a value that breaks its knob's rule."""
  hint = errors.did_you_mean(value, rule.choices)
  why = 'is not allowed'
  if type(value) is int and value >= _INT_END:
    why += ', it is more than 32 bits count'
  elif type(value) in (int, float) and math.isfinite(value):
    why += '' if in_float32(value) else ', it is 0 or infinite in float32'
  return errors.refuse(
    f'config.{key}',
    f'{errors.show(value, 100)} {why}',
    f'{hint}use {rule.allowed}',
  )


def unknown_key(key: str, known: Mapping[str, Any]) -> InputError:
  """The refusal of a key that no knob has; `known` holds those that exist."""
  section = sorted(k for k in known if k.startswith(f'{key}.'))
  if section:
    more = f' and {len(section) - 40} more' if len(section) > 40 else ''
    return errors.refuse(
      f'config.{key}',
      'is a section, not a value',
      f'set one of its keys: {", ".join(section[:40])}{more}',
    )
  hint = hints.key(key, known)
  if not hint:
    # Nothing is close: list the keys of its section, or else the sections.
    parent = key.rpartition('.')[0]
    keys = [k for k in known if k.startswith(f'{parent}.')]
    keys = keys or dict.fromkeys(k.partition('.')[0] for k in known)
    hint = f'there are {", ".join(sorted(keys))}'
  return errors.refuse(f'config.{key}', 'no such key', hint)


def _knob(
  default: Any, kind: type, words: str, holds: Callable[[Any], bool]
) -> Knob:
  """A knob whose unset default (None or '') is allowed beside its rule."""
  if default is None:
    return Knob(None, Rule(words, lambda v: v is None or holds(v)), kind)
  if default == '':
    return Knob('', Rule(words, lambda v: v == '' or holds(v)), kind)
  return Knob(default, Rule(words, holds), kind)


def _is_date(value: Any) -> bool:
  try:
    return datetime.date.fromisoformat(value).isoformat() == value
  except (TypeError, ValueError):
    return False


def _is_number(value: Any) -> bool:
  # isinstance would take True for 1; NaN and infinity are floats, too.
  is_finite = type(value) in (int, float) and math.isfinite(value)
  return is_finite and in_float32(value)


def _is_range(value: Any) -> bool:
  if not isinstance(value, str) or not re.fullmatch(r'\d{1,9}:\d{1,9}', value):
    return False
  first, last = map(int, value.split(':'))
  return first < last
