"""values -> objects: what a chat template finds besides its variables.

Comes in: values of a template, and the budget of its rendering. Goes out: the
globals dict and namespace, the method `format` of texts, the iterable of a
`for` and the block {% generation %}, each with its work paid for. Renders
nothing: sandbox.py does.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils
import markupsafe
from jinja2 import nodes

from dpo_jax.data.text import budget as budgets
from dpo_jax.data.text import costs, template_code
from dpo_jax.data.text.budget import Budget, LimitError


class Counted:
  """An iterable whose turns are counted; has a length if the iterable has."""

  def __init__(self, iterable: Any, budget: Budget, units: int):
    self._iterable = iterable
    self._budget = budget
    self._units = units

  def __iter__(self) -> Iterator[Any]:
    budget, units = self._budget, self._units + budgets.STEP
    for item in self._iterable:
      budget.left -= units
      if budget.left < 0:
        budget.spend()
      yield item

  def __len__(self) -> int:
    return len(self._iterable)


class Format:
  """The method `format` of a text."""

  def __init__(self, environment: Any, text: str):
    self._environment = environment
    self._text = text

  def __call__(self, *args: Any, **kwargs: Any) -> str:
    """Writes the fields."""
    costs.check_format(self._text)
    kwargs.pop('_loop_vars', None)
    kwargs.pop('_block_vars', None)
    if isinstance(self._text, markupsafe.Markup):
      raise LimitError('format of markup is not for chat templates')
    formatter = Formatter(self._environment)
    return formatter.vformat(self._text, args, kwargs)


class Formatter(jinja2.sandbox.SandboxedFormatter):
  """The fields of str.format, with their widths bounded and their texts paid.

  A width may come from anywhere ('{:{w[0]}}'): it is looked at once it is
  known, which is before the field is written.
  """

  def __init__(self, environment: Any):
    super().__init__(environment)
    self._budget = environment.budget
    self._size = 0

  def format_field(self, value: Any, format_spec: str) -> str:
    """Returns a field as text."""
    costs.check_width(format_spec)
    self._budget.pay(self._budget.weigh(value))
    text = super().format_field(value, format_spec)
    self._size += len(text)
    self._budget.bound(self._size)
    self._budget.spend(len(text))
    return text

  def convert_field(self, value: Any, conversion: str | None) -> Any:
    """Returns str(value) for !s, repr(value) for !r."""
    if conversion:
      self._budget.pay(10 * self._budget.weigh(value))
    return super().convert_field(value, conversion)

  def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
    """Returns the value of a path such as '0.a[b]'."""
    self._budget.spend(budgets.STEP * len(field_name))
    return super().get_field(field_name, args, kwargs)


class Generation(jinja2.ext.Extension):
  """{% generation %}...{% endgeneration %}, with its body in its own scope."""

  tags = {'generation'}

  def parse(self, parser):
    """Returns the body between its two marks."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    self.environment.has_generation = True
    first, last = (
      nodes.Output(
        [template_code.environment_call('mark', [nodes.Const(side)])]
      )
      for side in (0, 1)
    )
    return nodes.Scope([first, *body, last]).set_lineno(line)


class Dict:
  """dict(...) of a template, without the attributes of the class."""

  def __call__(self, *args: Any, **kwargs: Any) -> dict:
    """Makes the dict; sandbox.py pays for it."""
    return dict(*args, **kwargs)


class Namespace(jinja2.utils.Namespace):
  """namespace(...) of a template, without names that begin with '_'."""

  def __init__(*args: Any, **kwargs: Any):  # `self` may be an attribute
    values = dict(*args[1:], **kwargs)
    for name in values:
      _refuse_private(name)
    jinja2.utils.Namespace.__init__(args[0], values)

  def __setitem__(self, name: str, value: Any) -> None:
    _refuse_private(name)
    super().__setitem__(name, value)

  def __repr__(self) -> str:
    # Its values may hold the namespace itself.
    return '<Namespace>'


def _refuse_private(name: Any) -> None:
  if isinstance(name, str) and name.startswith('_'):
    raise jinja2.exceptions.SecurityError(f'{name!r} is not a safe name')


def as_list(value: Any) -> Any:
  """The items of a generator, to be counted; other values as they are."""
  if not hasattr(value, '__next__'):
    return value
  # One more than is allowed, which is then refused.
  return list(itertools.islice(value, budgets.MAX_ITEMS + 1))
