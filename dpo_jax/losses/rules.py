"""What losses and options may be combined, and the words of a refusal.

Comes in: what is registered about losses and options, and what was chosen.
Goes out: nothing, or InputError naming the config key, the value and the fix.
Imports no jax: the config checks with it before any device is touched, and
`losses.make_objective` with the same words in a notebook.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_jax import errors

# What a loss or an option may need, and what that means.
NEEDS = {
  'reference': 'scores of the frozen reference',
  'whole_batch': 'the whole batch at once',
  'margin': "the data's margin column",
  'scores': "the data's score of every completion",
  'labels': 'completions that are desirable or not',
  'mismatched': "every prompt scored with another prompt's answer",
  'state': 'running means in the checkpoint',
  'heads': 'sums over the first tokens',
  'sum_sq_probs': 'sum of squared probabilities a token',
  'distributions': "the reference's full distribution a token",
}
# What the first argument of a loss is: see losses.pairs and losses.views.
VIEWS = ('comparisons', 'completions', 'lists')
# What a loss reads, for the options to accept or refuse.
KINDS = (
  'difference',  # the log-ratios of winner and loser, only as a difference
  'absolute',  # the two log-ratios, each by itself
  'transport',  # sorted over the batch
  'reference_free',  # the policy's log-probabilities
  'likelihood',  # of the chosen answer alone: every option leaves it as it is
  'other',  # no option is defined for it
)
# What an option changes.
CHANGES = ('scores', 'log_ratios', 'beta', 'values', 'reference')
# Published mixes of terms, {name: ({term: weight}, source)}.
MIXES = {
  'rpo': (
    {'sigmoid': 1.0, 'nll': 1.0},
    'Pang et al. 2024, arXiv:2404.19733; Liu et al. 2024, arXiv:2405.16436',
  ),
  'mpo': (
    {'sigmoid': 0.8, 'bco_pair': 0.2, 'nll': 1.0},
    'Wang et al. 2024, arXiv:2411.10442',
  ),
}
# What the reference's scores cannot be precomputed for, and why.
_NOT_CACHED = {
  'distributions': 'which reads whole distributions, not scores',
  'heads': 'which reads sums over the first tokens',
  'mismatched': 'whose mismatched answers change with every batch',
}


def check_options(
  losses: Mapping[str, Any],
  options: Mapping[str, Any],
  values: Mapping[str, Any] | None = None,
) -> None:
  """Refuses an option with a loss that it is not defined for.

  Args:
    losses: {name: what is registered} of the chosen terms; `kind`, `needs`
      and `hyper` are read.
    options: {name: what is registered} of the options that are on; `accepts`
      and `changes` are read.
    values: {option: what it was set to}, for the message; True where absent.

  Raises:
    InputError: an option that a chosen loss does not take.
  """
  for name, option in options.items():
    taken = [k for k, loss in losses.items() if accepts(option, loss)]
    refused = [
      k
      for k, loss in losses.items()
      if k not in taken and loss.kind != 'likelihood'
    ]
    if option.changes == 'reference' and taken:
      refused = []  # a term without a reference does not notice
    if refused or not taken:
      loss = (refused or list(losses))[0]
      raise errors.refuse(
        f'config.loss.{name}',
        f'{(values or {}).get(name, True)!r} is not allowed with {loss}, '
        f'{_reason(option, losses[loss])}',
        f'leave config.loss.{name} unset, or use {_wanted(option)}',
      )


def accepts(option: Any, loss: Any) -> bool:
  """Whether the option applies to the loss."""
  if option.changes == 'reference':
    return 'reference' in loss.needs
  has_beta = option.changes != 'beta' or 'beta' in loss.hyper
  return loss.kind in option.accepts and has_beta


def check_values(
  losses: Mapping[str, Any],
  options: Mapping[str, Any],
  values: Mapping[str, Any],
) -> None:
  """Refuses hyper-parameters that are unused, out of bounds or ambiguous.

  Args:
    losses: {name: what is registered} of the chosen terms.
    options: likewise, of the options that are on.
    values: {name: number or choice} that were set; the rest is default.

  Raises:
    InputError: at the first such value.
  """
  chosen = {**losses, **options}
  for key, value in values.items():
    users = [n for n, it in chosen.items() if key in it.hyper]
    users += [n for n, it in chosen.items() if key in it.static]
    if not users:
      known = sorted({k for it in chosen.values() for k in it.hyper})
      raise errors.refuse(
        f'config.loss.{key}',
        f'not used by {", ".join(chosen)}',
        f'remove it, or use one of {", ".join(known) or "none"}',
      )
    for name in users:
      choices = chosen[name].static.get(key, (value,))
      if value not in choices:
        raise errors.refuse(
          f'config.loss.{key}',
          f'{value!r} is not allowed with {name}',
          f'use one of {", ".join(choices)}',
        )
      bounds = chosen[name].bounds.get(key)
      if bounds and not within(value, bounds):
        raise errors.refuse(
          f'config.loss.{key}',
          f'{value!r} is not allowed with {name}',
          f'use a number in {bounds}',
        )
  _check_only_with(options, values)
  _check_defaults(losses, values)


def check_reference(
  mode: str, losses: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
  """Refuses a way to the reference that a loss or an option cannot take.

  Args:
    mode: config.reference.mode.
    losses: {name: what is registered} of the chosen terms.
    options: likewise, of the options that are on.

  Raises:
    InputError: at the first that it cannot serve.
  """
  for name, it in {**losses, **options}.items():
    for need, reason in _NOT_CACHED.items():
      if mode == 'cache' and need in it.needs:
        raise errors.refuse(
          'config.reference.mode',
          f"'cache' is not allowed with {name}, {reason}",
          "use 'params'",
        )
    if getattr(it, 'changes', '') == 'reference' and mode != 'params':
      raise errors.refuse(
        'config.reference.mode',
        f"{mode!r} is not allowed with {name}, which changes the reference's "
        'weights',
        "use 'params'",
      )


def why_not_cached(needs: Iterable[str]) -> str:
  """Why precomputed reference scores cannot serve these needs, or ''."""
  return next((_NOT_CACHED[n] for n in sorted(needs) if n in _NOT_CACHED), '')


def check_data(
  losses: Mapping[str, Any],
  columns: Iterable[str],
  where: str = 'config.data.train',
) -> None:
  """Refuses data that a loss cannot be computed from.

  Args:
    losses: {name: what is registered} of the chosen terms; `view` and `needs`
      are read.
    columns: what the data has, of 'comparisons', 'labels', 'scores',
      'margin' and 'lists' (a prompt with two completions or more), see
      data/length_table.py.
    where: the config key of the data, for the message.

  Raises:
    InputError: at the first loss that lacks something.
  """
  has = set(columns)
  for name, loss in losses.items():
    wanted = {
      'comparisons': {'comparisons'},
      'completions': {'comparisons', 'labels'},
      'lists': {'lists'},
    }[loss.view]
    missing = [] if wanted & has else [' or '.join(sorted(wanted))]
    missing += sorted({'scores', 'margin'} & loss.needs - has)
    if missing:
      raise errors.refuse(
        f'config.loss.terms.{name}',
        f'needs {missing[0]}, which {where} has not in '
        f'{"every" if missing[0] == "scores" else "any"} row',
        f'use data with {missing[0]}, or another loss',
      )


def within(value: float, bounds: str) -> bool:
  """Whether a number is in an interval written as '[0, 0.5)'."""
  low, high = (float(text) for text in bounds[1:-1].split(','))
  above = value > low or (bounds[0] == '[' and value == low)
  below = value < high or (bounds[-1] == ']' and value == high)
  return math.isfinite(value) and above and below


def _reason(option: Any, loss: Any) -> str:
  if option.changes == 'reference':
    return 'which reads no reference'
  if option.changes == 'beta' and 'beta' not in loss.hyper:
    return 'which has no beta'
  return f'a loss of kind {loss.kind!r}'


def _wanted(option: Any) -> str:
  if option.changes == 'reference':
    return 'a loss that reads a reference'
  beta = ' with a beta' if option.changes == 'beta' else ''
  return f'losses of kind {" or ".join(option.accepts)}{beta}'


def _check_only_with(
  options: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
  """A keyword that counts with one choice of another is refused without."""
  for option in options.values():
    for key, (other, choice) in option.only_with.items():
      default = option.static[other][0]
      if key in values and values.get(other, default) != choice:
        raise errors.refuse(
          f'config.loss.{key}',
          f'counts only with {other}={choice}',
          f'set config.loss.{other} to {choice!r}, or leave {key} unset',
        )


def _check_defaults(losses: Mapping[str, Any], values: Iterable[str]) -> None:
  """Terms that share a keyword must agree on its default, or it is set."""
  defaults: dict[str, tuple[str, float]] = {}
  for name, loss in losses.items():
    for key, default in loss.hyper.items():
      first, number = defaults.setdefault(key, (name, default))
      if number != default and key not in values:
        raise errors.refuse(
          f'config.loss.{key}',
          f'{first} has {number:g} by default and {name} {default:g}',
          f'set config.loss.{key}, which both will use',
        )
