"""template -> text: the Jinja environment that runs untrusted chat templates.

Comes in: template source and variables. Goes out: the rendered text. The
template runs in an immutable sandbox with the settings of `transformers`
(trim_blocks, lstrip_blocks, loop controls, tojson, raise_exception,
strftime_now, the generation block). Loops, calls and characters are counted by
budget.py; an operation that would exceed the budget raises LimitError before
it is computed. The beginning and end of each generation block can be marked in
the text. Reads no file and knows neither messages nor tokens.
"""

import datetime
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes

from dpo_jax.data.text.budget import Budget, LimitError

# No chat template needs these, and their cost is hard to foresee.
_NO_FILTERS = ('sum', 'pprint', 'urlize', 'xmlattr', 'wordwrap')
_NO_METHODS = ('translate', 'format_map', 'maketrans')
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
    self._environment = _Environment(
      date=date,
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[_Generation, jinja2.ext.loopcontrols],
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
  """The sandbox. Every operation that can grow passes through the budget."""

  intercepted_binops = frozenset(['+', '*', '**', '%'])

  def __init__(self, *, date: str, **options: Any):
    super().__init__(**options)
    self.date = date  # YYYY-MM-DD
    self.budget = Budget()  # of the current rendering
    self.marks = ('', '')  # of generation blocks
    self.has_generation = False  # set by the block's parser
    self.finalize = self.bounded
    for name in _NO_FILTERS:
      del self.filters[name]
    self.filters['tojson'] = self._to_json
    self.filters = {k: self._guarded(k, f) for k, f in self.filters.items()}
    self.globals = {
      'range': self.globals['range'],
      'dict': _Dict(),
      'namespace': _Namespace,
      'cycler': jinja2.utils.Cycler,
      'joiner': jinja2.utils.Joiner,
      'raise_exception': _raise_exception,
      'strftime_now': self._strftime_now,
    }

  def bounded(self, value: Any) -> Any:
    """Returns an output's value after counting it; jinja2's `finalize`."""
    self.budget.spend(self.budget.size(value))
    return value

  def counted(self, iterable: Any) -> Any:
    """Returns the iterable of a `for`, with each turn counted."""
    return _Counted(iterable, self.budget.spend)

  def mark(self, side: int) -> str:
    """Returns the mark at the beginning (0) or end (1) of a block."""
    return self.marks[side]

  def joined(self, *values: Any) -> str:
    """Computes the operator ~."""
    size = sum(map(self.budget.size, values))
    self.budget.bound(size)
    self.budget.spend(size)
    return ''.join(map(str, values))

  def unsafe_undefined(self, obj, attribute):
    """Refuses private attributes, which jinja2 would print as ''."""
    kind = type(obj).__name__
    raise jinja2.exceptions.SecurityError(
      f'access to attribute {attribute!r} of {kind!r} is unsafe'
    )

  # The underscores keep `self` and `context` free as keywords of a template.
  def call(__self, __context, __obj, *args, **kwargs):  # noqa: B902, N805
    """Calls a macro, global or method; a method's result is foreseen."""
    budget = __self.budget
    owner = getattr(getattr(__obj, '__wrapped__', __obj), '__self__', None)
    if isinstance(__obj, jinja2.runtime.LoopContext):
      args = (__self.counted(args[0]), *args[1:])
    elif isinstance(__obj, jinja2.runtime.Macro):
      # A call takes as long as 9 turns of a loop: 1 + 512 / 64 steps.
      budget.spend(512)
    elif isinstance(owner, str):
      name = __obj.__name__
      if name in _NO_METHODS:
        raise LimitError(f'str.{name} is not for chat templates')
      args = tuple(map(_as_list, args))
      text, values = owner, (*args, *kwargs.values())
      if name == 'join':  # str.join takes the items; the filter is given them
        text, values = args[0], (owner,)
      budget.foresee(name, text, values)
    result = super().call(__context, __obj, *args, **kwargs)
    budget.spend(len(result) if isinstance(result, str) else 0)
    return result

  def call_binop(self, context, operator, left, right):
    """Computes an operator of intercepted_binops."""
    self.budget.foresee_operator(operator, left, right)
    result = super().call_binop(context, operator, left, right)
    self.budget.spend_result(result)
    return result

  def _generate(self, source, name, filename, defer_init=False):
    """Rewrites loops and ~ in the syntax tree so that they are counted."""
    for loop in list(source.find_all(nodes.For)):
      loop.iter = _environment_call('counted', [loop.iter])
    for node in list(source.find_all(nodes.Node)):
      for field, value in list(node.iter_fields()):
        if isinstance(value, list):  # in place: it may be an operand list
          value[:] = [_concat_call(item) for item in value]
        else:
          setattr(node, field, _concat_call(value))
    return super()._generate(source, name, filename, defer_init)

  def _guarded(self, name: str, function: Callable) -> Callable:
    """Returns the filter with its result foreseen and counted."""
    # Some filters take the context or environment before their arguments.
    skip = int(hasattr(function, 'jinja_pass_arg'))

    @functools.wraps(function)
    def guarded(*args, **kwargs):
      if name not in _NO_GENERATOR:
        args = [*args[:skip], *map(_as_list, args[skip:])]
      if len(args) > skip:
        values = (*args[skip + 1 :], *kwargs.values())
        self.budget.foresee(name, args[skip], values)
      result = function(*args, **kwargs)
      if isinstance(result, (str, list)):
        self.budget.bound(len(result))
        self.budget.spend(len(result))
      return result

    return guarded

  def _strftime_now(self, pattern: str) -> str:
    """Returns the given date, at midnight, never the clock's."""
    if not self.date:
      raise jinja2.TemplateError('strftime_now has no date to write')
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


class _Counted:
  """An iterable whose turns are counted; has a length if the iterable has."""

  def __init__(self, iterable: Any, spend: Callable[[], None]):
    self._iterable = iterable
    self._spend = spend

  def __iter__(self) -> Iterator[Any]:
    for item in self._iterable:
      self._spend()
      yield item

  def __len__(self) -> int:
    return len(self._iterable)


class _Generation(jinja2.ext.Extension):
  """{% generation %}...{% endgeneration %}, with its body in its own scope."""

  tags = {'generation'}

  def parse(self, parser):
    """Returns the body between its two marks."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    self.environment.has_generation = True
    first, last = (
      nodes.Output([_environment_call('mark', [nodes.Const(side)])])
      for side in (0, 1)
    )
    return nodes.Scope([first, *body, last]).set_lineno(line)


class _Dict:
  """dict(...) of a template, without the attributes of the class."""

  def __call__(self, *args: Any, **kwargs: Any) -> dict:
    return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
  """namespace(...) of a template, without names that begin with '_'."""

  def __init__(*args: Any, **kwargs: Any):  # `self` may be an attribute
    values = dict(*args[1:], **kwargs)
    for name in values:
      _refuse_private(name)
    jinja2.utils.Namespace.__init__(args[0], values)

  def __setitem__(self, name: str, value: Any) -> None:
    _refuse_private(name)
    super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
  if isinstance(name, str) and name.startswith('_'):
    raise jinja2.exceptions.SecurityError(f'{name!r} is not a safe name')


def _raise_exception(message: Any) -> None:
  raise jinja2.TemplateError(str(message))


def _environment_call(name: str, args: list) -> nodes.Call:
  return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)


def _concat_call(value: Any) -> Any:
  if isinstance(value, nodes.Concat):
    return _environment_call('joined', value.nodes)
  return value


def _as_list(value: Any) -> Any:
  """The items of a generator, to be counted; other values as they are."""
  return list(value) if hasattr(value, '__next__') else value
