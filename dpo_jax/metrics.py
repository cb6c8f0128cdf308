"""update -> metrics: what a step or an evaluation reports.

Comes in: an objective, the scores of policy and reference, and a batch. Goes
out: weighted sums that carry their own counts and add up over batches, their
means under TRL's names, and the values of every comparison. Logs nothing.

A metric is one entry of `preference_sums` (a value per comparison) and, if it
is defined there, of `label_sums` (a value per labelled completion).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import views
from dpo_jax.losses.objective import LossState, Objective, present
from dpo_jax.losses.pairs import PairScores
from dpo_jax.losses.reference_free import alpha_reward
from dpo_jax.losses.views import LabelledScores
from dpo_jax.types import Array


class Mean(NamedTuple):
  """A weighted mean before its division; adds up over batches by field."""

  total: Array  # sum of weight times value
  count: Array  # sum of the weights; 0 = there is no mean


Sums = dict[str, Mean]  # by metric name


class Examples(NamedTuple):
  """Values of each comparison and labelled completion, arrays by name.

  A weight of 0 marks padding.
  """

  comparisons: dict[str, Array]  # [P]: PairScores' fields, loss and rewards
  labelled: dict[str, Array]  # [C]: LabelledScores' fields, loss, reward;
  # empty unless a loss reads labels


def score_sums(
  objective: Objective,
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  batch: types.Batch,
  hyper: Mapping[str, Array],
) -> Sums:
  """Sums of every metric that these scores allow.

  Args:
    objective: the losses; its reward decides what `rewards/...` means.
    policy: scores of the whole batch [C].
    reference: the reference's scores [C], or None.
    batch: the batch.
    hyper: as in Objective.
  """
  pairs = objective.pairs(policy, reference, batch, hyper)
  if objective.reward == 'none':
    return likelihood_sums(pairs)
  has_reference = reference is not None
  sums = preference_sums(
    pairs, *_pair_rewards(objective, pairs, hyper), has_reference=has_reference
  )
  if 'completions' not in objective.views:
    return sums
  comparisons = present(batch.comparisons, policy.num_tokens)
  labelled = views.gather_labelled(policy, reference, comparisons, batch)
  rewards = implicit_reward(objective.reward, *labelled[:3], hyper=hyper)
  return merge(sums, label_sums(labelled, rewards))


def preference_sums(
  pairs: PairScores,
  chosen_rewards: Array,
  rejected_rewards: Array,
  *,
  has_reference: bool = True,
) -> Sums:
  """Sums over comparisons.

  `kl` is `-mean(log pi - log ref)` over chosen and rejected answers: an
  unbiased estimate of KL(ref || pi) per completion, in nats, if the reference
  sampled the answers; a signed drift otherwise. `displacement` is the share of
  comparisons whose *chosen* answer became less likely than under the
  reference: common, and no bug (arXiv:2402.13228, arXiv:2410.08847). Both are
  absent without a reference.

  Args:
    pairs: scores of the comparisons, weight 0 = padding.
    chosen_rewards: [P], see `implicit_reward`.
    rejected_rewards: [P], of the rejected answers.
    has_reference: whether the pairs hold a reference's scores.
  """
  values = {
    'rewards/chosen': chosen_rewards,
    'rewards/rejected': rejected_rewards,
    # Strict wins, as in TRL: equal rewards (step 0) are none.
    'rewards/accuracies': _as_float(chosen_rewards > rejected_rewards),
    'rewards/margins': chosen_rewards - rejected_rewards,
    'logps/rejected': pairs.policy_rejected,
    'lengths/rejected': pairs.rejected_tokens,
  }
  if has_reference:
    chosen, rejected = pairs.chosen_log_ratio, pairs.rejected_log_ratio
    values['kl'] = -0.5 * (chosen + rejected)
    values['displacement'] = _as_float(chosen < 0)
  return _weighted(pairs.weight, values) | likelihood_sums(pairs)


def likelihood_sums(pairs: PairScores) -> Sums:
  """Sums that need neither a reference nor a rejected answer, as in SFT."""
  values = {
    'logps/chosen': pairs.policy_chosen,
    'lengths/chosen': pairs.chosen_tokens,
  }
  return _weighted(pairs.weight, values)


def label_sums(completions: LabelledScores, rewards: Array) -> Sums:
  """Sums over desirable (`chosen`) and undesirable (`rejected`) completions.

  No completion faces a certain other one, so `rewards/accuracies` is the share
  of all (desirable, undesirable) pairs of a batch that the rewards put in
  order: 1/2 by chance, as for comparisons. `kl` and `displacement` are as in
  `preference_sums`.

  Args:
    completions: scores, weight 0 = padding.
    rewards: [E], see `implicit_reward`.
  """
  good = completions.weight * completions.desirable
  bad = completions.weight - good
  ahead_EE = rewards[:, None] > rewards[None, :]
  pairs_EE = good[:, None] * bad[None, :]
  ordered = jnp.sum(jnp.where(ahead_EE, pairs_EE, 0.0))
  drift = Mean(
    -_sum(completions.weight, completions.log_ratio),
    jnp.sum(completions.weight),
  )
  fell = _as_float(completions.log_ratio < 0)
  sums = {
    'rewards/accuracies': Mean(ordered, jnp.sum(pairs_EE)),
    'kl': drift,
    'displacement': Mean(_sum(good, fell), jnp.sum(good)),
  }
  for side, weight in (('chosen', good), ('rejected', bad)):
    values = {
      f'rewards/{side}': rewards,
      f'logps/{side}': completions.policy,
      f'lengths/{side}': completions.num_tokens,
    }
    sums |= _weighted(weight, values)
  return sums


def merge(paired: Sums, labelled: Sums) -> Sums:
  """Takes the comparisons' sums if the batch has comparisons, else the labels'.

  So a loss of single completions reports on paired data what every other loss
  does. The names are the union of both: a metric that is defined for
  comparisons alone has count 0, hence no mean, where nothing is compared.
  `rewards/margins` is left out: the completions of a batch were counted apart,
  so `means` takes the difference of the two mean rewards.

  Args:
    paired: of `preference_sums`.
    labelled: of `label_sums`.
  """
  has_pairs = paired['rewards/chosen'].count > 0
  merged = paired | labelled
  for name in paired.keys() & labelled.keys():
    merged[name] = Mean(
      *(
        jnp.where(has_pairs, *both)
        for both in zip(paired[name], labelled[name])
      )
    )
  del merged['rewards/margins']
  return merged


def means(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Divides every `Mean` by its count, on the host; scalars stay as they are.

  A mean over nothing is absent. Where chosen and rejected rewards were counted
  apart, `rewards/margins` is the difference of their means.

  Args:
    metrics: {name: a concrete Mean or scalar}, as numpy arrays or numbers.
  """
  result = {}
  for name, value in metrics.items():
    if not isinstance(value, Mean):
      result[name] = value
    elif value.count != 0:
      result[name] = value.total / value.count
  sides = ('rewards/chosen', 'rewards/rejected')
  if 'rewards/margins' not in metrics and all(s in result for s in sides):
    result['rewards/margins'] = result[sides[0]] - result[sides[1]]
  return result


def implicit_reward(
  name: str,
  policy: Array,
  reference: Array,
  num_tokens: Array,
  hyper: Mapping[str, Array],
) -> Array:
  """The reward of completions that a loss trains, in units of its margin.

  Args:
    name: one of registry.REWARDS except 'none': `log_ratio` beta (log pi - log
      ref), `log_prob` beta log pi, `mean_log_prob` beta log pi / |y|,
      `alpha_log_prob` AlphaPO's beta (1 - p^-alpha) / alpha.
    policy: log pi, sums over tokens.
    reference: log ref, sums over tokens.
    num_tokens: |y|.
    hyper: `beta` is read (1 if there is none) and `alpha`.

  Returns:
    Rewards of the shape of `policy`.
  """
  beta = hyper.get('beta', jnp.ones((), policy.dtype))
  if name == 'log_ratio':
    return beta * (policy - reference)
  if name == 'log_prob':
    return beta * policy
  if name == 'mean_log_prob':
    return beta * policy / num_tokens
  return beta * alpha_reward(policy / num_tokens, hyper['alpha'])


def examples(
  objective: Objective,
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  batch: types.Batch,
  hyper: Mapping[str, Array],
  state: LossState | None = None,
) -> Examples:
  """Scores, rewards and loss of each comparison and labelled completion.

  What tables take their intervals from, and what any other loss can be
  computed from later.

  Args:
    objective: the losses.
    policy: scores of the whole batch [C].
    reference: the reference's scores [C], or None.
    batch: the batch.
    hyper: as in Objective.
    state: the running numbers.

  Returns:
    Examples without a `loss` if the loss is no mean over comparisons (or over
    labelled completions), and without rewards in SFT.
    `labelled['mismatched_log_ratio']`, KTO's baseline, is that of the batch.
  """
  pairs = objective.pairs(policy, reference, batch, hyper)
  each = objective.values(policy, reference, batch, hyper, state)
  comparisons = _fields(pairs)
  num_pairs = pairs.weight.shape[0]
  comparisons |= _losses(objective, each, hyper, slice(num_pairs))
  if objective.reward != 'none':
    chosen, rejected = _pair_rewards(objective, pairs, hyper)
    comparisons |= {'reward_chosen': chosen, 'reward_rejected': rejected}
  if 'completions' not in objective.views:
    return Examples(comparisons, {})
  gathered = views.gather_labelled(
    policy, reference, present(batch.comparisons, policy.num_tokens), batch
  )
  baseline = gathered.mismatched_log_ratio
  gathered = gathered._replace(
    mismatched_log_ratio=jnp.broadcast_to(baseline, gathered.weight.shape)
  )
  reward = implicit_reward(objective.reward, *gathered[:3], hyper=hyper)
  # First the winners and losers of the comparisons, then the labelled ones.
  labelled = {
    name: values[2 * num_pairs :]
    for name, values in (_fields(gathered) | {'reward': reward}).items()
  }
  labelled |= _losses(objective, each, hyper, slice(2 * num_pairs, None))
  return Examples(comparisons, labelled)


def _losses(objective, each, hyper, part: slice) -> dict[str, Array]:
  """{'loss': the weighted sum of the terms' values}, or {} if there is none.

  A loss of completions gives a comparison both of its values. A loss that is
  sorted over the batch, of lists, or divided by tokens has no value of its own
  for a comparison; for a labelled completion, only a loss whose mean is over
  all completions has one.
  """
  total, num_pairs = 0.0, part.stop
  for loss in objective.losses:
    _, values = each[loss.name]
    if loss.kind == 'transport' or loss.normaliser in (
      'chosen_tokens',
      'lists',
    ):
      return {}
    if num_pairs is None:  # the labelled completions
      if loss.normaliser != 'completions':
        return {}
      values = values[part]
    elif loss.view == 'completions':
      values = values[part] + values[num_pairs : 2 * num_pairs]
      if loss.normaliser == 'completions':  # twice as many as comparisons
        values = values / 2
    total = total + hyper[f'weight/{loss.name}'] * values
  return {'loss': total}


def _pair_rewards(objective, pairs, hyper) -> tuple[Array, Array]:
  """Rewards of the chosen and of the rejected answers, [P] each."""
  reward = functools.partial(implicit_reward, objective.reward, hyper=hyper)
  return (
    reward(pairs.policy_chosen, pairs.reference_chosen, pairs.chosen_tokens),
    reward(
      pairs.policy_rejected, pairs.reference_rejected, pairs.rejected_tokens
    ),
  )


def _fields(scores: NamedTuple) -> dict[str, Array]:
  return {k: v for k, v in scores._asdict().items() if v is not None}


def _weighted(weight: Array, values: Mapping[str, Array]) -> Sums:
  count = jnp.sum(weight)
  return {name: Mean(_sum(weight, v), count) for name, v in values.items()}


def _sum(weight, values):
  # Padding may hold infinities; 0 times them would be NaN.
  return jnp.sum(jnp.where(weight > 0, weight * values, 0.0))


def _as_float(mask):
  return mask.astype(jnp.float32)
