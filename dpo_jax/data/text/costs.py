"""operation -> cost: what filters, methods, tests and operators may take.

Comes in: an operation of a chat template before it is computed: its name and
its operands. Goes out: nothing, or LimitError if it would take too much time
or memory; the budget (budget.py) pays the rest. Computes no result: sandbox.py
does. Operations whose cost cannot be foreseen are refused.

A cost is an upper estimate for the worst operands, not for those at hand: a
search is charged for texts in which every position almost fits.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from dpo_jax.data.text import budget as budgets
from dpo_jax.data.text.budget import ITEM, Budget, LimitError

# No chat template needs these, and their cost is hard to foresee.
NO_FILTERS = (
  *('sum', 'pprint', 'urlize', 'xmlattr', 'wordwrap', 'striptags', 'random'),
)
# Methods that a template may call, by the class of their owner.
_OF_TEXT = frozenset(name for name in dir(str) if name[0] != '_') - {
  *('encode', 'translate', 'maketrans', 'format_map'),
}
_METHODS = {
  dict: frozenset(['get', 'items', 'keys', 'values', 'copy']),
  list: frozenset(['index', 'count', 'copy']),
  tuple: frozenset(['index', 'count']),
}
# Filters that look at one item at most, or give the value back.
_FREE = frozenset(
  [*('default', 'd', 'length', 'count', 'attr', 'first', 'last'), 'abs']
)
_SHALLOW = frozenset(
  [*('list', 'map', 'select', 'reject', 'reverse', 'items', 'batch'), 'slice']
  + ['selectattr', 'rejectattr']
)
_SORTING = frozenset(['sort', 'unique', 'min', 'max', 'groupby', 'dictsort'])
_BY_ATTRIBUTE = _SORTING | {'selectattr', 'rejectattr', 'map', 'join'}
_WIDTHS = frozenset(['center', 'ljust', 'rjust', 'zfill'])
_SEARCHES = frozenset(['count', 'find', 'index', 'split', 'partition'])
_BACKWARDS = frozenset(['rfind', 'rindex', 'rsplit', 'rpartition'])
_STRIPS = frozenset(['strip', 'lstrip', 'rstrip', 'trim'])
# How many times longer than its input a result can be.
_GROWTH = {'urlencode': 16, 'escape': 6, 'e': 6, 'forceescape': 6}
# These make a list of all lines or words, of 60 bytes each.
_PARTS = frozenset(['split', 'rsplit', 'splitlines', 'indent', 'title'])
_MAX_PARTED = 1_000_000  # characters of a text that is cut into lines or words
_MAX_FORMAT = 100_000  # characters of a text with fields
_MAX_WIDTH = 10_000  # characters of a field
_MAX_WORD = 256  # characters of an indent, of strip's set, of a path
_MAX_KEY = 2**60  # larger integers can share one hash, and make sets slow


def foresee_filter(
  budget: Budget, name: str, value: Any, args: tuple, options: Mapping
) -> None:
  """Pays for a filter; `args` and `options` are its further arguments."""
  values = (*args, *options.values())
  if name in _BY_ATTRIBUTE:
    _foresee_attribute(budget, name, value, args, options)
  if name in _FREE:
    budget.spend()
  elif name in _SHALLOW:
    budget.pay((_length(value) + _number(values)) * ITEM)
  elif name in _SORTING:
    weight = budget.weigh(value)
    # Sorting compares each item log2(n) times, in C: a quarter of the price.
    budget.pay(weight)
    budget.spend(weight * (_length(value).bit_length() // 4 + 1))
    if name == 'unique':
      for item in value if isinstance(value, list | tuple) else ():
        check_key(budget, item)
  elif name == 'format':
    foresee_percent(budget, value, values)
  elif name == 'tojson':
    _refuse_long_words(values)
    budget.pay(budget.weigh(value) * (1 + _number(values)))
  elif name == 'join':
    separator = budget.weigh(args[0]) if args else 0
    separator += budget.weigh(options.get('d', ''))
    _foresee_join(budget, value, separator)
  else:
    text = value if isinstance(value, str) else None
    _foresee_text(budget, name, text, budget.weigh(value), values)


def foresee_method(
  budget: Budget, owner: Any, name: str, args: tuple, options: Mapping
) -> None:
  """Pays for a method of a text, dict, list or tuple; refuses all others."""
  values = (*args, *options.values())
  if isinstance(owner, str):
    if name not in _OF_TEXT:
      raise LimitError(f'str.{name} is not for chat templates')
    if name == 'join':
      _foresee_join(budget, args[0] if args else (), len(owner))
    else:
      _foresee_text(budget, name, owner, len(owner), values)
    return
  kind = type(owner)
  if name not in _METHODS.get(kind, ()):
    raise LimitError(f'{kind.__name__}.{name} is not for chat templates')
  if name == 'get':
    budget.spend()
    check_key(budget, args[0] if args else None)
  elif name in ('index', 'count'):
    budget.pay(budget.weigh(owner))
  else:
    budget.spend(len(owner) * ITEM if name == 'copy' else 0)


def _foresee_text(
  budget: Budget, name: str, text: str | None, size: int, values: tuple
) -> None:
  """Pays for a filter or method that makes a text of a text.

  Args:
    budget: of the rendering.
    name: of the filter or method.
    text: its input; None if it is not a text, which is written as one first.
    size: weight of the input.
    values: further arguments.
  """
  number = _number(values)
  longest = max(map(budget.weigh, values), default=0)
  word = values[0] if values and isinstance(values[0], str) else None
  if name in _PARTS or name == 'wordcount':
    if size > _MAX_PARTED and word is None:
      raise LimitError(
        f'the template cuts a text of more than {_MAX_PARTED} characters'
      )
  if name in _WIDTHS:
    size += number
  elif name == 'expandtabs':
    size += (text or '').count('\t') * max(number, 8)
  elif name == 'indent':
    lines = len((text or '').splitlines()) + 1
    size += lines * max(number, longest, 4)
  elif name == 'round':
    if number > 300:
      raise LimitError(f'the template rounds to {number} digits')
  elif name in _STRIPS:
    _refuse_long_words(values)
    size += size * longest // 16
  elif name in _SEARCHES | _BACKWARDS:
    budget.spend(of_search(size, longest, name in _BACKWARDS))
    if name in _PARTS and word:
      size = text.count(word) * ITEM + size
  elif name == 'replace' and len(values) > 1:
    size += _of_replace(budget, text, size, values)
  else:
    size = max(size * _GROWTH.get(name, 1), longest)
  budget.pay(size)


def foresee_test(budget: Budget, name: str, value: Any, args: tuple) -> None:
  """Pays for a test (`x is name`) that takes more than a moment."""
  if name in ('lower', 'upper'):
    budget.pay(budget.weigh(value))
  elif name in ('odd', 'even', 'divisibleby'):
    for operand in (value, *args):
      if isinstance(operand, str):  # % would format it
        raise TypeError(f'{name} is a test of numbers')
      _check_bits(operand)
  elif name in ('filter', 'test'):
    check_key(budget, value)
  elif args:
    foresee_comparison(budget, 'in' if name == 'in' else '', value, args[0])


def foresee_comparison(
  budget: Budget, operator: str, left: Any, right: Any
) -> None:
  """Pays for `in` or, by any other name, for a comparison."""
  if operator != 'in':
    if isinstance(left, str) and isinstance(right, str):
      budget.spend(min(len(left), len(right)))
    elif type(left) not in budgets.SCALARS and type(right) not in (
      budgets.SCALARS
    ):
      budget.spend(budget.weigh(left) + budget.weigh(right))
  elif isinstance(right, str):
    budget.spend(of_search(len(right), budget.weigh(left)))
  elif isinstance(right, range):
    budget.spend(len(right) * ITEM)
  elif isinstance(right, Mapping):
    budget.spend()
    check_key(budget, left)
  else:
    budget.pay(budget.weigh(right))
    check_key(budget, left, isinstance(right, budgets.VIEWS))


def foresee_operator(
  budget: Budget, operator: str, left: Any, right: Any
) -> None:
  """Refuses +, -, *, /, //, % or ** whose result would be too large."""
  if isinstance(left, int) and isinstance(right, int):
    _check_bits(left)
    _check_bits(right)
    bits = abs(left).bit_length()
    if operator == '**':
      bits *= max(right, 0)
    elif operator == '*':
      bits += abs(right).bit_length()
    if bits > budgets.MAX_BITS:
      raise LimitError(f'the template makes a number of {bits} bits')
  elif operator == '*':
    for many, times in ((left, right), (right, left)):
      if isinstance(times, int) and hasattr(many, '__len__'):
        unit = 1 if isinstance(many, str) else ITEM
        budget.pay(len(many) * max(times, 0) * unit)
  elif operator == '%' and isinstance(left, str):
    values = right if isinstance(right, tuple) else (right,)
    foresee_percent(budget, left, values)
  elif operator == '+':
    if isinstance(left, str):
      budget.pay(len(left) + budget.weigh(right))
    else:
      budget.pay((_length(left) + _length(right)) * ITEM)
  elif isinstance(left, budgets.VIEWS) or isinstance(right, budgets.VIEWS):
    raise LimitError(f'{operator} of keys or items is not for chat templates')


def foresee_percent(budget: Budget, text: Any, values: tuple) -> None:
  """Pays for text % values; widths stand in the text, or are values (%*d)."""
  text = text if isinstance(text, str) else ''
  check_format(text)
  longest = max(map(budget.weigh, values), default=0)
  widths = sum(
    int(digits) if len(digits) < 9 else budgets.MAX_CHARS
    for digits in re.findall(r'\d+', text)
  )
  budget.pay(len(text) + widths + text.count('%') * (longest + _number(values)))


def check_format(text: str) -> None:
  """Refuses a text with fields that is longer than any that a chat has."""
  if len(text) > _MAX_FORMAT:
    raise LimitError(f'the template formats more than {_MAX_FORMAT} characters')


def check_width(spec: str) -> None:
  """Refuses the specification of a field that would be too wide."""
  if len(spec) > _MAX_WORD or any(
    int(digits) > _MAX_WIDTH for digits in re.findall(r'\d+', spec)
  ):
    raise LimitError(f'a field of more than {_MAX_WIDTH} characters')


def check_key(budget: Budget, key: Any, is_hashed: bool = True) -> None:
  """Refuses a key of a dict that takes long to hash, or may collide.

  Tuples of the integers -1 and -2 and integers that differ by 2**61 - 1 have
  one hash, by which a set of n of them takes n**2 steps.
  """
  if isinstance(key, str) or not is_hashed:
    budget.spend(len(key) if isinstance(key, str) else 0)
  elif isinstance(key, tuple):
    budget.spend(len(key) * ITEM)
    for item in key:
      if isinstance(item, tuple) or isinstance(item, int) and item < 0:
        raise LimitError('a key of numbers or tuples is not for chat templates')
      check_key(budget, item)
  elif isinstance(key, int) and abs(key) > _MAX_KEY:
    raise LimitError(f'a key above {_MAX_KEY} is not for chat templates')


def check_pairs(budget: Budget, pairs: Any) -> None:
  """Pays for dict(pairs)."""
  budget.pay(_length(pairs) * ITEM)
  if isinstance(pairs, Mapping):
    return
  for pair in pairs if isinstance(pairs, list | tuple) else ():
    if not isinstance(pair, list | tuple | str):
      raise LimitError('dict() takes lists of two items in chat templates')
    if pair:
      check_key(budget, pair[0])


def check_result(budget: Budget, result: Any) -> None:
  """Pays for what an operation made."""
  if isinstance(result, str):
    budget.pay(len(result))
  elif isinstance(result, (list, tuple)):
    budget.pay(len(result) * ITEM)
  elif isinstance(result, int):
    _check_bits(result)


def of_search(size: int, length: int, backwards: bool = False) -> int:
  """Units to search a text of `size` characters for one of `length`.

  CPython compares at every position in short texts, for short words, and
  always when it searches from the end; otherwise twice per character at most.
  """
  if not backwards and length >= 100 and size >= 2500:
    length = 64
  return size + size * length // 16


def _foresee_attribute(budget, name, value, args, options) -> None:
  """Pays for the path ('a.b.c') by which a filter looks into each item."""
  paths = [options.get('attribute')]
  if name not in ('map', 'join', 'min', 'max'):
    paths += args
  for path in paths:
    if isinstance(path, str):
      _refuse_long_words((path,))
      budget.spend(_length(value) * budgets.STEP * (1 + path.count('.')))


def _foresee_join(budget: Budget, items: Any, separator: int) -> None:
  budget.pay(budget.weigh(items) + separator * _length(items))


def _of_replace(budget: Budget, text, size: int, values: tuple) -> int:
  """Units of the new text beyond the old one; pays for the search."""
  old, new = (budget.weigh(value) for value in values[:2])
  budget.spend(of_search(size, old))
  # A value that is not a text is short, or it fits at every position.
  is_text = isinstance(text, str) and isinstance(values[0], str)
  return new * ((text.count(values[0]) if is_text else size) + 1)


def _refuse_long_words(values: tuple) -> None:
  for value in values:
    many = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(word, str) and len(word) > _MAX_WORD for word in many):
      raise LimitError(f'an argument of more than {_MAX_WORD} characters')


def _check_bits(value: Any) -> None:
  if isinstance(value, int) and value.bit_length() > budgets.MAX_BITS:
    raise LimitError(
      f'the template makes a number of {value.bit_length()} bits'
    )


def _number(values: tuple) -> int:
  """The largest size among the numbers of some arguments."""
  return max(
    (
      math.ceil(min(abs(v), 1e18)) if v == v else 0
      for v in values
      if isinstance(v, int | float)
    ),
    default=0,
  )


def _length(value: Any) -> int:
  return len(value) if hasattr(value, '__len__') else 0
