"""knobs -> text that people read: --help=SECTION and docs/config.md.

Comes in: the name of a section or of a key. Goes out: its knobs with default,
allowed values, comment, and the losses or optimizers that use them. The
comments are read from the source of knobs.py, where each stands at its knob.
"""

import ast
import functools
import io
import pathlib
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.config import knobs
from dpo_jax.losses import catalogue

_WIDTH = 80  # columns of a terminal
_DOCS = """\
# Config

Every key of a run, its default and its allowed values, written by
`python scripts/config_table.py` from `dpo_jax/config/knobs.py`. Set a key in an
experiment file (`config.loss.beta = 0.3`) or on the command line
(`--config.loss.beta=0.3`). `python -m dpo_jax.main --help=SECTION` prints a
section. A comment ends with the module that reads the key.

Combinations that cannot run are refused before any device is touched, with the
key, its value and what to use instead.
"""


class Entry(NamedTuple):
  """One key, as it is shown."""

  key: str  # dotted
  default: str  # as Python
  allowed: str  # the rule in words
  comment: str  # '' if there is none
  used_by: str  # losses, options, optimizers, schedules; '' = always used


def help_text(name: str = '') -> str:
  """Returns the knobs of a section, or of one key, as lines of text.

  Args:
    name: a section or a key, such as 'data' or 'data.max_length'; '' gives a
      line with the names of all sections.

  Raises:
    InputError: neither a section nor a key.
  """
  if not name:
    line = f'--help=SECTION prints the keys of one of {", ".join(_sections())}'
    return _wrapped(line, '')
  name = name.removeprefix('config.')
  shown = [e for e in _entries() if f'{e.key}.'.startswith(f'{name}.')]
  if not shown:
    hint = errors.did_you_mean(name, _sections())
    raise errors.refuse(
      '--help',
      f'there is no section {name!r}',
      f'{hint}sections are {", ".join(_sections())}',
    )
  return '\n'.join(map(_as_text, shown))


def config_page() -> str:
  """Returns the text of docs/config.md."""
  parts = [_DOCS]
  single = [e for e in _entries() if '.' not in e.key]
  parts += ['\n## Top level\n\n', *_table(single)]
  for section in _sections():
    shown = [e for e in _entries() if e.key.startswith(f'{section}.')]
    if shown:
      parts += [f'\n## {section}\n\n', *_table(shown)]
  return ''.join(parts)


def _sections() -> tuple[str, ...]:
  return tuple(vars(knobs.root()))


@functools.cache
def _entries() -> tuple[Entry, ...]:
  """All keys in the order of knobs.py, loss.terms.NAME for every loss."""
  terms = _entry('loss.terms.NAME', knobs.TERM)._replace(
    comment=f'weight of a loss; NAME is one of {", ".join(catalogue.read())}'
  )
  entries = [_entry(key, knob) for key, knob in knobs.flat().items()]
  first = next(i for i, e in enumerate(entries) if e.key.startswith('loss.'))
  return (*entries[:first], terms, *entries[first:])


def _entry(key: str, knob: knobs.Knob) -> Entry:
  allowed = knob.rule.allowed
  if knob.default in (None, '') and knob.rule.holds(knob.default):
    allowed += f', or {knob.default!r}'
  return Entry(
    key, repr(knob.default), allowed, _comments().get(key, ''), _used_by(key)
  )


@functools.cache
def _comments() -> Mapping[str, str]:
  """{dotted key: comment} of the lines `section.key = ...` of knobs.py.

  A comment stands at the end of the line, else on the lines above it.
  """
  source = pathlib.Path(knobs.__file__).read_text(encoding='utf-8')
  by_line, alone = {}, set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      number = token.start[0]
      by_line[number] = token.string.lstrip('# ')
      if token.line.lstrip().startswith('#'):
        alone.add(number)
  comments = {}
  for key, node in _assignments(ast.parse(source)):
    lines = range(node.lineno, node.end_lineno + 1)
    if not by_line.keys() & lines:
      first = node.lineno
      while first - 1 in alone:
        first -= 1
      lines = range(first, node.lineno)
    comments[key] = ' '.join(by_line[n] for n in lines if n in by_line)
  return comments


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.Assign]]:
  """(dotted key, statement) of knobs: function `_data` fills section data."""
  for function in tree.body:
    if not isinstance(function, ast.FunctionDef):
      continue
    prefix = '' if function.name == 'root' else f'{function.name[1:]}.'
    for node in function.body:
      if isinstance(node, ast.Assign) and isinstance(
        node.targets[0], ast.Attribute
      ):
        yield f'{prefix}{node.targets[0].attr}', node


def _used_by(key: str) -> str:
  """Names of what uses a key, by the default that it has there."""
  section, _, word = key.rpartition('.')
  users: dict[Any, list[str]] = {}
  if section == 'loss':
    known = {**catalogue.read(), **catalogue.read_options()}
    for name in catalogue.users(word):
      choices = known[name].static.get(word, (None,))
      default = known[name].hyper.get(word, choices[0])
      users.setdefault(default, []).append(name)
  elif section == 'optim':
    for known in (knobs.optimizers(), knobs.schedules()):
      for name, defaults in known.items():
        if word in defaults:
          users.setdefault(defaults[word], []).append(name)
  return '; '.join(
    ', '.join(names) + ('' if default is None else f' (default {default})')
    for default, names in users.items()
  )


def _as_text(entry: Entry) -> str:
  lines = [f'config.{entry.key}={entry.default}', _wrapped(entry.allowed)]
  if entry.comment:
    lines.append(_wrapped(f'# {entry.comment}'))
  if entry.used_by:
    lines.append(_wrapped(f'used by {entry.used_by}'))
  return '\n'.join(lines)


def _wrapped(text: str, indent: str = '    ') -> str:
  return textwrap.fill(
    text,
    _WIDTH,
    initial_indent=indent,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
  )


def _table(entries: list[Entry]) -> Iterator[str]:
  """Lines of a Markdown table."""
  header = ('key', 'default', 'allowed', 'comment', 'used by')
  header = header if any(e.used_by for e in entries) else header[:-1]
  yield f'| {" | ".join(header)} |\n'
  yield f'|{" --- |" * len(header)}\n'
  for entry in entries:
    cells = (f'`{entry.key}`', f'`{entry.default}`', *entry[2:])
    cells = (cell.replace('|', '\\|') for cell in cells[: len(header)])
    yield f'| {" | ".join(cells)} |\n'
