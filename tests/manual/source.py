"""Docstring and source text of a registered function, for its page."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import NamedTuple

_SECTIONS = ('Source', 'Args', 'Returns', 'Raises')
MOST_LINES = 50  # of code on a page: its helpers are named beyond it


class Doc(NamedTuple):
  """A docstring by its parts, each text on one line."""

  summary: str
  paragraphs: list[str]  # before the sections, formulas alone left out
  args: dict[str, str]  # {argument: its meaning}
  returns: str  # '' if there is none


def read_doc(fn: Callable) -> Doc:
  """The docstring of a function."""
  summary, *blocks = (inspect.getdoc(fn) or '').split('\n\n')
  paragraphs, sections = [], {}
  for block in blocks:
    name, _, rest = block.partition(':')
    if name in _SECTIONS:
      sections[name] = textwrap.dedent(rest.lstrip('\n'))
    elif not _is_formula(block):
      paragraphs.append(' '.join(block.split()))
  args = re.findall(r'^(\w+): (.+(?:\n +.+)*)', sections.get('Args', ''), re.M)
  return Doc(
    ' '.join(summary.split()),
    paragraphs,
    {name: ' '.join(text.split()) for name, text in args},
    ' '.join(sections.get('Returns', '').split()),
  )


def code(fn: Callable) -> list[str]:
  """Lines of a function and of the helpers that it calls, docstrings cut."""
  shown, names, waiting = [], [], [fn]
  while waiting:
    current = waiting.pop(0)
    lines, called = _read_code(current)
    names.append(current.__name__)
    if shown and len(shown) + len(lines) > MOST_LINES:
      shown += ['', f'# {current.__name__}: in {file(current)}']
      continue
    shown += ([''] * 2 if shown else []) + lines
    waiting += [
      helper
      for helper in called
      if helper.__name__ not in names and helper not in waiting
    ]
  return shown


def file(fn: Callable) -> str:
  """The file of a function, from the root of the repository."""
  return f'{fn.__module__.replace(".", "/")}.py'


def wrap(text: str, indent: str = '') -> list[str]:
  """Lines of at most 80 columns; a code span is cut only if it is longer."""
  # A no-break space in place of a space of a short span, put back below.
  kept = re.sub(
    r'`[^`]{1,60}`', lambda span: span[0].replace(' ', '\u00a0'), text
  )
  lines = textwrap.wrap(
    kept,
    80,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )
  return [line.replace('\u00a0', ' ') for line in lines]


def _is_formula(block: str) -> bool:
  """Whether a paragraph says no more than the formula."""
  return len(re.sub(r'`[^`]*`', '', block).split()) < 8


def _read_code(fn) -> tuple[list[str], list[Callable]]:
  """Lines of one function without decorators and docstring; what it calls."""
  text = textwrap.dedent(inspect.getsource(fn))
  (node,) = ast.parse(text).body
  first = node.body[0]
  cut = set(range(1, node.lineno))
  if ast.get_docstring(node) is not None:
    cut |= set(range(first.lineno, first.end_lineno + 1))
  lines = [line for n, line in enumerate(text.splitlines(), 1) if n not in cut]
  body = ast.Module(node.body, [])  # without the decorator
  names = [n.id for n in ast.walk(body) if isinstance(n, ast.Name)]
  helpers = [fn.__globals__.get(name) for name in dict.fromkeys(names)]
  return lines, [
    helper
    for helper in helpers
    if inspect.isfunction(helper)
    and helper.__module__.startswith('dpo_jax.losses.')
  ]
