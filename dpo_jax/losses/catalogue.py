"""Catalogue of losses and options, read from the source without jax.

Comes in: the text of `dpo_jax/losses/*.py`. Goes out: the records of
registry.py, functions left out. Importing the registry imports jax, which
takes up to three seconds; a mistyped config key is refused in half of one.
Calls no loss.
"""

import ast
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.losses import records
from dpo_jax.losses.records import Keyword, Loss, Option

_FOLDER = pathlib.Path(__file__).parent


class Function(NamedTuple):
  """A decorated function as its source declares it."""

  name: str
  fields: Mapping[str, Any]  # the decorator's keywords, functions left out
  keywords: tuple[Keyword, ...]  # its own keyword-only arguments
  doc: str  # docstring; '' if there is none


@functools.cache
def read() -> Mapping[str, Loss]:
  """All registered losses by their config names, sorted."""
  losses = {
    name: records.make_loss(name, fields, keywords)
    for name, fields, keywords, _ in _registered('register')
  }
  return dict(sorted(losses.items()))


@functools.cache
def read_options() -> Mapping[str, Option]:
  """All registered options by their config names, as they apply."""
  return {
    name: records.make_option(name, fields, keywords)
    for name, fields, keywords, _ in _registered('register_option')
  }


def hyper_names() -> tuple[str, ...]:
  """Names of all traced hyper-parameters of losses and options, sorted."""
  return tuple(sorted({key for entry in _all() for key in entry.hyper}))


def static_choices() -> Mapping[str, tuple]:
  """All choices of every static key of losses and options, keys sorted."""
  choices = {}
  for entry in _all():
    for key, values in entry.static.items():
      choices[key] = tuple(dict.fromkeys((*choices.get(key, ()), *values)))
  return dict(sorted(choices.items()))


def switches() -> tuple[str, ...]:
  """Options without a keyword of their own name: True switches them on."""
  return tuple(
    option.name
    for option in read_options().values()
    if option.name not in (*option.hyper, *option.static)
  )


def users(key: str) -> tuple[str, ...]:
  """Names of the losses and options that use a key of config.loss."""
  return tuple(
    entry.name
    for entry in _all()
    if key in (entry.name, *entry.hyper, *entry.static)
  )


def read_functions(path: pathlib.Path, decorator: str) -> Iterator[Function]:
  """Yields the decorated functions at the top level of a source file.

  Args:
    path: the Python file.
    decorator: its name, such as 'register'; `@register`, `@register(...)`
      and `@module.register(...)` all count.

  Raises:
    InputError: a default or a decorator's keyword that is computed.
  """
  for node in _parse(path).body:
    if not isinstance(node, ast.FunctionDef):
      continue
    for applied in node.decorator_list:
      called = applied if isinstance(applied, ast.Call) else None
      if _last_name(called.func if called else applied) == decorator:
        yield Function(
          name=node.name,
          fields=_literals(path, called.keywords if called else []),
          keywords=tuple(_keywords(path, node.args)),
          doc=ast.get_docstring(node) or '',
        )


def _all() -> tuple[Loss | Option, ...]:
  return (*read().values(), *read_options().values())


def _registered(decorator: str) -> Iterator[Function]:
  for path in sorted(_FOLDER.glob('*.py')):
    yield from read_functions(path, decorator)


@functools.cache
def _parse(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding='utf-8'), filename=str(path))


def _literals(path, keywords: list[ast.keyword]) -> dict[str, Any]:
  """The values of a decorator's keywords, except those that name functions."""
  # A bare name is a function of that file, such as update=update_bco.
  return {
    keyword.arg: _literal(path, keyword.value)
    for keyword in keywords
    if not isinstance(keyword.value, ast.Name)
  }


def _keywords(path, arguments: ast.arguments) -> Iterator[Keyword]:
  """The keyword-only arguments of a function in the source."""
  for argument, node in zip(arguments.kwonlyargs, arguments.kw_defaults):
    default = records.REQUIRED if node is None else _literal(path, node)
    yield Keyword(argument.arg, default, _choices(path, argument.annotation))


def _choices(path, annotation: ast.expr | None) -> tuple:
  """The choices of a `Literal[...]` annotation; () for any other."""
  if not isinstance(annotation, ast.Subscript):
    return ()
  if _last_name(annotation.value) != 'Literal':
    return ()
  choices = _literal(path, annotation.slice)
  return choices if isinstance(choices, tuple) else (choices,)


def _literal(path: pathlib.Path, node: ast.expr) -> Any:
  try:
    return ast.literal_eval(node)
  except ValueError as error:
    raise errors.refuse(
      f'{path}:{node.lineno}',
      f'{ast.unparse(node)} is computed',
      'write its value, which is read from the source',
    ) from error


def _last_name(node: ast.expr) -> str:
  """`c` of the expressions `c` and `a.b.c`; '' of any other."""
  return getattr(node, 'attr', getattr(node, 'id', ''))
