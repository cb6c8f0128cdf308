"""work -> budget: the time and memory that one rendering may take.

Comes in: the sizes of what a chat template computes. Goes out: nothing, or
LimitError once the template has asked for more than any chat needs. Knows no
template and no operation: costs.py says what an operation costs.

Work is measured in units: one is a character that is copied or compared, STEP
of them are a turn of a loop or a call. A value's weight is an upper estimate of
its characters. A list that occurs twice in a list weighs twice, since every
operation of Python walks through it twice: 60 lists, each holding the one
before it two times, weigh 2**60.
"""

from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any

import jinja2

MAX_CHARS = 10_000_000  # characters of a string, and of the rendering
MAX_ITEMS = 500_000  # items of a list, including those of its items
MAX_STEPS = 1_000_000  # turns of loops, calls, and characters / STEP
MAX_BITS = 4096  # bits of an integer
MAX_DEPTH = 200  # lists in lists: tuples of more overflow the stack of hash()
STEP = 64  # units of a step
ITEM = MAX_CHARS // MAX_ITEMS  # units of an item of a list

SCALARS = frozenset([int, float, bool, type(None)])
VIEWS = (KeysView, ValuesView, ItemsView)
# Lighter containers are weighed anew each time: keeping them costs more.
_KEEP = 16 * ITEM


class LimitError(jinja2.TemplateRuntimeError):
  """The template asks for more time or memory than a chat can need."""


class Budget:
  """Counts the work of one rendering."""

  def __init__(self, steps: int = MAX_STEPS):
    self.left = steps * STEP  # units
    # Weight and height of containers, by id. The container is kept as well:
    # its id stays its own. The sandbox lets no template change one.
    self._weighed: dict[int, tuple[Any, int, int]] = {}

  def spend(self, units: int = 0) -> None:
    """Counts one step, and more units of work."""
    self.left -= STEP + units
    if self.left < 0:
      raise LimitError(f'the template takes more than {MAX_STEPS} steps')

  def bound(self, size: int) -> None:
    """Refuses a text or list of this size, in characters, before it is made."""
    if size > MAX_CHARS:
      raise LimitError(f'the template makes more than {MAX_CHARS} characters')

  def pay(self, size: int) -> None:
    """Refuses what is too large, and counts what is not."""
    self.bound(size)
    self.spend(size)

  def weigh(self, value: Any) -> int:
    """Returns at least the characters of str(value), within the limits."""
    if isinstance(value, str):
      return len(value)
    if type(value) in SCALARS:
      return _of_number(value)
    return self._walk(value, 0)[0]

  def _walk(self, value: Any, depth: int) -> tuple[int, int]:
    """The weight and the height (lists in lists) of any value but a text."""
    kept = self._weighed.get(id(value))
    if kept:
      return kept[1:]
    items = _items(value)
    if items is None:
      return ITEM, 0
    if depth > MAX_DEPTH:
      raise LimitError(f'the template nests lists more than {MAX_DEPTH} deep')
    weight, height = ITEM, 1
    for part in items:
      for item in part:
        kind = type(item)
        if kind is str:
          weight += ITEM + len(item)
        elif kind in SCALARS:
          weight += _of_number(item)
        elif isinstance(item, str):
          weight += ITEM + len(item)
        else:
          inner, levels = self._walk(item, depth + 1)
          weight += ITEM + inner
          height = max(height, levels + 1)
        self.bound(weight)
    if depth + height > MAX_DEPTH:
      raise LimitError(f'the template nests lists more than {MAX_DEPTH} deep')
    if weight >= _KEEP and not isinstance(value, VIEWS):
      self._weighed[id(value)] = value, weight, height
    return weight, height


def _items(value: Any) -> tuple | None:
  """Iterables of everything in a container; None for any other value."""
  if isinstance(value, Mapping):
    return value, value.values()
  return (value,) if isinstance(value, (list, tuple, *VIEWS)) else None


def _of_number(value: Any) -> int:
  """The weight of a number: data may hold integers of 4,300 digits."""
  return ITEM + (value.bit_length() // 3 if type(value) is int else 0)
