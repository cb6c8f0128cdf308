"""The registry: what each loss is called, needs, and is tuned by.

Comes in: plain functions under `@register(...)`. Goes out: `names()`, `get()`
and one `Loss` a name, which config defaults, sweep checks, the README's
table, plot labels and the every-loss tests read. Computes no loss.
"""

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Callable, Mapping

from dpo_jax.types import InputError

NEEDS = (
  'reference',  # scores of the frozen reference model
  'whole_batch',  # one comparison's value depends on the others
  'margin',  # the data's margin column
  'scores',  # the data's score of every completion
)
# What the sum of the values is divided by, over the global batch.
NORMALISERS = ('comparisons', 'chosen_tokens')

_LOSSES: dict[str, 'Loss'] = {}


@dataclasses.dataclass(frozen=True)
class Loss:
  """One registered loss."""

  name: str  # config name; TRL's where TRL has the loss
  fn: Callable[..., typing.Any]  # fn(pairs, *, hyper...) -> values [P]
  label: str  # for tables and plots
  paper: str  # citation with equation
  formula: str  # one line, for the README's table
  needs: frozenset[str]  # subset of NEEDS
  normaliser: str  # one of NORMALISERS
  grid: Mapping[str, tuple[float, ...]]  # usual grid of its hyper-parameters
  hyper: Mapping[str, float]  # traced hyper-parameters and their defaults
  static: Mapping[str, tuple[str, ...]]  # choices, the default first


def register(
  *,
  label: str,
  paper: str,
  formula: str,
  needs: tuple[str, ...] = (),
  normaliser: str = 'comparisons',
  grid: Mapping[str, tuple[float, ...]] | None = None,
):
  """Registers the decorated function under its own name.

  Its keyword-only arguments are its hyper-parameters: a float default makes
  a traced one, a `Literal` annotation a static choice.
  """

  def decorate(fn):
    name = fn.__name__
    hyper, static = _read_signature(fn)
    unknown = set(needs) - set(NEEDS)
    if unknown or normaliser not in NORMALISERS:
      raise ValueError(f'{name}: unknown needs or normaliser: {unknown}')
    if name in _LOSSES and _LOSSES[name].fn.__module__ != fn.__module__:
      raise ValueError(f'{name}: registered twice')
    _LOSSES[name] = Loss(
      name=name,
      fn=fn,
      label=label,
      paper=paper,
      formula=formula,
      needs=frozenset(needs),
      normaliser=normaliser,
      grid=dict(grid or {}),
      hyper=hyper,
      static=static,
    )
    return fn

  return decorate


def names() -> tuple[str, ...]:
  """Names of every registered loss, sorted."""
  return tuple(sorted(_LOSSES))


def get(name: str) -> Loss:
  """The loss of that name; InputError with the nearest match otherwise."""
  if name in _LOSSES:
    return _LOSSES[name]
  near = difflib.get_close_matches(str(name), _LOSSES, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  raise InputError(
    f'config.loss.terms: unknown loss {name!r}; fix: {hint}'
    f'known: {", ".join(names())}'
  )


def hyper_names() -> tuple[str, ...]:
  """Every traced hyper-parameter of every loss, sorted."""
  return tuple(sorted({k for loss in _LOSSES.values() for k in loss.hyper}))


def static_names() -> tuple[str, ...]:
  """Every static choice of every loss, sorted."""
  return tuple(sorted({k for loss in _LOSSES.values() for k in loss.static}))


def _read_signature(fn):
  hyper, static = {}, {}
  hints = typing.get_type_hints(fn)
  for key, parameter in inspect.signature(fn).parameters.items():
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
      continue
    if parameter.default is inspect.Parameter.empty:
      raise ValueError(f'{fn.__name__}: {key} has no default')
    if isinstance(parameter.default, float):
      hyper[key] = parameter.default
    else:
      choices = typing.get_args(hints[key])
      rest = tuple(c for c in choices if c != parameter.default)
      static[key] = (parameter.default, *rest)
  return hyper, static
