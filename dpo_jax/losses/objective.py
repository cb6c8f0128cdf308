"""scores -> loss: the weighted sum of the chosen losses.

Comes in: CompletionScores of policy and reference, the batch's comparisons,
labels and data scores, and the hyper-parameters. Goes out: one number, and
the value of each term. Knows no model and no mesh: it always sees the scores
of all C completions. Read `__call__`, then `values`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import divisors, registry, rules, views
from dpo_jax.losses.records import Loss, Option
from dpo_jax.losses.views import PairScores
from dpo_jax.types import Array

LossState = Mapping[str, Mapping[str, Array]]  # {loss or option: its numbers}


@dataclasses.dataclass(frozen=True)
class Objective:
  """The losses of a run; hashable, so that equal objectives share compiles."""

  terms: tuple[str, ...]  # names of the losses that are summed
  static: tuple[
    tuple[str, str | bool], ...
  ] = ()  # choices such as ipo's reduction
  options: tuple[str, ...] = ()  # names of the options that are on

  def __call__(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
    denominators: Mapping[str, Array] | None = None,
    state: LossState | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Loss of a batch, or of the part of a batch whose scores `policy` holds.

    Args:
      policy: scores [C]; absent completions have num_tokens 0, and their
        comparisons count nothing.
      reference: scores [C], or None if no term needs them.
      batch: its comparisons, labels and data scores are read, not its rows.
      hyper: float32 scalars: the keywords of every loss and option, and one
        `weight/NAME` per term.
      denominators: divisors of the sums; those of the whole batch if `policy`
        holds one microbatch. Default: those of this batch.
      state: the running numbers; in training those that `prepare` returned.
        Default: the initial ones.

    Returns:
      (loss, {term: its unweighted value}), scalars.
    """
    if denominators is None:
      denominators = self.denominators(batch, policy.num_tokens)
    each = self.values(policy, reference, batch, hyper, state)
    total, terms = jnp.zeros((), policy.logps.dtype), {}
    for loss in self.losses:
      view, parts = each[loss.name]
      terms[loss.name] = sum(
        self._mean(loss, divisor, values, view, denominators, hyper)
        for divisor, values in parts.items()
      )
      total = total + hyper[f'weight/{loss.name}'] * terms[loss.name]
    return total, terms

  def values(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
    state: LossState | None = None,
  ) -> dict[str, tuple[Any, dict[str, Array]]]:
    """Values of each term before the mean; arguments as in `__call__`.

    Returns:
      {term: (its view, {divisor: one value per comparison, completion or
      list})}; values are 0 where divisors.weight is 0.
    """
    state = self.init_state() if state is None else state
    gathered, each = self._gather(policy, reference, batch, hyper), {}
    for loss in self.losses:
      view = gathered[loss.reads]
      keywords = self._keywords(loss, hyper)
      # Options of beta and of values read the view as it was gathered, before
      # the options of log-ratios.
      for option in self._options(loss, 'beta'):
        transform = self._bound(option, hyper)
        beta = keywords['beta']
        keywords['beta'] = transform(beta, view, state[option.name])
      scores = view
      for option in self._options(loss, 'log_ratios'):
        scores = self._bound(option, hyper)(scores)
      numbers = (state[loss.name],) if loss.state else ()
      parts = loss.fn(scores, *numbers, **keywords)
      if not isinstance(parts, dict):
        parts = {loss.normaliser: parts}
      for option in self._options(loss, 'values'):
        change = self._bound(option, hyper)
        parts = {key: change(values, view) for key, values in parts.items()}
      # Padding may hold any value; 0 times NaN would be NaN in the mean.
      each[loss.name] = (
        view,
        {
          key: jnp.where(divisors.weight(view, key) > 0, values, 0.0)
          for key, values in parts.items()
        },
      )
    return each

  def prepare(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
    state: LossState,
  ) -> tuple[types.Batch, LossState]:
    """Updates the running numbers with a training batch, before its loss.

    Args:
      policy: scores of the whole batch [C].
      reference: scores of the whole batch, or None.
      batch: the batch.
      hyper: as in `__call__`.
      state: the running numbers before this batch.

    Returns:
      (the batch, with weight 0 for comparisons that an option leaves out; the
      running numbers, this batch included), both without gradient.
    """
    policy, reference = jax.lax.stop_gradient((policy, reference))
    gathered, new = self._gather(policy, reference, batch, hyper), {}
    for loss in self.losses:
      if loss.state:
        keywords = {key: hyper[key] for key in loss.hyper}
        old = state[loss.name]
        new[loss.name] = loss.update(old, gathered[loss.reads], **keywords)
    weight = batch.comparisons.weight
    for option in self.transforms:
      if option.state:
        pairs = self.pairs(policy, reference, batch, hyper)
        keywords = {key: hyper[key] for key in option.hyper}
        numbers = option.update(state[option.name], pairs, **keywords)
        new[option.name] = numbers
        if option.select is not None:
          selected = option.select(numbers, pairs, **keywords)
          weight = jnp.where(selected, weight, 0.0)
    comparisons = batch.comparisons._replace(weight=weight)
    return batch._replace(comparisons=comparisons), new

  def pairs(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
  ) -> PairScores:
    """The comparisons [P] as losses and metrics read them."""
    pairs = views.gather_pairs(policy, reference, batch)
    for option in self.transforms:
      if option.changes == 'scores':
        pairs = self._bound(option, hyper)(pairs)
    return pairs

  def denominators(
    self, batch: types.Batch, num_tokens: Array
  ) -> dict[str, Array]:
    """Divisors of a batch for these terms, see divisors.counts."""
    return divisors.counts(batch, num_tokens, self.views)

  def move_reference(
    self,
    reference: types.Params,
    policy: types.Params,
    step: Array,
    hyper: Mapping[str, Array],
  ) -> types.Params:
    """Returns the reference for the next update; unchanged without tr_dpo.

    Args:
      reference: weights of the reference, any pytree.
      policy: weights of the policy, of the same structure.
      step: updates done, int32 scalar.
      hyper: as in `__call__`.
    """
    for option in self.transforms:
      if option.changes == 'reference':
        reference = self._bound(option, hyper)(reference, policy, step)
    return reference

  def heads(self, batch: types.Batch, num_tokens: Array) -> types.Heads | None:
    """The first tokens to sum on their own; None if no option needs them."""
    if 'heads' not in self.needs:
      return None
    winner, loser, _, _ = batch.comparisons
    shorter = jnp.minimum(num_tokens[winner], num_tokens[loser])
    return types.Heads(winner, loser, shorter)

  def init_state(self) -> dict[str, dict[str, Array]]:
    """Initial running numbers of the losses and options that have any."""
    return {
      entry.name: {
        key: jnp.asarray(number, jnp.float32)
        for key, number in entry.state.items()
      }
      for entry in (*self.losses, *self.transforms)
      if entry.state
    }

  @property
  def losses(self) -> tuple[Loss, ...]:
    """The registered losses of the terms."""
    return tuple(registry.get(name) for name in self.terms)

  @property
  def transforms(self) -> tuple[Option, ...]:
    """The registered options that are on, in the order in which they apply."""
    chosen = [registry.get_option(name) for name in self.options]
    order = registry.option_names().index
    return tuple(sorted(chosen, key=lambda option: order(option.name)))

  @property
  def needs(self) -> frozenset[str]:
    """All that a term or an option needs, see records.NEEDS."""
    entries = (*self.losses, *self.transforms)
    return frozenset().union(*(entry.needs for entry in entries))

  @property
  def needs_reference(self) -> bool:
    """Whether any term reads the reference's scores."""
    return 'reference' in self.needs

  @property
  def whole_batch(self) -> bool:
    """Whether a comparison's value depends on the rest of the batch."""
    return 'whole_batch' in self.needs

  @property
  def reward(self) -> str:
    """Reward of the first term that has one, of records.REWARDS, or 'none'."""
    rewards = [loss.reward for loss in self.losses if loss.reward != 'none']
    return rewards[0] if rewards else 'none'

  @property
  def views(self) -> frozenset[str]:
    """Views of the terms, keys of records.DIVISORS; no likelihoods."""
    return frozenset(
      loss.view for loss in self.losses if loss.kind != 'likelihood'
    )

  def _gather(self, policy, reference, batch, hyper) -> dict[str, Any]:
    """{Loss.reads: view} of the terms; each view is gathered once."""
    gather = {
      'comparisons': functools.partial(self.pairs, hyper=hyper),
      'likelihood': views.gather_pairs,
      'completions': views.gather_labelled,
      'lists': views.gather_lists,
    }
    wanted = sorted({loss.reads for loss in self.losses})
    return {name: gather[name](policy, reference, batch) for name in wanted}

  def _mean(self, loss, divisor, values, view, denominators, hyper) -> Array:
    """The mean of one part of a loss, or what an option has in its place."""
    weight = divisors.weight(view, divisor)
    if divisor == 'comparisons':
      for option in self._options(loss, 'mean'):
        return self._bound(option, hyper)(values, weight)
    return divisors.mean(values, weight, denominators[divisor])

  def _options(self, loss, changes) -> list[Option]:
    """The options of one kind of change that apply to a loss."""
    return [
      option
      for option in self.transforms
      if option.changes == changes and rules.accepts(option, loss)
    ]

  def _bound(self, option, hyper) -> functools.partial:
    """The option's function with its hyper-parameters and choices."""
    return functools.partial(option.fn, **self._keywords(option, hyper))

  def _keywords(self, entry, hyper) -> dict[str, Any]:
    """Hyper-parameters and choices of a loss or an option."""
    choices = {key: v for key, v in self.static if key in entry.static}
    return {key: hyper[key] for key in entry.hyper} | choices


def make_objective(
  terms: tuple[str, ...],
  static: Mapping[str, str | bool] | None = None,
  options: tuple[str, ...] = (),
) -> Objective:
  """Makes the objective of the named losses and options.

  Args:
    terms: names of losses.
    static: {key: choice}, such as ipo's `reduction`.
    options: names of options.

  Raises:
    InputError: an unknown name, or an option that a loss does not accept.
  """
  objective = Objective(
    tuple(terms), tuple(sorted((static or {}).items())), tuple(options)
  )
  rules.check_options(
    {loss.name: loss for loss in objective.losses},
    {option.name: option for option in objective.transforms},
  )
  return objective


def default_hyper(
  terms: Mapping[str, float],
  options: tuple[str, ...] = (),
  **values: float | str | bool,
) -> dict[str, Array]:
  """Hyper-parameters of terms and options: defaults, overridden by `values`.

  Args:
    terms: {loss name: weight}.
    options: names of the options that are on.
    **values: hyper-parameters that differ from their defaults. Static choices
      may stand among them: they are checked and left out.

  Returns:
    {name: float32 scalar array}, with one `weight/NAME` per term.

  Raises:
    InputError: a value that nothing uses or that is out of bounds, or a
      keyword on whose default the terms do not agree.
  """
  losses = {name: registry.get(name) for name in terms}
  chosen = {name: registry.get_option(name) for name in options}
  rules.check_values(losses, chosen, values)
  hyper = {}
  for entry in (*losses.values(), *chosen.values()):
    hyper |= entry.hyper
  hyper |= {k: v for k, v in values.items() if not isinstance(v, (str, bool))}
  hyper |= {f'weight/{name}': weight for name, weight in terms.items()}
  return {k: jnp.asarray(v, jnp.float32) for k, v in hyper.items()}
