"""Registry of losses and options: names, requirements, hyper-parameters.

Comes in: plain functions under `@register(...)` and `@register_option(...)`.
Goes out: `names()` and `get()` with one Loss per name, `option_names()` and
`get_option()` with one Option per name; config defaults, refusals, the table
in docs/losses.md and the tests of every loss read them. Computes no loss. The
decorators' arguments are literals or functions: catalogue.py reads them from
the source.
"""

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator

from dpo_jax import losses
from dpo_jax.losses import records, rules
from dpo_jax.losses.records import Loss, Option

_LOSSES: dict[str, Loss] = {}
_OPTIONS: dict[str, Option] = {}


def register(**fields) -> Callable:
  """Registers the decorated loss under its own name.

  Its keyword-only arguments are its hyper-parameters: a float default makes
  a traced one, a `Literal` annotation or a bool a static choice.

  Args:
    **fields: fields of records.Loss; label, paper and formula are required.

  Raises:
    ValueError: an unknown word, or another function has the name.
  """

  def decorate(fn: Callable) -> Callable:
    name = fn.__name__
    loss = records.make_loss(name, fields, _keywords(fn), fn)
    # The same module again is a reload, as in a notebook.
    if name in _LOSSES and _LOSSES[name].fn.__module__ != fn.__module__:
      raise ValueError(f'{name}: registered twice')
    _LOSSES[name] = loss
    return fn

  return decorate


def register_option(**fields) -> Callable:
  """Registers the decorated transform under its own name, as `register`.

  Options of one kind of change apply in the order of their registration.

  Args:
    **fields: fields of records.Option; label, paper, formula, changes and
      accepts are required.
  """

  def decorate(fn: Callable) -> Callable:
    name = fn.__name__
    _OPTIONS[name] = records.make_option(name, fields, _keywords(fn), fn)
    return fn

  return decorate


def names() -> tuple[str, ...]:
  """Names of all registered losses, sorted."""
  _import_families()
  return tuple(sorted(_LOSSES))


def option_names() -> tuple[str, ...]:
  """Names of all registered options, in the order in which they apply."""
  _import_families()
  return tuple(_OPTIONS)


def get(name: str) -> Loss:
  """The loss of that name; InputError with the nearest match otherwise."""
  _import_families()
  if name not in _LOSSES:
    raise rules.unknown_loss(name, names())
  return _LOSSES[name]


def get_option(name: str) -> Option:
  """The option of that name; InputError with the nearest match otherwise."""
  _import_families()
  if name not in _OPTIONS:
    raise rules.unknown_option(name, option_names())
  return _OPTIONS[name]


@functools.cache
def _import_families() -> None:
  for family in losses.FAMILIES:
    importlib.import_module(f'{losses.__name__}.{family}')


def _keywords(fn: Callable) -> Iterator[records.Keyword]:
  """The keyword-only arguments of an imported function."""
  hints = typing.get_type_hints(fn)
  for key, parameter in inspect.signature(fn).parameters.items():
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
      choices = typing.get_args(hints.get(key))
      yield records.Keyword(key, parameter.default, choices)
