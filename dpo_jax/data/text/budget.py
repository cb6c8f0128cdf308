"""operation -> cost: the budget that a chat template may spend.

Comes in: the operations of a template before they are computed (filters,
methods, operators) and the texts that it makes. Goes out: nothing, or
LimitError if an operation would take too much time or memory. Knows no
template and computes no result: sandbox.py does.

A foreseen size is an upper estimate of the true one. The limits are far above
what a chat needs.
"""

import re
from collections.abc import Mapping
from typing import Any

import jinja2

MAX_CHARS = 10_000_000  # characters of a string, and of the rendering
MAX_ITEMS = 500_000  # items of a list, including those of its items
MAX_STEPS = 1_000_000  # turns of loops, calls, and characters / 64
MAX_BITS = 4096  # bits of an integer

# Filters and methods with a width or a count among their arguments.
_WITH_WIDTH = (
  *('center', 'ljust', 'rjust', 'zfill', 'expandtabs'),
  *('indent', 'batch', 'slice', 'truncate'),
)
# Those whose result may be longer than their input.
_GROWING = (*_WITH_WIDTH, 'round', 'replace', 'format', 'join', 'tojson')
_SIZED = (str, list, tuple)


class LimitError(jinja2.TemplateRuntimeError):
  """The template asks for more time or memory than a chat can need."""


class Budget:
  """Counts the steps of one rendering."""

  def __init__(self):
    self.steps = 0

  def spend(self, chars: int = 0) -> None:
    """Counts one step, and the characters that it makes."""
    self.steps += 1 + chars // 64
    if self.steps > MAX_STEPS:
      raise LimitError(f'the template takes more than {MAX_STEPS} steps')

  def bound(self, size: int) -> None:
    """Refuses a text or list of this size, in characters, before it is made."""
    if size > MAX_CHARS:
      raise LimitError(f'the template makes more than {MAX_CHARS} characters')

  def spend_result(self, result: Any) -> None:
    """Counts the step that made a result."""
    self.spend(len(result) if isinstance(result, _SIZED) else 0)

  def foresee(self, name: str, text: Any, values: tuple) -> None:
    """Refuses a filter or method whose result would be too large.

    Args:
      name: of the filter or method.
      text: what it is applied to.
      values: its other arguments.
    """
    if isinstance(text, str) and name not in _GROWING:
      self.spend(len(text))
      return
    size = self.size(text)
    longest = max(map(self.size, values), default=0)
    number = max((abs(v) for v in values if isinstance(v, int)), default=0)
    if name in _WITH_WIDTH:
      is_text = isinstance(text, str)
      lines = text.count('\n') + text.count('\t') if is_text else 0
      size += max(number, longest) * (lines + 1)
    elif name == 'round':
      size += number * (MAX_CHARS // MAX_BITS)
    elif name == 'replace' and len(values) > 1:
      size += (str(text).count(str(values[0])) + 1) * self.size(values[1])
    elif name == 'format':
      # Widths are written in the text (%9d) or are arguments (%*d).
      widths = map(int, re.findall(r'\d+', text[:MAX_CHARS]))
      fields = text.count('{') + text.count('%')
      size += sum(widths) + fields * (longest + number)
    elif name == 'tojson':
      size += number * size
    elif name == 'join':
      size += longest * (len(text) if hasattr(text, '__len__') else 0)
    self.bound(size)
    self.spend(size)

  def foresee_operator(self, operator: str, left: Any, right: Any) -> None:
    """Refuses +, *, ** or % whose result would be too large."""
    if isinstance(left, int) and isinstance(right, int):
      bits = abs(left).bit_length()
      if operator == '**':
        bits *= max(right, 0)
      elif operator == '*':
        bits += abs(right).bit_length()
      if bits > MAX_BITS:
        raise LimitError(f'the template makes a number of {bits} bits')
    elif operator == '*':
      for many, times in ((left, right), (right, left)):
        if isinstance(many, _SIZED) and isinstance(times, int):
          # An item of a list counts as MAX_CHARS / MAX_ITEMS characters.
          unit = 1 if isinstance(many, str) else MAX_CHARS // MAX_ITEMS
          self.bound(len(many) * max(times, 0) * unit)
    elif operator == '+' and isinstance(left, _SIZED):
      self.bound(len(left) + (len(right) if isinstance(right, _SIZED) else 0))
    elif operator == '%' and isinstance(left, str):
      values = right if isinstance(right, tuple) else (right,)
      self.foresee('format', left, values)

  def size(self, value: Any) -> int:
    """Returns at least the characters of str(value), within the limits."""
    if isinstance(value, str):
      self.bound(len(value))
      return len(value)
    size, num_items, todo = 0, 0, [value]
    while todo:
      item = todo.pop()
      if isinstance(item, str):
        size += len(item)
        continue
      size += 1
      if isinstance(item, (Mapping, list, tuple)):
        num_items += len(item)
        if num_items > MAX_ITEMS:
          raise LimitError(f'the template makes more than {MAX_ITEMS} items')
        todo.extend(item)
        if isinstance(item, Mapping):
          todo.extend(item.values())
    self.bound(size)
    return size
