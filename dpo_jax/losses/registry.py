"""The registry: what each loss and option is called, needs, is tuned by.

Comes in: plain functions under `@register(...)` and `@register_option(...)`.
Goes out: `names()`, `get()` and one `Loss` a name, `option_names()`,
`get_option()` and one `Option` a name, which config defaults, sweep checks,
the README's table, plot labels and the every-loss tests read. Computes no
loss. The decorators' arguments stay literals: `config_losses.py` reads them
from the source.
"""

import dataclasses
import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping

from dpo_jax import errors, losses
from dpo_jax.losses import rules as loss_rules
from dpo_jax.types import InputError

# What the sum of the values is divided by, over the global batch: the sum of
# the weights, tokens of the winners times the weights, and 'labels', where
# desirable and undesirable completions are each divided by their own number.
# {view: normalisers, the default first}
NORMALISERS = {
  'comparisons': ('comparisons', 'chosen_tokens'),
  'completions': ('completions', 'labels'),
  'lists': ('lists',),
}
# What `rewards/...` means for a loss: see losses.rewards.
REWARDS = ('log_ratio', 'log_prob', 'mean_log_prob', 'alpha_log_prob', 'none')

_LOSSES: dict[str, 'Loss'] = {}
_OPTIONS: dict[str, 'Option'] = {}


@dataclasses.dataclass(frozen=True)
class Loss:
  """One registered loss."""

  name: str  # config name; TRL's where TRL has the loss
  fn: Callable[..., typing.Any]  # fn(view, *, hyper...) -> values
  label: str  # for tables and plots
  paper: str  # citation with equation
  formula: str  # one line, for the README's table
  needs: frozenset[str]  # subset of loss_rules.NEEDS
  view: str  # one of loss_rules.VIEWS: what fn's first argument is
  kind: str  # one of loss_rules.KINDS: which options apply
  reward: str  # one of REWARDS
  normaliser: str  # one of NORMALISERS[view]
  grid: Mapping[str, tuple[float, ...]]  # usual grid of its hyper-parameters
  bounds: Mapping[str, str]  # '[0, 0.5)' of those that are not any number
  state: Mapping[str, float]  # initial running numbers; fn's 2nd argument
  update: Callable | None  # update(state, view, *, hyper...) -> state
  hyper: Mapping[str, float]  # traced hyper-parameters and their defaults
  static: Mapping[str, tuple[str, ...]]  # choices, the default first


@dataclasses.dataclass(frozen=True)
class Option:
  """One registered option: a transform of what losses read or give."""

  name: str  # config name; on where that key is set
  fn: Callable[..., typing.Any]  # its form follows `changes`, see options.py
  label: str  # for tables and plots
  paper: str  # citation with equation
  formula: str  # one line, for the README's table
  changes: str  # one of loss_rules.CHANGES
  accepts: tuple[str, ...]  # kinds of losses; the others are refused
  needs: frozenset[str]  # subset of loss_rules.NEEDS
  bounds: Mapping[str, str]  # as in Loss
  only_with: Mapping[str, tuple[str, str]]  # keyword -> (choice key, choice)
  state: Mapping[str, float]  # initial running numbers
  update: Callable | None  # update(state, pairs, *, hyper...) -> state
  select: Callable | None  # select(state, pairs, *, hyper...) -> bool [P]
  hyper: Mapping[str, float]  # as in Loss
  static: Mapping[str, tuple[str, ...]]  # as in Loss


def register(
  *,
  label: str,
  paper: str,
  formula: str,
  needs: tuple[str, ...] = (),
  view: str = 'comparisons',
  kind: str = 'other',
  reward: str = 'log_ratio',
  normaliser: str = '',
  grid: Mapping[str, tuple[float, ...]] | None = None,
  bounds: Mapping[str, str] | None = None,
  state: Mapping[str, float] | None = None,
  update: Callable | None = None,
):
  """Registers the decorated function under its own name.

  Its keyword-only arguments are its hyper-parameters: a float default makes
  a traced one, a `Literal` annotation a static choice. The fields are those
  of `Loss`.
  """

  def decorate(fn):
    name = fn.__name__
    divisor = normaliser or NORMALISERS[view][0]
    _check_words(name, needs, loss_rules.NEEDS)
    _check_words(name, (kind,), loss_rules.KINDS)
    _check_words(name, (reward,), REWARDS)
    _check_words(name, (divisor,), NORMALISERS[view])
    if bool(state) != ('state' in needs) or (
      state and 'whole_batch' not in needs
    ):
      raise ValueError(f"{name}: a state needs 'state' and 'whole_batch'")
    if name in _LOSSES and _LOSSES[name].fn.__module__ != fn.__module__:
      raise ValueError(f'{name}: registered twice')
    hyper, static = _read_signature(fn)
    _LOSSES[name] = Loss(
      name=name,
      fn=fn,
      label=label,
      paper=paper,
      formula=formula,
      needs=frozenset(needs),
      view=view,
      kind=kind,
      reward=reward,
      normaliser=divisor,
      grid=dict(grid or {}),
      bounds=dict(bounds or {}),
      state=dict(state or {}),
      update=update,
      hyper=hyper,
      static=static,
    )
    return fn

  return decorate


def register_option(
  *,
  label: str,
  paper: str,
  formula: str,
  changes: str,
  accepts: tuple[str, ...],
  needs: tuple[str, ...] = (),
  bounds: Mapping[str, str] | None = None,
  only_with: Mapping[str, tuple[str, str]] | None = None,
  state: Mapping[str, float] | None = None,
  update: Callable | None = None,
  select: Callable | None = None,
):
  """Registers the decorated transform under its own name, see `Option`.

  Options of one kind of change apply in the order of their registration.
  """

  def decorate(fn):
    name = fn.__name__
    _check_words(name, needs, loss_rules.NEEDS)
    _check_words(name, accepts, loss_rules.KINDS)
    _check_words(name, (changes,), loss_rules.CHANGES)
    hyper, static = _read_signature(fn)
    _OPTIONS[name] = Option(
      name=name,
      fn=fn,
      label=label,
      paper=paper,
      formula=formula,
      changes=changes,
      accepts=accepts,
      needs=frozenset(needs),
      bounds=dict(bounds or {}),
      only_with=dict(only_with or {}),
      state=dict(state or {}),
      update=update,
      select=select,
      hyper=hyper,
      static=static,
    )
    return fn

  return decorate


def names() -> tuple[str, ...]:
  """Names of every registered loss, sorted."""
  _import_families()
  return tuple(sorted(_LOSSES))


def option_names() -> tuple[str, ...]:
  """Names of every registered option, in the order in which they apply."""
  _import_families()
  return tuple(_OPTIONS)


def get(name: str) -> Loss:
  """The loss of that name; InputError with the nearest match otherwise."""
  _import_families()
  if name in _LOSSES:
    return _LOSSES[name]
  raise _unknown('config.loss.terms', 'loss', name, names())


def get_option(name: str) -> Option:
  """The option of that name; InputError with the nearest match otherwise."""
  _import_families()
  if name in _OPTIONS:
    return _OPTIONS[name]
  raise _unknown('config.loss', 'option', name, option_names())


def hyper_names() -> tuple[str, ...]:
  """Every traced hyper-parameter of every loss and option, sorted."""
  return tuple(sorted({key for it in _all() for key in it.hyper}))


def static_names() -> tuple[str, ...]:
  """Every static choice of every loss and option, sorted."""
  return tuple(sorted({key for it in _all() for key in it.static}))


@functools.cache
def _import_families() -> None:
  for family in losses.FAMILIES:
    importlib.import_module(f'{losses.__name__}.{family}')


def _all():
  _import_families()
  return (*_LOSSES.values(), *_OPTIONS.values())


def _unknown(key, what, name, known) -> InputError:
  hint = errors.did_you_mean(name, known)
  return errors.refuse(
    key, f'unknown {what} {name!r}', f'{hint}known: {", ".join(known)}'
  )


def _check_words(name, words, known):
  unknown = set(words) - set(known)
  if unknown:
    raise ValueError(f'{name}: unknown {", ".join(sorted(unknown))}')


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
