"""The Jinja environment that runs a stranger's chat template.

Comes in: template source. Goes out: a compiled template in an immutable
sandbox that behaves as the one of `transformers` does (trim_blocks,
lstrip_blocks, loop controls, tojson, raise_exception, strftime_now, the
generation block), with a budget: loops, calls and characters are counted, and
what would take too much of them stops with LimitError before it is computed.
Where a generation block begins and ends can be marked in the text.
Reads no file, knows nothing of messages or tokens.
"""

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes

MAX_CHARS = 10_000_000  # characters of a string, and of the rendering
MAX_ITEMS = 500_000  # items of a list, with those inside its items
MAX_STEPS = 1_000_000  # loop turns, calls, and characters / 64
_MAX_BITS = 4096  # of an integer

# No chat template needs these, and what they take is hard to foresee.
_NO_FILTERS = ('sum', 'pprint', 'urlize', 'xmlattr', 'wordwrap')
_NO_METHODS = ('translate', 'format_map', 'maketrans')
_WITH_WIDTH = (
  *('center', 'ljust', 'rjust', 'zfill', 'expandtabs'),
  *('indent', 'batch', 'slice', 'truncate'),
)
# With what `map` and `select` return, these fail in jinja2 too.
_NO_GENERATOR = ('tojson', 'length', 'count')
_GROWING = (*_WITH_WIDTH, 'round', 'replace', 'format', 'join', 'tojson')


UndefinedError = jinja2.exceptions.UndefinedError
SecurityError = jinja2.exceptions.SecurityError


class LimitError(jinja2.TemplateRuntimeError):
  """The template asks for more time or room than a chat can need."""


def compile_template(source: str) -> 'Template':
  """Compiles a chat template; raises jinja2.TemplateError."""
  return Template(source)


class Template:
  """A compiled template with its own environment and budget."""

  def __init__(self, source: str):
    """Raises jinja2.TemplateError for source that is no template."""
    self._environment = _Environment(
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
    # Names that it reads from its caller: a local one of them may be there too.
    self.variables = frozenset(
      jinja2.meta.find_undeclared_variables(tree)
    ).difference(self._environment.globals)

  def render(
    self, variables: Mapping[str, Any], marks: tuple[str, str] = ('', '')
  ) -> str:
    """The text; raises jinja2.TemplateError and what expressions raise.

    Args:
      variables: what the template may read.
      marks: written where a generation block begins, and where it ends.
    """
    self._environment.steps = 0
    self._environment.marks = marks
    pieces, size = [], 0
    for piece in self._template.generate(**variables):
      size += len(piece)
      self._environment.bound(size)
      pieces.append(piece)
    return ''.join(pieces)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """The sandbox; every operation that can grow passes through the budget."""

  intercepted_binops = frozenset(['+', '*', '**', '%'])

  def __init__(self, **options: Any):
    super().__init__(**options)
    self.steps = 0
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
      'strftime_now': _strftime_now,
    }

  def spend(self, chars: int = 0) -> None:
    """Counts one step and the characters it makes."""
    self.steps += 1 + chars // 64
    if self.steps > MAX_STEPS:
      raise LimitError(f'the template takes more than {MAX_STEPS} steps')

  def bound(self, size: int) -> None:
    """Refuses a size before it is made."""
    if size > MAX_CHARS:
      raise LimitError(f'the template makes more than {MAX_CHARS} characters')

  def bounded(self, value: Any) -> Any:
    """The value, once its text is known to fit; every output passes here."""
    self.spend(self._size(value))
    return value

  def counted(self, iterable: Any) -> Any:
    """What a `for` goes over, each turn counted."""
    return _Counted(iterable, self.spend)

  def mark(self, side: int) -> str:
    """What a generation block writes at its beginning (0) or end (1)."""
    return self.marks[side]

  def joined(self, *values: Any) -> str:
    """The operator ~."""
    size = sum(map(self._size, values))
    self.bound(size)
    self.spend(size)
    return ''.join(map(str, values))

  def unsafe_undefined(self, obj, attribute):
    """Private attributes are refused, also where they are only printed."""
    kind = type(obj).__name__
    raise jinja2.exceptions.SecurityError(
      f'access to attribute {attribute!r} of {kind!r} is unsafe'
    )

  def call(__self, __context, __obj, *args, **kwargs):  # noqa: B902, N805
    """Calls a macro, global or method; a method's result is foreseen."""
    owner = getattr(getattr(__obj, '__wrapped__', __obj), '__self__', None)
    if isinstance(__obj, jinja2.runtime.LoopContext):
      args = (__self.counted(args[0]), *args[1:])
    elif isinstance(__obj, jinja2.runtime.Macro):
      __self.spend(512)  # a call takes as long as eight turns of a loop
    elif isinstance(owner, str):
      name = __obj.__name__
      if name in _NO_METHODS:
        raise LimitError(f'str.{name} is not for chat templates')
      args = tuple(map(_as_list, args))
      text, values = owner, (*args, *kwargs.values())
      if name == 'join':  # the other way round than the filter
        text, values = args[0], (owner,)
      __self._foresee(name, text, values)
    result = super().call(__context, __obj, *args, **kwargs)
    __self.spend(len(result) if isinstance(result, str) else 0)
    return result

  def call_binop(self, context, operator, left, right):
    """The operators of intercepted_binops."""
    kinds = (str, list, tuple)
    if isinstance(left, int) and isinstance(right, int):
      bits = abs(left).bit_length()
      if operator == '**':
        bits *= max(right, 0)
      elif operator == '*':
        bits += abs(right).bit_length()
      if bits > _MAX_BITS:
        raise LimitError(f'the template makes a number of {bits} bits')
    elif operator == '*':
      for many, times in ((left, right), (right, left)):
        if isinstance(many, kinds) and isinstance(times, int):
          unit = 1 if isinstance(many, str) else MAX_CHARS // MAX_ITEMS
          self.bound(len(many) * max(times, 0) * unit)
    elif operator == '+' and isinstance(left, kinds):
      self.bound(len(left) + (len(right) if isinstance(right, kinds) else 0))
    elif operator == '%' and isinstance(left, str):
      self._foresee(
        'format', left, right if isinstance(right, tuple) else (right,)
      )
    result = super().call_binop(context, operator, left, right)
    self.spend(len(result) if isinstance(result, kinds) else 0)
    return result

  def _generate(self, source, name, filename, defer_init=False):
    """Rewrites loops and ~ of the syntax tree so that they are counted."""
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
    """A filter whose result is foreseen, and counted."""
    skip = int(hasattr(function, 'jinja_pass_arg'))

    @functools.wraps(function)
    def guarded(*args, **kwargs):
      if name not in _NO_GENERATOR:
        args = [*args[:skip], *map(_as_list, args[skip:])]
      if len(args) > skip:
        self._foresee(name, args[skip], (*args[skip + 1 :], *kwargs.values()))
      result = function(*args, **kwargs)
      if isinstance(result, (str, list)):
        self.bound(len(result))
        self.spend(len(result))
      return result

    return guarded

  def _foresee(self, name: str, text: Any, values: tuple) -> None:
    """Refuses a filter or method whose result would be too large."""
    if isinstance(text, str) and name not in _GROWING:
      self.spend(len(text))
      return
    size = self._size(text)
    longest = max(map(self._size, values), default=0)
    number = max((abs(v) for v in values if isinstance(v, int)), default=0)
    if name in _WITH_WIDTH:
      lines = text.count('\n') + text.count('\t') if _is_text(text) else 0
      size += max(number, longest) * (lines + 1)
    elif name == 'round':
      size += number * (MAX_CHARS // _MAX_BITS)
    elif name == 'replace' and len(values) > 1:
      size += (str(text).count(str(values[0])) + 1) * self._size(values[1])
    elif name == 'format':
      widths = map(int, re.findall(r'\d+', text[:MAX_CHARS]))
      fields = text.count('{') + text.count('%')
      size += sum(widths) + fields * (longest + number)
    elif name == 'tojson':
      size += number * size
    elif name == 'join':
      size += longest * (len(text) if hasattr(text, '__len__') else 0)
    self.bound(size)
    self.spend(size)

  def _size(self, value: Any) -> int:
    """Characters of str(value), at least; stops counting at the bounds."""
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

  def _to_json(
    self,
    value,
    ensure_ascii=False,
    indent=None,
    separators=None,
    sort_keys=False,
  ):
    """Plain JSON: jinja2's own filter escapes HTML."""
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )


class _Counted:
  """An iterable whose turns are counted; sized where the iterable is."""

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
  """{% generation %}...{% endgeneration %}: its body, in a scope of its own."""

  tags = {'generation'}

  def parse(self, parser):
    """The body between its two marks."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    self.environment.has_generation = True
    first, last = (
      nodes.Output([_environment_call('mark', [nodes.Const(side)])])
      for side in (0, 1)
    )
    return nodes.Scope([first, *body, last]).set_lineno(line)


class _Dict:
  """dict(...) of a template, without the class's attributes."""

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


def _strftime_now(pattern: str) -> str:
  return datetime.datetime.now().strftime(pattern)


def _environment_call(name: str, args: list) -> nodes.Call:
  return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)


def _concat_call(value: Any) -> Any:
  if isinstance(value, nodes.Concat):
    return _environment_call('joined', value.nodes)
  return value


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _as_list(value: Any) -> Any:
  """A generator's items, to be counted; other things as they are."""
  return list(value) if hasattr(value, '__next__') else value
