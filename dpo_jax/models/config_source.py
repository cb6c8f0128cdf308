"""Checked access to the keys of a config.json, one at a time.

Comes in: a parsed config.json and the defaults of absent keys. Goes out:
checked values, or an InputError that names file, key and value. Reads no file
and knows no family.
"""

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from dpo_jax import errors

_WORDS = {
  int: 'a positive integer',
  float: 'a positive number',
  bool: 'true or false',
  str: 'a string',
}
_LARGEST = 2**31 - 1
# Keys that may be absent or null: their values follow from other keys.
_OPTIONAL = ('head_dim', 'num_key_value_heads', 'n_inner')


class Source:
  """A config.json with its family's defaults."""

  def __init__(
    self, mapping: Mapping[str, Any], absent: Mapping[str, Any], where: str
  ):
    """`absent`: key -> its default; `where`: path of the file, for errors."""
    self.mapping, self.absent, self.where = mapping, absent, where

  def get(self, key: str) -> Any:
    """Returns the value unchecked; if absent, its default or None."""
    return self.mapping.get(key, self.absent.get(key))

  def read(self, key: str, kind: type, nullable: bool = False) -> Any:
    """Returns the value, checked; null stands for the default.

    Args:
      key: key of config.json.
      kind: int or float (both positive), bool or str.
      nullable: null is a value of its own and gives None.

    Raises:
      InputError: a missing key without a default, or a value of another kind.
    """
    value = self.get(key)
    if value is None:
      if nullable:
        return None
      value = self.absent.get(key)
      if value is None and key in _OPTIONAL:
        return None
    if value is None:
      raise errors.refuse(
        self.where,
        f'key {key!r} is missing',
        'use the file that came with the weights',
      )
    # Beyond what an array can hold; a longer integer has no float either.
    if type(value) is int and value > _LARGEST:
      self.refuse(key, f'must be at most {_LARGEST}')
    if kind is float and type(value) is int:
      value = float(value)
    # By exact type: a bool is an int to isinstance, and true is no width.
    if type(value) is not kind or (kind is int and value < 1):
      self.refuse(key, f'must be {_WORDS[kind]}')
    if kind is float and not 0 < value < math.inf:
      self.refuse(key, f'must be {_WORDS[kind]}')
    return value

  def objects(self, key: str) -> Mapping[str, Any]:
    """Returns the value, an object; {} if it is absent or null."""
    value = self.get(key) or {}
    if not isinstance(value, Mapping):
      self.refuse(key, 'must be an object')
    return value

  def refuse(self, key: str, fix: str) -> NoReturn:
    """Raises the InputError that refuses the value of a key."""
    raise errors.refuse(
      self.where, f'{key} = {errors.show(self.get(key))} cannot be used', fix
    )
