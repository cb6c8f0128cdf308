"""Rules of what goes together: losses, options, values, reference, data.

Comes in: records of the losses and options that were chosen, and what they
are to be used with. Goes out: nothing, or an InputError that names the config
key, the value and the fix. Imports no jax, so that the config is checked
before any device is touched; `losses.make_objective` refuses in the same
words in a notebook.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.losses.records import Loss, Option
from dpo_jax.types import InputError

# Published mixes of terms, {name: ({term: weight}, source)}.
MIXES = {
  'rpo': (
    {'sigmoid': 1.0, 'nll': 1.0},
    'Pang et al. 2024, arXiv:2404.19733; Liu et al. 2024, arXiv:2405.16436',
  ),
  'mpo': (
    # Its quality part has bco's reward shift; TRL's has not (bco_pair).
    {'sigmoid': 0.8, 'bco': 0.2, 'nll': 1.0},
    'Wang et al. 2024, arXiv:2411.10442',
  ),
}
# {name in papers and other trainers: its loss here}, letter case ignored.
_ALIASES = {
  **dict.fromkeys(('dpo', 'dpo_loss', 'vanilla_dpo', 'logistic'), 'sigmoid'),
  **dict.fromkeys(('sft_loss', 'ce', 'cross_entropy', 'lm'), 'nll'),
  **dict.fromkeys(('ln_dpo', 'lndpo', 'dpo_norm'), 'sigmoid_norm'),
  **dict.fromkeys(('robust_dpo', 'rdpo_robust'), 'robust'),
  **dict.fromkeys(('dpo_positive', 'smaug'), 'dpop'),
  **dict.fromkeys(('slic', 'slichf'), 'slic_hf'),
  **dict.fromkeys(('s_dpo', 'sdpo', 'softmax_dpo'), 'softmax'),
  **dict.fromkeys(('pl', 'dpo_pl', 'pl_dpo', 'plackettluce'), 'plackett_luce'),
  **dict.fromkeys(('exp', 'gpo_exponential'), 'exponential'),
  **dict.fromkeys(('dposhift', 'shift'), 'dpo_shift'),
  **dict.fromkeys(('symmetric', 'symmetric_po'), 'sympo'),
  **dict.fromkeys(('unlearning', 'negative_preference'), 'npo'),
  'aligned_sft': 'asft',
  'sim_npo': 'simnpo',
  'sim_per': 'simper',
  'squared_hinge': 'truncated_quadratic',
  'gpo_savage': 'savage',
  **dict.fromkeys(('e_dpo', 'edpo', 'eps_dpo'), 'epsilon_dpo'),
  'r_dpo': 'rdpo',
  'kto_pair': 'kto',
  'nca': 'nca_pair',
  'exo': 'exo_pair',
  'apo': 'apo_zero',
  'aot_pair': 'aot',
  'sppo': 'sppo_hard',
  'caldpo': 'cal_dpo',
  'alpha_po': 'alphapo',
}
# {name: how to get it with the losses and options here}.
_RECIPES = {
  'cdpo': 'sigmoid with config.loss.label_smoothing=0.1',
  'conservative_dpo': 'sigmoid with config.loss.label_smoothing=0.1',
  'f_dpo': 'sigmoid with config.loss.f_divergence=forward_kl',
  'fdpo': 'sigmoid with config.loss.f_divergence=forward_kl',
  'wpo': 'sigmoid with config.loss.wpo=True',
  'beta_dpo': 'sigmoid with config.loss.beta_dpo=True',
  **dict.fromkeys(('dr_dpo', 'drdpo'), 'sigmoid with config.loss.dr_dpo=True'),
  **dict.fromkeys(
    ('squaredpo', 'squared_po'),
    'sigmoid with config.loss.f_divergence=squared',
  ),
  'tr_dpo': 'sigmoid with config.loss.tr_dpo=True',
  'tdpo': 'tdpo1 or tdpo2',
  'ld_dpo': 'sigmoid with config.loss.ld_alpha=0.5',
  'gpo': 'exponential, truncated_quadratic or savage',
}
# {need: why precomputed scores of the reference cannot serve it}
_NOT_CACHED = {
  'distributions': 'which reads whole distributions, not scores',
  'heads': 'which reads sums over the first tokens',
  'mismatched': 'whose mismatched answers change with every batch',
}
# Needs that are columns of the data: in every row, or in some.
_EVERY_ROW = frozenset(('scores', 'reference_scores'))
_DATA_NEEDS = _EVERY_ROW | {'margin'}
_OF_SCORES = _EVERY_ROW | {'score_order'}
# {view of a loss: columns of the data, any one of which is enough}
_COLUMNS = {
  'comparisons': {'comparisons'},
  'completions': {'comparisons', 'labels'},
  'lists': {'lists'},
}


def unknown_loss(name: str, known: Iterable[str]) -> InputError:
  """The error for a loss that does not exist."""
  return errors.refuse(
    f'config.loss.terms.{name}',
    'there is no such loss',
    f'{hint(name, known)}losses are {", ".join(known)}',
  )


def hint(name: str, known: Iterable[str]) -> str:
  """Returns what a loss of that name is called here, to begin a fix, or ''.

  Args:
    name: of a loss that does not exist.
    known: the losses that do.
  """
  word = name.lower().replace('-', '_')
  if word in MIXES:
    terms, _ = MIXES[word]
    keys = (f'config.loss.terms.{k}={v:g}' for k, v in terms.items())
    return f'{name} is a mix here: {", ".join(keys)}; '
  if word in _RECIPES:
    return f'{name} is {_RECIPES[word]} here; '
  if word in _ALIASES:
    return f'{name} is {_ALIASES[word]!r} here; '
  return errors.did_you_mean(name, known)


def unknown_option(name: str, known: Iterable[str]) -> InputError:
  """The error for an option that does not exist."""
  hint = errors.did_you_mean(name, known)
  return errors.refuse(
    f'config.loss.{name}',
    'there is no such option',
    f'{hint}options are {", ".join(known)}',
  )


def accepts(option: Option, loss: Loss) -> bool:
  """Whether the option applies to the loss."""
  if option.changes == 'reference':
    return 'reference' in loss.needs
  has_beta = option.changes != 'beta' or 'beta' in loss.hyper
  return loss.kind in option.accepts and has_beta


def check_options(
  losses: Mapping[str, Loss],
  options: Mapping[str, Option],
  values: Mapping[str, Any] | None = None,
) -> None:
  """Refuses an option with a loss that it is not defined for.

  Args:
    losses: the chosen terms by name.
    options: the options that are on, by name.
    values: {option: the value that it was set to}, for the message; True for
      an option that is absent.

  Raises:
    InputError: a chosen loss does not accept an option.
  """
  for name, option in options.items():
    accepting = [k for k, loss in losses.items() if accepts(option, loss)]
    refusing = [
      k
      for k, loss in losses.items()
      if k not in accepting and loss.kind != 'likelihood'
    ]
    # A moving reference leaves a term without a reference as it is.
    if option.changes == 'reference' and accepting:
      refusing = []
    if refusing or not accepting:
      loss = (refusing or list(losses))[0]
      raise errors.refuse(
        f'config.loss.{name}',
        f'{(values or {}).get(name, True)!r} is not allowed with {loss}, '
        f'{_reason(option, losses[loss])}',
        f'leave config.loss.{name} unset, or use {_wanted(option)}',
      )


def check_values(
  losses: Mapping[str, Loss],
  options: Mapping[str, Option],
  values: Mapping[str, Any],
) -> None:
  """Refuses hyper-parameters that are unused, out of bounds or ambiguous.

  Args:
    losses: the chosen terms by name.
    options: the options that are on, by name.
    values: {name: number or choice} of the keys that were set; all others
      have their defaults.

  Raises:
    InputError: at the first such value.
  """
  chosen = {**losses, **options}
  for key, value in values.items():
    users = [name for name, entry in chosen.items() if key in entry.hyper]
    users += [name for name, entry in chosen.items() if key in entry.static]
    if not users:
      known = sorted({k for entry in chosen.values() for k in entry.hyper})
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
          f'use one of {", ".join(map(str, choices))}',
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
  mode: str, losses: Mapping[str, Loss], options: Mapping[str, Option]
) -> None:
  """Refuses a kind of reference that a loss or an option cannot use.

  Args:
    mode: config.reference.mode.
    losses: the chosen terms by name.
    options: the options that are on, by name.

  Raises:
    InputError: at the first loss or option that it cannot serve.
  """
  for name, entry in {**losses, **options}.items():
    reason = why_not_cached(entry.needs)
    if mode == 'cache' and reason:
      raise errors.refuse(
        'config.reference.mode',
        f"'cache' is not allowed with {name}, {reason}",
        "use 'params'",
      )
    if getattr(entry, 'changes', '') == 'reference' and mode != 'params':
      raise errors.refuse(
        'config.reference.mode',
        f"{mode!r} is not allowed with {name}, which changes the reference's "
        'weights',
        "use 'params'",
      )


def why_not_cached(needs: Collection[str]) -> str:
  """Why precomputed scores of the reference cannot serve these needs.

  Args:
    needs: of a loss, an option or a whole objective, see records.NEEDS.

  Returns:
    A clause for a message, 'which reads ...'; '' if they can.
  """
  reasons = (text for need, text in _NOT_CACHED.items() if need in needs)
  return next(reasons, '')


def check_data(
  losses: Mapping[str, Loss],
  columns: Iterable[str],
  where: str = 'config.data.train',
) -> None:
  """Refuses data that a loss cannot be computed from.

  Args:
    losses: the chosen terms by name.
    columns: the columns of the data: any of 'comparisons', 'labels',
      'undesirable answers', 'scores', 'reference_scores', 'margin' and 'lists'
      (a prompt with two completions or more), see length_table.columns.
    where: the config key of the data, for the message.

  Raises:
    InputError: at the first loss that lacks something.
  """
  has = set(columns)
  for name, loss in losses.items():
    wanted = _COLUMNS[loss.view]
    if loss.normaliser == 'undesirable':
      wanted = {'undesirable answers'}
    missing = [] if wanted & has else [' or '.join(sorted(wanted))]
    missing += sorted(_DATA_NEEDS & loss.needs - has)
    if missing:
      raise errors.refuse(
        f'config.loss.terms.{name}',
        f'needs {missing[0]}, which {where} has not in '
        f'{"every" if missing[0] in _EVERY_ROW else "any"} row',
        f'use data with {missing[0]}, or another loss',
      )


def check_flips(share: float, losses: Mapping[str, Loss]) -> None:
  """Refuses swapped comparisons with a loss that reads scores instead.

  Args:
    share: config.data.flip_share.
    losses: the chosen terms by name.

  Raises:
    InputError: at the first loss that such label noise would not reach.
  """
  for name, loss in losses.items():
    if share and _OF_SCORES & loss.needs:
      raise errors.refuse(
        'config.data.flip_share',
        f'{share:g} swaps the sides of comparisons, and {name} reads the '
        'scores of their answers',
        'set it to 0, or use a loss without scores',
      )


def within(value: float, bounds: str) -> bool:
  """Whether a number is in an interval, written as '[0, 0.5)'."""
  low, high = (float(text) for text in bounds[1:-1].split(','))
  above = value > low or (bounds[0] == '[' and value == low)
  below = value < high or (bounds[-1] == ']' and value == high)
  return math.isfinite(value) and above and below


def _reason(option: Option, loss: Loss) -> str:
  if option.changes == 'reference':
    return 'which reads no reference'
  if option.changes == 'beta' and 'beta' not in loss.hyper:
    return 'which has no beta'
  return f'a loss of kind {loss.kind!r}'


def _wanted(option: Option) -> str:
  if option.changes == 'reference':
    return 'a loss that reads a reference'
  beta = ' with a beta' if option.changes == 'beta' else ''
  return f'losses of kind {" or ".join(option.accepts)}{beta}'


def _check_only_with(
  options: Mapping[str, Option], values: Mapping[str, Any]
) -> None:
  """Refuses a keyword that is set without the choice that it requires."""
  for option in options.values():
    for key, (other, choice) in option.only_with.items():
      default = option.static[other][0]
      if key in values and values.get(other, default) != choice:
        raise errors.refuse(
          f'config.loss.{key}',
          f'counts only with {other}={choice}',
          f'set config.loss.{other} to {choice!r}, or leave {key} unset',
        )


def _check_defaults(losses: Mapping[str, Loss], values: Iterable[str]) -> None:
  """Refuses a shared keyword with two defaults, unless it is set."""
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
