"""Records of losses and options: their fields, and the words these take.

Comes in: the declaration of a function under `@register(...)` or
`@register_option(...)`: its name, the decorator's keywords and its own
keyword-only arguments. Goes out: a Loss or an Option. registry.py declares
imported functions, catalogue.py the same functions as their source has them.
Imports no jax and calls no loss.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

# What a loss or an option may need, and its meaning.
NEEDS = {
  'reference': 'scores of the frozen reference',
  'whole_batch': 'the whole batch at once',
  'margin': "the data's margin column",
  'scores': "the data's score of every completion",
  'score_order': 'the higher score on the chosen answer; others are counted',
  'reference_scores': "scores of the reference's own answers to each prompt",
  'labels': 'completions that are desirable or not',
  'mismatched': "every prompt scored with another prompt's answer",
  'state': 'running means in the checkpoint',
  'heads': 'sums over the first tokens',
  'sum_sq_probs': 'sum of squared probabilities per token',
  'distributions': "the reference's full distribution per token",
  'tilted': 'the policy, moved away from the reference and toward it',
}
# The first argument of a loss (PairScores, LabelledScores, ListScores of
# views.py), and what sums of its values are divided by, over the global batch:
# 'chosen_tokens' is tokens of the winners times their weights, every other one
# a sum of weights, 'desirable' and 'undesirable' of one label only. A loss
# returns an array, which its `normaliser` divides, or parts that are added,
# {divisor: array}. {view: divisors, the default normaliser first}
DIVISORS = {
  'comparisons': ('comparisons', 'chosen_tokens', 'best_tokens'),
  'completions': ('completions', 'desirable', 'undesirable'),
  'lists': ('lists',),
}
# What a loss reads, for the options to accept or refuse.
KINDS = (
  'difference',  # the log-ratios of winner and loser, only as a difference
  'absolute',  # the two log-ratios, each by itself
  'transport',  # the log-ratios, sorted over the batch
  'reference_free',  # the policy's log-probabilities
  'likelihood',  # the chosen answer alone: no option changes it
  'other',  # no option is defined for it
)
# The reward in the metrics of a loss: metrics.implicit_reward has formulas.
REWARDS = ('log_ratio', 'log_prob', 'mean_log_prob', 'alpha_log_prob', 'none')
# What an option changes; options.py has the form of each.
CHANGES = ('scores', 'log_ratios', 'beta', 'values', 'mean', 'reference')

# The default of a keyword that has none.
REQUIRED = inspect.Parameter.empty


class Keyword(NamedTuple):
  """A keyword-only argument of a function."""

  name: str
  default: Any  # REQUIRED if there is none
  choices: tuple = ()  # of a Literal annotation; () for any other


class Loss(NamedTuple):
  """One loss; its functions are None if it was read from the source."""

  name: str  # config name; TRL's where TRL has the loss
  label: str  # for tables and plots
  paper: str  # citation with equation
  formula: str  # one line, for the table in docs/losses.md
  hyper: Mapping[str, float]  # traced hyper-parameters and their defaults
  static: Mapping[str, tuple]  # choices, the default first
  needs: frozenset[str] = frozenset()  # subset of NEEDS
  view: str = 'comparisons'  # key of DIVISORS: the first argument of fn
  kind: str = 'other'  # one of KINDS: which options apply
  reward: str = 'log_ratio'  # one of REWARDS
  normaliser: str = ''  # one of DIVISORS[view]; '' = the first
  grid: Mapping[str, tuple[float, ...]] = {}  # usual grid of hyper
  bounds: Mapping[str, str] = {}  # '[0, 0.5)'; a key without: any number
  state: Mapping[str, float] = {}  # initial running numbers; fn's 2nd argument
  fn: Callable | None = None  # fn(view, *, hyper...) -> values or parts
  update: Callable | None = None  # update(state, view, *, hyper...) -> state

  @property
  def reads(self) -> str:
    """The view, or 'likelihood': comparisons as they are before any option."""
    return 'likelihood' if self.kind == 'likelihood' else self.view


class Option(NamedTuple):
  """One option: a transform of what losses read or return; fn as in Loss."""

  name: str  # config name; the option is on if that key is set
  label: str  # for tables and plots
  paper: str  # citation with equation
  formula: str  # one line, for the table in docs/losses.md
  changes: str  # one of CHANGES
  accepts: tuple[str, ...]  # kinds of losses; the others are refused
  hyper: Mapping[str, float]  # as in Loss
  static: Mapping[str, tuple]  # as in Loss
  needs: frozenset[str] = frozenset()  # subset of NEEDS
  bounds: Mapping[str, str] = {}  # as in Loss
  only_with: Mapping[str, tuple[str, str]] = {}  # keyword: (choice key, choice)
  state: Mapping[str, float] = {}  # initial running numbers
  fn: Callable | None = None  # its form follows `changes`, see options.py
  update: Callable | None = None  # update(state, pairs, *, hyper...) -> state
  select: Callable | None = None  # select(state, pairs, ...) -> bool [P]


def make_loss(
  name: str,
  fields: Mapping[str, Any],
  keywords: Iterable[Keyword],
  fn: Callable | None = None,
) -> Loss:
  """Makes the record of a loss from its declaration.

  Args:
    name: the function's name.
    fields: keywords of `@register(...)`: fields of Loss, `needs` as a tuple.
    keywords: the function's keyword-only arguments: a float default makes a
      traced hyper-parameter, a Literal annotation or a bool a static choice.
    fn: the function itself, if it was imported.

  Raises:
    ValueError: a word that no list here has, or a keyword of neither form.
    TypeError: a field that Loss does not have, or one that is missing.
  """
  loss = Loss(**_prepared(name, fields, keywords), fn=fn)
  _check_words(name, {loss.view}, DIVISORS)
  divisors = DIVISORS[loss.view]
  loss = loss._replace(normaliser=loss.normaliser or divisors[0])
  _check_words(name, loss.needs, NEEDS)
  _check_words(name, {loss.kind}, KINDS)
  _check_words(name, {loss.reward}, REWARDS)
  _check_words(name, {loss.normaliser}, divisors)
  has_state = bool(loss.state)
  if has_state != ('state' in loss.needs) or (
    has_state and 'whole_batch' not in loss.needs
  ):
    raise ValueError(f"{name}: a state needs 'state' and 'whole_batch'")
  return loss


def make_option(
  name: str,
  fields: Mapping[str, Any],
  keywords: Iterable[Keyword],
  fn: Callable | None = None,
) -> Option:
  """Makes the record of an option from its declaration, as `make_loss`."""
  option = Option(**_prepared(name, fields, keywords), fn=fn)
  _check_words(name, option.needs, NEEDS)
  _check_words(name, option.accepts, KINDS)
  _check_words(name, {option.changes}, CHANGES)
  return option


def _prepared(
  name: str, fields: Mapping[str, Any], keywords: Iterable[Keyword]
) -> dict[str, Any]:
  """The fields of either record, hyper-parameters and choices added."""
  hyper, static = {}, {}
  for key, default, choices in keywords:
    if default is REQUIRED:
      raise ValueError(f'{name}: {key} has no default')
    if isinstance(default, float):
      hyper[key] = default
    elif isinstance(default, bool):
      static[key] = (default, not default)
    elif default in choices:
      others = tuple(choice for choice in choices if choice != default)
      static[key] = (default, *others)
    else:
      raise ValueError(
        f'{name}: {key} has neither a float nor one of its choices as default'
      )
  rest = {key: value for key, value in fields.items() if key != 'needs'}
  needs = frozenset(fields.get('needs', ()))
  # dict() raises TypeError if the decorator sets name, hyper or static.
  return dict(name=name, needs=needs, hyper=hyper, static=static, **rest)


def _check_words(name: str, words: Iterable[str], known: Iterable[str]) -> None:
  unknown = set(words) - set(known)
  if unknown:
    raise ValueError(f'{name}: unknown {", ".join(sorted(unknown))}')
