"""template -> text: the Jinja environment that runs untrusted chat templates.

Comes in: template source and variables. Goes out: the rendered text. The
template runs in an immutable sandbox with the settings of `transformers`
(trim_blocks, lstrip_blocks, loop controls, tojson, raise_exception,
strftime_now, the generation block). Every operation of the language whose work
depends on its operands is paid for (costs.py) from the budget of the rendering
(budget.py) before it is computed, or LimitError is raised. The beginning and
end of each generation block can be marked in the text. Reads no file and knows
neither messages nor tokens.
"""

import datetime
import functools
import json
import operator as operators
import types
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import markupsafe

from dpo_jax.data.text import budget as budgets
from dpo_jax.data.text import costs, template_code, template_objects
from dpo_jax.data.text.budget import Budget, LimitError

MAX_SOURCE = 100_000  # characters; the longest published template has 20,000
_COMPILE_STEPS = budgets.MAX_STEPS // 16
_OF_DICT = frozenset(dir(dict))  # attributes of a dict that are not its items
_COPIED = (str, markupsafe.Markup, list, tuple)
_COMPARE = {
  'eq': operators.eq,
  'ne': operators.ne,
  'lt': operators.lt,
  'lteq': operators.le,
  'gt': operators.gt,
  'gteq': operators.ge,
  'in': lambda left, right: left in right,
  'notin': lambda left, right: left not in right,
}
_COSTLY_TESTS = (
  *('lower', 'upper', 'odd', 'even', 'divisibleby', 'filter', 'test', 'in'),
  *('eq', 'equalto', '==', 'ne', '!=', 'lt', 'lessthan', '<', 'le', '<='),
  *('gt', 'greaterthan', '>', 'ge', '>='),
)
# Methods of jinja2's classes that a template may call.
_OWN_METHODS = {
  jinja2.runtime.LoopContext: ('cycle', 'changed'),
  jinja2.utils.Cycler: ('next', 'reset'),
}
# For a generator (from `map`, `select`), these fail in jinja2 too; the others
# get its items as a list, which can be counted.
_NO_GENERATOR = ('tojson', 'length', 'count')

UndefinedError = jinja2.exceptions.UndefinedError
SecurityError = jinja2.exceptions.SecurityError


def compile_template(source: str, date: str = '') -> 'Template':
  """Compiles a chat template; raises jinja2.TemplateError.

  Args:
    source: Jinja.
    date: of strftime_now, YYYY-MM-DD, so that a text does not depend on the day
      of the run; '' refuses its calls.
  """
  return Template(source, date)


class Template:
  """A compiled template with its own environment and budget."""

  def __init__(self, source: str, date: str = ''):
    """Raises jinja2.TemplateError for source that is no template."""
    if len(source) > MAX_SOURCE:
      raise LimitError(f'has more than {MAX_SOURCE} characters')
    self._environment = _Environment(
      date=date,
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[template_objects.Generation, jinja2.ext.loopcontrols],
    )
    try:
      self._template = self._environment.from_string(source)
      tree = self._environment.parse(source)
    except (RecursionError, MemoryError, ValueError, SyntaxError) as error:
      raise jinja2.TemplateError(f'{type(error).__name__}: {error}') from None

    self.has_generation = self._environment.has_generation
    # Names that the template reads from its caller. A name that it also
    # assigns in some branch is among them.
    self.variables = frozenset(
      jinja2.meta.find_undeclared_variables(tree)
    ).difference(self._environment.globals)

  def render(
    self, variables: Mapping[str, Any], marks: tuple[str, str] = ('', '')
  ) -> str:
    """Renders the template.

    Args:
      variables: the names that the template may read.
      marks: texts written at the beginning and end of a generation block.

    Raises:
      jinja2.TemplateError: among them LimitError; and whatever an expression
        of the template raises.
    """
    budget = self._environment.budget = Budget()
    self._environment.marks = marks
    pieces, size = [], 0
    for piece in self._template.generate(**variables):
      size += len(piece)
      budget.bound(size)
      pieces.append(piece)
    return ''.join(pieces)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """The sandbox. Every operation that can take long is paid for first."""

  code_generator_class = template_code.Generator
  intercepted_binops = frozenset(['+', '-', '*', '/', '//', '**', '%'])

  def __init__(self, *, date: str, **options: Any):
    super().__init__(**options)
    self.date = date  # YYYY-MM-DD
    # Of the current rendering; while compiling, of what jinja2 computes then.
    self.budget = Budget(_COMPILE_STEPS)
    self.marks = ('', '')  # of generation blocks
    self.has_generation = False  # set by the block's parser
    self.work: dict[str, int] = {}  # units of each macro, '' = of everything
    self.finalize = self.bounded
    for name in costs.NO_FILTERS:
      del self.filters[name]
    self.filters['tojson'] = self._to_json
    self.filters = {k: self._paid(k, f) for k, f in self.filters.items()}
    self.tests |= {k: self._paid_test(k, self.tests[k]) for k in _COSTLY_TESTS}
    self.globals = {
      'range': self.globals['range'],
      'dict': template_objects.Dict(),
      'namespace': template_objects.Namespace,
      'cycler': jinja2.utils.Cycler,
      'joiner': jinja2.utils.Joiner,
      'raise_exception': _raise_exception,
      'strftime_now': self._strftime_now,
    }

  def bounded(self, value: Any) -> Any:
    """Returns an output's value after counting it; jinja2's `finalize`."""
    if type(value) is str:
      size = len(value)
      if size > budgets.MAX_CHARS:
        self.budget.bound(size)
      self.budget.spend(size)
    else:
      self.budget.spend(self.budget.weigh(value))
    return value

  def counted(self, iterable: Any, units: int) -> Any:
    """Returns the iterable of a `for`, with the units of each turn counted."""
    return template_objects.Counted(iterable, self.budget, units)

  def mark(self, side: int) -> str:
    """Returns the mark at the beginning (0) or end (1) of a block."""
    return self.marks[side]

  def joined(self, *values: Any) -> str:
    """Computes the operator ~."""
    self.budget.pay(sum(map(self.budget.weigh, values)))
    return ''.join(map(str, values))

  def compared(self, operator: str, left: Any, right: Any) -> bool:
    """Computes a comparison or `in`."""
    is_in = operator in ('in', 'notin')
    right = template_objects.as_list(right) if is_in else right
    costs.foresee_comparison(
      self.budget, 'in' if is_in else operator, left, right
    )
    return _COMPARE[operator](left, right)

  def weighed(self, value: Any) -> Any:
    """Returns an operand of a chain of comparisons, paid for."""
    value = template_objects.as_list(value)
    weight = self.budget.weigh(value)
    self.budget.spend(weight * (80 if weight < 2500 else 8))
    costs.check_key(self.budget, value)
    return value

  def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
    """Computes x[start:stop:step]."""
    if type(value) in _COPIED:
      unit = 1 if isinstance(value, str) else budgets.ITEM
      self.budget.pay(len(value[start:stop:step]) * unit)
    return value[start:stop:step]

  def key(self, value: Any) -> Any:
    """Returns the key of a dict, checked."""
    costs.check_key(self.budget, value)
    return value

  def getattr(self, obj: Any, attribute: str) -> Any:
    """Returns x.attribute; a dict's item without asking the dict's class."""
    if type(obj) is dict and attribute not in _OF_DICT:
      if attribute in obj:
        return obj[attribute]
      return self.undefined(obj=obj, name=attribute)
    return super().getattr(obj, attribute)

  def getitem(self, obj: Any, argument: Any) -> Any:
    """Returns x[argument]; a dict's item without asking the dict's class."""
    if type(argument) is str:
      if type(obj) is dict:
        if argument in obj:
          return obj[argument]
        if argument not in _OF_DICT:
          return self.undefined(obj=obj, name=argument)
    elif type(argument) is not int:
      costs.check_key(self.budget, argument)
    return super().getitem(obj, argument)

  def unsafe_undefined(self, obj, attribute):
    """Refuses private attributes, which jinja2 would print as ''."""
    kind = type(obj).__name__
    raise jinja2.exceptions.SecurityError(
      f'access to attribute {attribute!r} of {kind!r} is unsafe'
    )

  def wrap_str_format(self, value: Any) -> Any:
    """Returns str.format with its own fields, or None for other values."""
    method = super().wrap_str_format(value)
    if method is None:
      return None
    if value.__name__ != 'format':
      raise LimitError(f'str.{value.__name__} is not for chat templates')
    return template_objects.Format(self, value.__self__)

  # The underscores keep `self` and `context` free as keywords of a template.
  def call(__self, __context, __obj, *args, **kwargs):  # noqa: B902, N805
    """Calls a macro, global or method, paid for before and after."""
    budget = __self.budget
    kind = type(__obj)
    if kind is types.BuiltinMethodType:
      # jinja2 passes these to all that is called in a loop or block.
      kwargs.pop('_loop_vars', None)
      kwargs.pop('_block_vars', None)
      args = tuple(map(template_objects.as_list, args))
      costs.foresee_method(budget, __obj.__self__, __obj.__name__, args, kwargs)
      result = __obj(*args, **kwargs)
      costs.check_result(budget, result)
      return result
    args = __self._paid_args(kind, __obj, args)
    result = super().call(__context, __obj, *args, **kwargs)
    budget.spend(len(result) if isinstance(result, str) else 0)
    return result

  def _paid_args(self, kind: type, obj: Any, args: tuple) -> tuple:
    """Pays for the call of anything but a method of a builtin class."""
    budget, whole = self.budget, self.work['']
    budget.spend(len(args) * budgets.ITEM)
    if kind is jinja2.runtime.Macro:
      # A call takes as long as 9 turns of a loop: 1 + 512 / 64 steps.
      budget.spend(512 + self.work.get(obj.name, whole))
    elif issubclass(kind, jinja2.runtime.LoopContext):
      return (self.counted(args[0], whole), *args[1:])
    elif kind is jinja2.runtime.BlockReference:
      budget.spend(512 + whole)
    elif kind is types.MethodType and not self._is_own(obj):
      owner = type(obj.__self__)
      name = obj.__name__
      if name not in _OWN_METHODS.get(owner, ()):
        raise LimitError(f'{owner.__name__}.{name} is not for chat templates')
      # loop.changed(x) compares x with the last one.
      for arg in args:
        budget.spend(2 * budget.weigh(arg))
    elif kind is not template_objects.Format:
      args = tuple(map(template_objects.as_list, args))
      for arg in args:
        budget.pay(budget.weigh(arg))
        if obj is template_objects.Namespace or kind is template_objects.Dict:
          costs.check_pairs(budget, arg)
    return args

  def _is_own(self, method: Any) -> bool:
    return method.__self__ is self and method == self._strftime_now

  def call_binop(self, context, operator, left, right):
    """Computes an operator of intercepted_binops."""
    if operator == '+' and type(left) is str and type(right) is str:
      self.budget.pay(len(left) + len(right))
      return left + right
    costs.foresee_operator(self.budget, operator, left, right)
    result = super().call_binop(context, operator, left, right)
    costs.check_result(self.budget, result)
    return result

  def _generate(self, source, name, filename, defer_init=False):
    """Counts the work of loops and macros before the code is written."""
    self.work = template_code.count_work(source)
    return super()._generate(source, name, filename, defer_init)

  def _paid(self, name: str, function: Callable) -> Callable:
    """Returns the filter with its work paid for."""
    # Some filters take the context or environment before their arguments.
    skip = int(hasattr(function, 'jinja_pass_arg'))

    @functools.wraps(function)
    def paid(*args, **kwargs):
      if name not in _NO_GENERATOR:
        args = (*args[:skip], *map(self._listed, args[skip:]))
      if len(args) > skip:
        costs.foresee_filter(
          self.budget, name, args[skip], args[skip + 1 :], kwargs
        )
      result = function(*args, **kwargs)
      costs.check_result(self.budget, result)
      return result

    return paid

  def _paid_test(self, name: str, function: Callable) -> Callable:
    """Returns the test with its work paid for."""

    @functools.wraps(function)
    def paid(*args):
      skip = int(hasattr(function, 'jinja_pass_arg'))
      operands = (*args[:skip], *map(self._listed, args[skip:]))
      costs.foresee_test(
        self.budget, name, operands[skip], operands[skip + 1 :]
      )
      return function(*operands)

    return paid

  def _listed(self, value: Any) -> Any:
    """The items of a generator, counted; other values as they are."""
    if hasattr(value, '__next__'):
      value = template_objects.as_list(value)
      self.budget.pay(len(value) * budgets.ITEM)
    return value

  def _strftime_now(self, pattern: str) -> str:
    """Returns the given date, at midnight, never the clock's."""
    if not self.date:
      raise jinja2.TemplateError('strftime_now has no date to write')
    costs.check_width(pattern)
    return datetime.datetime.fromisoformat(self.date).strftime(pattern)

  def _to_json(
    self,
    value,
    ensure_ascii=False,
    indent=None,
    separators=None,
    sort_keys=False,
  ):
    """Returns plain JSON; jinja2's own filter escapes HTML."""
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )


def _raise_exception(message: Any) -> None:
  raise jinja2.TemplateError(str(message))
