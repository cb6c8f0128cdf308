"""scores -> loss: the weighted sum of the configured losses.

Comes in: CompletionScores of policy and reference, the batch's comparisons,
labels and data scores, and the hyper-parameters. Goes out: one number, and
each term's own. Knows no model and no mesh: it always sees the scores of all
C completions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import pairs as pairs_lib
from dpo_jax.losses import registry, views
from dpo_jax.losses import rules as loss_rules
from dpo_jax.losses.pairs import PairScores
from dpo_jax.types import Array

LossState = Mapping[str, Mapping[str, Array]]  # {loss or option: its numbers}


@dataclasses.dataclass(frozen=True)
class Objective:
  """The losses of a run; hashable, so that equal objectives share compiles."""

  terms: tuple[str, ...]  # names of the losses that are summed
  static: tuple[tuple[str, str], ...] = ()  # choices such as ipo's reduction
  options: tuple[str, ...] = ()  # names of the options that are on

  @property
  def losses(self) -> tuple[registry.Loss, ...]:
    """The registered losses behind the terms."""
    return tuple(registry.get(name) for name in self.terms)

  @property
  def transforms(self) -> tuple[registry.Option, ...]:
    """The registered options that are on, in the order in which they apply."""
    chosen = [registry.get_option(name) for name in self.options]
    order = registry.option_names().index
    return tuple(sorted(chosen, key=lambda option: order(option.name)))

  @property
  def needs(self) -> frozenset[str]:
    """What any term or option needs, see loss_rules.NEEDS."""
    return frozenset().union(
      *(it.needs for it in (*self.losses, *self.transforms))
    )

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
    """What `rewards/...` means: the first term's reward; 'none' for SFT."""
    rewards = [loss.reward for loss in self.losses if loss.reward != 'none']
    return rewards[0] if rewards else 'none'

  @property
  def views(self) -> frozenset[str]:
    """What the terms read, see loss_rules.VIEWS; likelihoods aside."""
    return frozenset(
      loss.view for loss in self.losses if loss.kind != 'likelihood'
    )

  def init_state(self) -> dict[str, dict[str, Array]]:
    """The running numbers of the losses and options that keep any."""
    return {
      it.name: {k: jnp.asarray(v, jnp.float32) for k, v in it.state.items()}
      for it in (*self.losses, *self.transforms)
      if it.state
    }

  def __call__(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
    denominators: Mapping[str, Array] | None = None,
    state: LossState | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Loss of a batch, or of the part of it that `policy` holds.

    Args:
      policy: scores [C]; absent completions have num_tokens 0, and their
        comparisons count nothing.
      reference: scores [C], or None where no term needs them.
      batch: its comparisons, labels and data scores are read, not its rows.
      hyper: float32 scalars: each loss's and option's keywords, and
        `weight/NAME` a term.
      denominators: what each term's sum is divided by; those of the whole
        batch when `policy` holds one microbatch. Default: this batch's own.
      state: the running numbers; in training those that `prepare` gave.
        Default: the initial ones.

    Returns:
      (loss, {term: its unweighted value}), scalars.
    """
    if denominators is None:
      denominators = self.denominators(batch, policy.num_tokens)
    each = self.values(policy, reference, batch, hyper, state)
    total, values = jnp.zeros((), policy.logps.dtype), {}
    for loss in self.losses:
      view, losses = each[loss.name]
      values[loss.name] = _reduce(loss, view, losses, denominators)
      total = total + hyper[f'weight/{loss.name}'] * values[loss.name]
    return total, values

  def values(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
    state: LossState | None = None,
  ) -> dict[str, tuple[Any, Array]]:
    """What `__call__` takes the means of.

    Returns:
      {term: (what it read, its value of each, 0 where that is padding)}.
    """
    state = self.init_state() if state is None else state
    seen, values = self._views(policy, reference, batch, hyper), {}
    for loss in self.losses:
      view = seen[_view_of(loss)]
      losses = self._values(loss, view, hyper, state)
      values[loss.name] = view, jnp.where(view.weight > 0, losses, 0.0)
    return values

  def prepare(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
    state: LossState,
  ) -> tuple[types.Batch, LossState]:
    """Takes a training batch into the running numbers, before its loss.

    Args:
      policy: scores of the whole batch [C].
      reference: likewise, or None.
      batch: the batch.
      hyper: as in `__call__`.
      state: the running numbers before this batch.

    Returns:
      (the batch, comparisons that an option leaves out at weight 0; the
      running numbers with this batch), both without gradient.
    """
    policy, reference = jax.lax.stop_gradient((policy, reference))
    seen, new = self._views(policy, reference, batch, hyper), {}
    for loss in self.losses:
      if loss.state:
        view = seen[_view_of(loss)]
        keywords = {k: hyper[k] for k in loss.hyper}
        new[loss.name] = loss.update(state[loss.name], view, **keywords)
    weight = batch.comparisons.weight
    for option in self.transforms:
      if option.state:
        pairs = self.pairs(policy, reference, batch, hyper)
        keywords = {k: hyper[k] for k in option.hyper}
        mine = option.update(state[option.name], pairs, **keywords)
        new[option.name] = mine
        if option.select is not None:
          kept = option.select(mine, pairs, **keywords)
          weight = jnp.where(kept, weight, 0.0)
    comparisons = batch.comparisons._replace(weight=weight)
    return batch._replace(comparisons=comparisons), new

  def move_reference(
    self,
    reference: types.Params,
    policy: types.Params,
    step: Array,
    hyper: Mapping[str, Array],
  ) -> types.Params:
    """The reference for the next update; itself without such an option.

    Args:
      reference: the reference's weights, any pytree.
      policy: the policy's, of the same structure.
      step: updates done, int32 scalar.
      hyper: as in `__call__`.
    """
    for option in self.transforms:
      if option.changes == 'reference':
        keywords = self._keywords(option, hyper)
        reference = option.fn(reference, policy, step, **keywords)
    return reference

  def denominators(
    self, batch: types.Batch, num_tokens: Array
  ) -> dict[str, Array]:
    """What sums are divided by, from the data alone.

    Args:
      batch: the whole batch.
      num_tokens: float [C], tokens of each completion of the whole batch.

    Returns:
      {normaliser: float32 scalar >= a tiny positive number}; besides, the
      numbers of `desirable` and `undesirable` completions.
    """
    counts = types.CompletionScores(jnp.zeros_like(num_tokens), num_tokens)
    comparisons = present(batch.comparisons, num_tokens)
    weight = comparisons.weight
    tokens = num_tokens[comparisons.winner]
    sums = {
      'comparisons': jnp.sum(weight),
      'chosen_tokens': jnp.sum(weight * tokens),
    }
    if 'completions' in self.views:
      view = views.gather_labelled(counts, None, comparisons, batch)
      sums['desirable'] = jnp.sum(view.weight * view.desirable)
      sums['completions'] = sums['labels'] = jnp.sum(view.weight)
      sums['undesirable'] = sums['labels'] - sums['desirable']
    if 'lists' in self.views:
      sums['lists'] = jnp.sum(views.gather_lists(counts, None, batch).weight)
    return {k: _positive(v) for k, v in sums.items()}

  def pairs(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
  ) -> PairScores:
    """The comparisons as losses and metrics read them, [P]."""
    comparisons = present(batch.comparisons, policy.num_tokens)
    pairs = pairs_lib.gather(policy, reference, comparisons, batch.scores)
    return self._transformed('scores', pairs, hyper)

  def heads(self, batch: types.Batch, num_tokens: Array) -> types.Heads | None:
    """Which first tokens must be summed on their own; None where none are."""
    if 'heads' not in self.needs:
      return None
    winner, loser, _, _ = batch.comparisons
    shorter = jnp.minimum(num_tokens[winner], num_tokens[loser])
    return types.Heads(winner, loser, shorter)

  def _views(self, policy, reference, batch, hyper) -> dict[str, Any]:
    """What the losses read, by `_view_of`; only what some loss reads."""
    wanted = {_view_of(loss) for loss in self.losses}
    comparisons = present(batch.comparisons, policy.num_tokens)
    make = {
      'comparisons': lambda: self.pairs(policy, reference, batch, hyper),
      'likelihood': lambda: pairs_lib.gather(
        policy, reference, comparisons, batch.scores
      ),
      'completions': lambda: views.gather_labelled(
        policy, reference, comparisons, batch
      ),
      'lists': lambda: views.gather_lists(policy, reference, batch),
    }
    return {name: make[name]() for name in sorted(wanted)}

  def _values(self, loss, view, hyper, state) -> Array:
    """The loss of each comparison, completion or list, options applied."""
    keywords = {k: hyper[k] for k in loss.hyper}
    keywords |= {k: v for k, v in self.static if k in loss.static}
    mine = [t for t in self.transforms if loss_rules.accepts(t, loss)]
    for option in mine:
      if option.changes == 'beta':
        keywords['beta'] = option.fn(
          keywords['beta'],
          view,
          state[option.name],
          **self._keywords(option, hyper),
        )
    read = self._transformed('log_ratios', view, hyper) if mine else view
    arguments = (read, state[loss.name]) if loss.state else (read,)
    values = loss.fn(*arguments, **keywords)
    for option in mine:
      if option.changes == 'values':
        values = option.fn(values, view, **self._keywords(option, hyper))
    return values

  def _transformed(self, changes, pairs, hyper) -> PairScores:
    for option in self.transforms:
      if option.changes == changes:
        pairs = option.fn(pairs, **self._keywords(option, hyper))
    return pairs

  def _keywords(self, option, hyper) -> dict[str, Any]:
    chosen = {k: v for k, v in self.static if k in option.static}
    return {k: hyper[k] for k in option.hyper} | chosen


def make_objective(
  terms: tuple[str, ...],
  static: Mapping[str, str] | None = None,
  options: tuple[str, ...] = (),
) -> Objective:
  """The objective of the named losses and options.

  Args:
    terms: names of losses.
    static: {key: choice}, such as ipo's `reduction`.
    options: names of options.

  Raises:
    InputError: an unknown name, or an option that a loss does not take.
  """
  objective = Objective(
    tuple(terms), tuple(sorted((static or {}).items())), tuple(options)
  )
  loss_rules.check_options(
    {loss.name: loss for loss in objective.losses},
    {option.name: option for option in objective.transforms},
  )
  return objective


def default_hyper(
  terms: Mapping[str, float],
  options: tuple[str, ...] = (),
  **values: float | str,
):
  """Hyper-parameters of terms and options: defaults, overridden by `values`.

  Args:
    terms: {loss name: weight}.
    options: names of the options that are on.
    **values: hyper-parameters that differ from their defaults, and the static
      choices beside them, which are checked and left out.

  Returns:
    {name: float32 scalar array}, with a `weight/NAME` for every term.

  Raises:
    InputError: a value that nothing uses or that is out of bounds, or a
      keyword whose default the terms do not agree on.
  """
  losses = {name: registry.get(name) for name in terms}
  chosen = {name: registry.get_option(name) for name in options}
  loss_rules.check_values(losses, chosen, values)
  hyper = {}
  for it in (*losses.values(), *chosen.values()):
    hyper |= it.hyper
  hyper |= {k: v for k, v in values.items() if not isinstance(v, str)}
  hyper |= {f'weight/{name}': weight for name, weight in terms.items()}
  return {k: jnp.asarray(v, jnp.float32) for k, v in hyper.items()}


def present(
  comparisons: types.Comparisons, num_tokens: Array
) -> types.Comparisons:
  """The comparisons with weight 0 where a completion is not there."""
  there = num_tokens > 0
  both = there[comparisons.winner] & there[comparisons.loser]
  weight = jnp.where(both, comparisons.weight, 0.0)
  return comparisons._replace(weight=weight)


def _view_of(loss) -> str:
  """A likelihood reads the comparisons as they are, without options."""
  return 'likelihood' if loss.kind == 'likelihood' else loss.view


def _reduce(loss, view, values, denominators) -> Array:
  """The weighted mean of a loss's values, in the form of its normaliser."""
  weighted = view.weight * values
  if loss.normaliser != 'labels':
    return jnp.sum(weighted) / denominators[loss.normaliser]
  desirable = jnp.sum(weighted * view.desirable)
  rest = jnp.sum(weighted) - desirable
  return (
    desirable / denominators['desirable'] + rest / denominators['undesirable']
  )


def _positive(value: Array) -> Array:
  return jnp.maximum(value, jnp.finfo(jnp.float32).tiny)
