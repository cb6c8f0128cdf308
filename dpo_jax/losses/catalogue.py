"""Losses as the config sees them: names, needs and options, without jax.

Comes in: the source text of `dpo_jax/losses/*.py`. Goes out: one LossSpec for
every function under `@register(...)`, one OptionSpec for every one under
`@register_option(...)`. Importing the registry itself would import jax, which
takes up to three seconds; a mistyped key is refused in half of one. A test
holds this reading equal to the registry's. Runs no loss.
"""

import ast
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_FOLDER = pathlib.Path(__file__).parent


class LossSpec(NamedTuple):
  """What a config may say about one registered loss, as in losses.Loss."""

  hyper: Mapping[str, float]  # traced hyper-parameters and their defaults
  static: Mapping[str, tuple]  # choices, the default first
  needs: frozenset[str] = frozenset()
  view: str = 'comparisons'
  kind: str = 'other'
  bounds: Mapping[str, str] = {}


class OptionSpec(NamedTuple):
  """What a config may say about one option, as in losses.Option."""

  hyper: Mapping[str, float]
  static: Mapping[str, tuple]
  changes: str
  accepts: tuple[str, ...]
  needs: frozenset[str] = frozenset()
  bounds: Mapping[str, str] = {}
  only_with: Mapping[str, tuple[str, str]] = {}


@functools.cache
def read() -> Mapping[str, LossSpec]:
  """Every registered loss by its config name, sorted."""
  return dict(sorted(_registered('register', LossSpec)))


@functools.cache
def read_options() -> Mapping[str, OptionSpec]:
  """Every registered option by its config name, in the order of the file."""
  return dict(_registered('register_option', OptionSpec))


def hyper_names() -> tuple[str, ...]:
  """Every traced hyper-parameter of every loss and option, sorted."""
  return tuple(sorted({key for spec in _all().values() for key in spec.hyper}))


def static_choices() -> Mapping[str, tuple]:
  """Every static key of every loss and option, sorted, and all its choices."""
  choices = {}
  for spec in _all().values():
    for key, values in spec.static.items():
      choices[key] = tuple(dict.fromkeys((*choices.get(key, ()), *values)))
  return dict(sorted(choices.items()))


def switches() -> tuple[str, ...]:
  """Options without a keyword of their own name: True switches them on."""
  return tuple(
    name
    for name, spec in read_options().items()
    if name not in spec.hyper and name not in spec.static
  )


def users(key: str) -> tuple[str, ...]:
  """Names of the losses and options that use a key."""
  return tuple(
    name
    for name, spec in _all().items()
    if key == name or key in spec.hyper or key in spec.static
  )


def _all() -> Mapping[str, LossSpec | OptionSpec]:
  return {**read(), **read_options()}


def _registered(decorator: str, make: Any) -> Iterator[tuple[str, Any]]:
  """(name, spec) of the functions under a decorator, all its words literal."""
  for path in sorted(_FOLDER.glob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'), filename=str(path))
    for node in tree.body:
      if not isinstance(node, ast.FunctionDef):
        continue
      for call in node.decorator_list:
        if isinstance(call, ast.Call) and _name(call.func) == decorator:
          yield node.name, _spec(node, call, make)


def _spec(function: ast.FunctionDef, call: ast.Call, make: Any) -> Any:
  fields = {
    keyword.arg: ast.literal_eval(keyword.value)
    for keyword in call.keywords
    if keyword.arg in make._fields
  }
  if 'needs' in fields:
    fields['needs'] = frozenset(fields['needs'])
  return make(*_keywords(function), **fields)


def _keywords(function: ast.FunctionDef) -> tuple[dict, dict]:
  """(traced hyper-parameters, static choices) of a function."""
  hyper, static = {}, {}
  arguments = function.args
  for argument, default_node in zip(
    arguments.kwonlyargs, arguments.kw_defaults
  ):
    default = ast.literal_eval(default_node)
    if isinstance(default, float):
      hyper[argument.arg] = default
    else:
      choices = ast.literal_eval(argument.annotation.slice)
      rest = tuple(choice for choice in choices if choice != default)
      static[argument.arg] = (default, *rest)
  return hyper, static


def _name(node: ast.expr) -> str:
  return node.attr if isinstance(node, ast.Attribute) else node.id
