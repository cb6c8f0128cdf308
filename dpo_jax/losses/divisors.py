"""values -> mean: what the values of a loss are divided by.

Comes in: the values of a loss, one array per divisor (records.DIVISORS), and
the weights of its view. Goes out: the divisors of a batch, and weighted means.
A part over nothing is 0 and has no gradient. Knows no loss.
"""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import views as views_lib
from dpo_jax.types import Array

# {divisor: LabelledScores.desirable of the completions that it counts}
_LABELS = {'desirable': 1, 'undesirable': 0}


def counts(
  batch: types.Batch, num_tokens: Array, views: Collection[str]
) -> dict[str, Array]:
  """Divisors of a batch, which follow from the data alone.

  Args:
    batch: the whole batch; its rows are not read.
    num_tokens: float [C], tokens of each completion of the whole batch.
    views: views whose divisors are wanted besides those of comparisons.

  Returns:
    {divisor: float32 scalar >= 0}, sums of weights (of weights times tokens
    for `chosen_tokens` and `best_tokens`).
  """
  pairs = views_lib.present(batch.comparisons, num_tokens)
  tokens = num_tokens[pairs.winner]
  sums = {
    'comparisons': jnp.sum(pairs.weight),
    'chosen_tokens': jnp.sum(pairs.weight * tokens),
    'best_tokens': jnp.sum(pairs.weight * num_tokens[views_lib.best(batch)]),
  }
  # The weights of a view do not depend on the log-probabilities.
  scores = types.CompletionScores(jnp.zeros_like(num_tokens), num_tokens)
  if 'completions' in views:
    view = views_lib.gather_labelled(scores, None, batch)
    for name in ('completions', *_LABELS):
      sums[name] = jnp.sum(weight(view, name))
  if 'lists' in views:
    sums['lists'] = jnp.sum(views_lib.gather_lists(scores, None, batch).weight)
  return sums


def weight(view: Any, divisor: str) -> Array:
  """Weights of a view's values, 0 for those that the divisor leaves out.

  Args:
    view: PairScores, LabelledScores or ListScores.
    divisor: one of records.DIVISORS of that view.

  Returns:
    Weights of the shape of the values.
  """
  if divisor not in _LABELS:
    return view.weight
  return jnp.where(view.desirable == _LABELS[divisor], view.weight, 0.0)


def mean(values: Array, weights: Array, count: Array) -> Array:
  """Sum of weighted values over `count`; 0 if the count is 0."""
  return jnp.sum(weights * values) / jnp.where(count > 0, count, 1.0)
