"""Losses as the config sees them: names, needs and options, without jax.

Comes in: the source text of `dpo_jax/losses/*.py`. Goes out: one LossOptions
for every function under `@register(...)`. Importing the registry itself would
import jax, which takes up to three seconds; a mistyped key is refused in
half of one. A test holds this reading equal to the registry's. Runs no loss.
"""

import ast
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_FOLDER = pathlib.Path(__file__).parent / 'losses'


class LossOptions(NamedTuple):
  """What a config may say about one registered loss."""

  needs: frozenset[str]  # as in losses.registry.NEEDS
  hyper: Mapping[str, float]  # traced hyper-parameters and their defaults
  static: Mapping[str, tuple]  # choices, the default first


@functools.cache
def read() -> Mapping[str, LossOptions]:
  """Every registered loss by its config name, sorted."""
  losses = {}
  for path in sorted(_FOLDER.glob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'), filename=str(path))
    losses |= dict(_registered(tree))
  return dict(sorted(losses.items()))


def hyper_names() -> tuple[str, ...]:
  """Every traced hyper-parameter of every loss, sorted."""
  return tuple(sorted({key for loss in read().values() for key in loss.hyper}))


def static_choices() -> Mapping[str, tuple]:
  """Every static option of every loss, sorted, and all its choices."""
  choices = {}
  for loss in read().values():
    for key, values in loss.static.items():
      choices[key] = tuple(dict.fromkeys((*choices.get(key, ()), *values)))
  return dict(sorted(choices.items()))


def users(option: str) -> tuple[str, ...]:
  """Names of the losses that use an option."""
  return tuple(
    name
    for name, loss in read().items()
    if option in loss.hyper or option in loss.static
  )


def _registered(tree: ast.Module) -> Iterator[tuple[str, LossOptions]]:
  for node in tree.body:
    if not isinstance(node, ast.FunctionDef):
      continue
    for call in node.decorator_list:
      if isinstance(call, ast.Call) and _name(call.func) == 'register':
        yield node.name, _options(node, call)


def _options(function: ast.FunctionDef, call: ast.Call) -> LossOptions:
  keywords = {keyword.arg: keyword.value for keyword in call.keywords}
  needs = ast.literal_eval(keywords['needs']) if 'needs' in keywords else ()
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
  return LossOptions(frozenset(needs), hyper, static)


def _name(node: ast.expr) -> str:
  return node.attr if isinstance(node, ast.Attribute) else node.id
