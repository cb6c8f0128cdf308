"""One key of a config.json at a time, with its default and its message.

Comes in: a parsed config.json and what absent keys mean. Goes out: checked
values, or an InputError that names file, key and value. Reads no file.
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
# May be left out: they follow from other keys.
_OPTIONAL = ('head_dim', 'num_key_value_heads', 'n_inner')


class Source:
  """A config.json and the family's defaults."""

  def __init__(
    self, mapping: Mapping[str, Any], absent: Mapping[str, Any], where: str
  ):
    """`absent`: key -> what its absence means; `where`: path of the file."""
    self.mapping, self.absent, self.where = mapping, absent, where

  def get(self, key: str) -> Any:
    """The value as it stands; its default, or None, where there is none."""
    return self.mapping.get(key, self.absent.get(key))

  def read(self, key: str, kind: type, nullable: bool = False) -> Any:
    """The value, checked; a null is the default.

    Args:
      key: of config.json.
      kind: int and float (both positive), bool or str.
      nullable: a null is a value, and stays None.
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
        'use the config.json that came with the weights',
      )
    if kind is float and type(value) is int:
      value = float(value)
    if type(value) is not kind or (kind is int and value < 1):
      self.refuse(key, f'must be {_WORDS[kind]}')
    if kind is float and not 0 < value < math.inf:
      self.refuse(key, f'must be {_WORDS[kind]}')
    return value

  def objects(self, key: str) -> Mapping[str, Any]:
    """The value, which is an object or absent."""
    value = self.get(key) or {}
    if not isinstance(value, Mapping):
      self.refuse(key, 'must be an object')
    return value

  def refuse(self, key: str, fix: str) -> NoReturn:
    """Raises the InputError of a key."""
    raise errors.refuse(
      self.where, f'{key} = {self.get(key)!r} cannot be used', fix
    )
