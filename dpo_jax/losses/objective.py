"""scores -> loss: the weighted sum of the configured losses.

Comes in: CompletionScores of policy and reference, the batch's comparisons
and the hyper-parameters. Goes out: one number, and each term's own. Knows no
model and no mesh: it always sees the scores of all C completions.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import pairs as pairs_lib
from dpo_jax.losses import registry
from dpo_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Objective:
  """The losses of a run; hashable, so that equal objectives share compiles."""

  terms: tuple[str, ...]  # names of the losses that are summed
  static: tuple[tuple[str, str], ...] = ()  # choices such as ipo's reduction

  @property
  def losses(self) -> tuple[registry.Loss, ...]:
    """The registered losses behind the terms."""
    return tuple(registry.get(name) for name in self.terms)

  @property
  def needs_reference(self) -> bool:
    """Whether any term reads the reference's scores."""
    return any('reference' in loss.needs for loss in self.losses)

  @property
  def whole_batch(self) -> bool:
    """Whether a comparison's value depends on the rest of the batch."""
    return any('whole_batch' in loss.needs for loss in self.losses)

  def __call__(
    self,
    policy: types.CompletionScores,
    reference: types.CompletionScores | None,
    batch: types.Batch,
    hyper: Mapping[str, Array],
    denominators: Mapping[str, Array] | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Loss of a batch, or of the part of it that `policy` holds.

    Args:
      policy: scores [C]; absent completions have num_tokens 0, and their
        comparisons count nothing.
      reference: scores [C], or None where no term needs them.
      batch: its comparisons and data scores are read, not its rows.
      hyper: float32 scalars: each loss's keywords, and `weight/NAME` a term.
      denominators: what each term's sum is divided by; those of the whole
        batch when `policy` holds one microbatch. Default: this batch's own.

    Returns:
      (loss, {term: its unweighted value}), float32 scalars.
    """
    comparisons = present(batch.comparisons, policy.num_tokens)
    if denominators is None:
      denominators = self.denominators(comparisons, policy.num_tokens)
    pairs = pairs_lib.gather(policy, reference, comparisons, batch.scores)
    total, values = jnp.zeros((), jnp.float32), {}
    for loss in self.losses:
      keywords = {k: hyper[k] for k in loss.hyper}
      keywords |= {k: v for k, v in self.static if k in loss.static}
      values_P = jnp.where(pairs.weight > 0, loss.fn(pairs, **keywords), 0.0)
      value = jnp.sum(pairs.weight * values_P) / denominators[loss.normaliser]
      values[loss.name] = value
      total = total + hyper[f'weight/{loss.name}'] * value
    return total, values

  def denominators(
    self, comparisons: types.Comparisons, num_tokens: Array
  ) -> dict[str, Array]:
    """What sums over comparisons are divided by, from the data alone.

    Args:
      comparisons: of the whole batch, weight 0 where there is none.
      num_tokens: float [C], tokens of each completion of the whole batch.

    Returns:
      {normaliser: float32 scalar >= a tiny positive number}.
    """
    weight = comparisons.weight
    return {
      'comparisons': _positive(jnp.sum(weight)),
      'chosen_tokens': _positive(
        jnp.sum(weight * num_tokens[comparisons.winner])
      ),
    }


def make_objective(
  terms: tuple[str, ...], static: Mapping[str, str] | None = None
) -> Objective:
  """The objective of the named losses; InputError for an unknown name."""
  objective = Objective(tuple(terms), tuple(sorted((static or {}).items())))
  for name in objective.terms:
    registry.get(name)
  return objective


def default_hyper(terms: Mapping[str, float], **values: float):
  """Hyper-parameters of the terms: their defaults, overridden by `values`.

  Args:
    terms: {loss name: weight}.
    **values: hyper-parameters that differ from their defaults.

  Returns:
    {name: float32 scalar array}, with a `weight/NAME` for every term.
  """
  hyper = {}
  for name, weight in terms.items():
    hyper |= registry.get(name).hyper
    hyper[f'weight/{name}'] = weight
  unknown = set(values) - set(hyper)
  if unknown:
    raise types.InputError(
      f'config.loss.{sorted(unknown)[0]}: not used by {", ".join(terms)}; '
      f'fix: remove it, or use one of {", ".join(sorted(hyper))}'
    )
  hyper |= values
  return {k: jnp.asarray(v, jnp.float32) for k, v in hyper.items()}


def present(
  comparisons: types.Comparisons, num_tokens: Array
) -> types.Comparisons:
  """The comparisons with weight 0 where a completion is not there."""
  there = num_tokens > 0
  both = there[comparisons.winner] & there[comparisons.loser]
  weight = jnp.where(both, comparisons.weight, 0.0)
  return comparisons._replace(weight=weight)


def _positive(value: Array) -> Array:
  return jnp.maximum(value, jnp.finfo(jnp.float32).tiny)
