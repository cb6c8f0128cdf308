"""Registered functions, read from the source of a file without importing it.

Comes in: the path of a Python file and the name of a decorator. Goes out: the
name, the decorator's literal words and the keyword arguments of every function
that it decorates. Imports no jax: importing the file would take seconds, and a
bad config is refused in half of one. Runs nothing of the file.
"""

import ast
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple


class Function(NamedTuple):
  """One decorated function."""

  name: str
  words: Mapping[str, ast.expr]  # keyword arguments of the decorator
  defaults: Mapping[str, Any]  # keyword-only arguments and their defaults
  choices: Mapping[str, tuple]  # of those with a Literal, the default first
  doc: str  # first line of its docstring; '' if it has none


def read_functions(path: pathlib.Path, decorator: str) -> list[Function]:
  """Returns the functions under `@decorator` or `@decorator(...)`, in order."""
  tree = ast.parse(path.read_text(encoding='utf-8'), filename=str(path))
  functions = []
  for node in tree.body:
    for call in getattr(node, 'decorator_list', ()):
      head = call.func if isinstance(call, ast.Call) else call
      if isinstance(node, ast.FunctionDef) and _name(head) == decorator:
        functions.append(_function(node, call))
  return functions


def _function(node: ast.FunctionDef, call: ast.expr) -> Function:
  words = {word.arg: word.value for word in getattr(call, 'keywords', ())}
  defaults, choices = {}, {}
  arguments = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
  for argument, value in arguments:
    name = argument.arg
    defaults[name] = ast.literal_eval(value)
    if isinstance(argument.annotation, ast.Subscript):  # Literal['a', 'b']
      literals = ast.literal_eval(argument.annotation.slice)
      rest = (word for word in literals if word != defaults[name])
      choices[name] = (defaults[name], *rest)
  doc = ast.get_docstring(node) or ''
  return Function(node.name, words, defaults, choices, doc.partition('\n')[0])


def _name(node: ast.expr) -> str:
  return node.attr if isinstance(node, ast.Attribute) else node.id
