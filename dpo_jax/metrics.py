"""update -> metrics: what a step or an evaluation reports.

Comes in: an objective, the scores of policy and reference, and a batch. Goes
out: weighted sums that carry their own counts and add up over batches, their
means under TRL's names, and the values of every comparison. Logs nothing.

A metric is one entry of `preference_sums` (a value per comparison) and, if it
is defined for single completions, one of `label_sums`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.losses import divisors, rules, views
from dpo_jax.losses.objective import LossState, Objective
from dpo_jax.losses.reference_free import alpha_reward
from dpo_jax.losses.views import LabelledScores, PairScores
from dpo_jax.types import Array


class Mean(NamedTuple):
  """A weighted mean before the division; two of them add up field by field."""

  total: Array  # sum of weight times value
  count: Array  # sum of the weights; 0 = no mean


Sums = dict[str, Mean]  # by metric name


class Examples(NamedTuple):
  """Values of each comparison and labelled completion, arrays by name.

  A weight of 0 marks padding.
  """

  comparisons: dict[str, Array]  # [P]: fields of PairScores, loss, rewards
  # [C]: fields of LabelledScores, loss, reward; {} unless a loss reads labels.
  labelled: dict[str, Array]


def score_sums(
  objective: Objective,
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  batch: types.Batch,
  hyper: Mapping[str, Array],
) -> Sums:
  """Returns the sums of every metric that these scores allow.

  Args:
    objective: the losses; `objective.reward` decides what `rewards/...` means.
    policy: scores of the whole batch [C].
    reference: the reference's scores [C], or None.
    batch: the batch.
    hyper: as in Objective.
  """
  # All numbers stay on the device: the loop reads them a step later.
  pairs = objective.pairs(policy, reference, batch, hyper)
  if objective.reward == 'none':
    return likelihood_sums(pairs)
  # Without a reference the pairs hold zeros in its place; `kl` and
  # `displacement` of those would look like numbers.
  has_reference = reference is not None
  sums = preference_sums(
    pairs, *_pair_rewards(objective, pairs, hyper), has_reference=has_reference
  )
  if 'completions' not in objective.views:
    return sums
  labelled = views.gather_labelled(policy, reference, batch)
  rewards = implicit_reward(objective.reward, *labelled[:3], hyper=hyper)
  return merge(sums, label_sums(labelled, rewards))


def preference_sums(
  pairs: PairScores,
  chosen_rewards: Array,
  rejected_rewards: Array,
  *,
  has_reference: bool = True,
) -> Sums:
  """Returns sums over comparisons.

  `kl` is `-mean(log pi - log ref)` over chosen and rejected answers: an
  unbiased estimate of KL(ref || pi) per completion, in nats, if the reference
  sampled the answers; a signed drift otherwise. `displacement` is the share of
  comparisons whose *chosen* answer is less likely than under the reference:
  common, and not a bug (arXiv:2402.13228, arXiv:2410.08847). Both are absent
  without a reference.

  Args:
    pairs: scores of the comparisons, weight 0 = padding.
    chosen_rewards: [P], see `implicit_reward`.
    rejected_rewards: [P], of the rejected answers.
    has_reference: whether the pairs hold a reference's scores.
  """
  values = {
    'rewards/chosen': chosen_rewards,
    'rewards/rejected': rejected_rewards,
    # Strict wins, as in TRL. At step 0 all rewards are equal, so the accuracy
    # starts at 0 and not at 1/2.
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
  """Returns the sums that need no reference and no rejected answer (SFT)."""
  values = {
    'logps/chosen': pairs.policy_chosen,
    'lengths/chosen': pairs.chosen_tokens,
  }
  return _weighted(pairs.weight, values)


def label_sums(completions: LabelledScores, rewards: Array) -> Sums:
  """Returns sums over desirable (`chosen`) and undesirable completions.

  Undesirable ones are reported as `rejected`. No completion is compared with a
  particular other one, so `rewards/accuracies` is the share of all (desirable,
  undesirable) pairs that the rewards put in order: 1/2 by chance, as for
  comparisons. `kl` and `displacement` are as in `preference_sums`.

  Args:
    completions: scores, weight 0 = padding.
    rewards: [E], see `implicit_reward`.
  """
  # E completions: winners and losers of the comparisons, then labelled ones.
  good = completions.weight * completions.desirable
  bad = completions.weight - good
  ordered = Mean(_ordered(rewards, good, bad), jnp.sum(good) * jnp.sum(bad))
  drift = Mean(
    -_sum(completions.weight, completions.log_ratio),
    jnp.sum(completions.weight),
  )
  fell = _as_float(completions.log_ratio < 0)
  sums = {
    'rewards/accuracies': ordered,
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
  """Takes the comparison sums if there are comparisons, else the label sums.

  On paired data a loss of single completions thus reports the same metrics as
  every other loss. The names are the union of both: a metric that only
  comparisons have gets count 0, hence no mean, if nothing is compared.
  `rewards/margins` is left out: desirable and undesirable completions are
  counted separately, so `means` takes the difference of the two mean rewards.

  Args:
    paired: from `preference_sums`.
    labelled: from `label_sums`.
  """
  # A traced number, so a `where` and not a branch: both sums are computed.
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

  A mean over nothing is absent. If chosen and rejected rewards were counted
  separately, `rewards/margins` is the difference of their means.

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
  """Returns the implicit reward of completions, in the units of the margin.

  Args:
    name: one of records.REWARDS except 'none': `log_ratio` beta (log pi - log
      ref), `log_prob` beta log pi, `mean_log_prob` beta log pi / |y|,
      `alpha_log_prob` AlphaPO's beta (1 - p^-alpha) / alpha.
    policy: log pi, sums over tokens.
    reference: log ref, sums over tokens.
    num_tokens: |y|.
    hyper: `beta` (default 1) and `alpha` are read.

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
  """Returns scores, rewards and loss per comparison and labelled completion.

  Tables compute their intervals from these values, and any other loss can be
  computed from the scores later.

  Args:
    objective: the losses.
    policy: scores of the whole batch [C].
    reference: the reference's scores [C], or None.
    batch: the batch.
    hyper: as in Objective.
    state: the running numbers of the losses.

  Returns:
    Examples. The weighted mean of `loss` is the loss; it is absent if the
    loss is no sum over comparisons (or over labelled completions), as those
    that sort the batch. Rewards are absent in SFT.
    `labelled['mismatched_log_ratio']`, KTO's baseline, is that of the batch.
  """
  pairs = objective.pairs(policy, reference, batch, hyper)
  each = objective.values(policy, reference, batch, hyper, state)
  counts = objective.denominators(batch, policy.num_tokens)
  losses_of = functools.partial(_losses, objective, each, counts, hyper)
  comparisons = _fields(pairs)
  num_pairs = pairs.weight.shape[0]
  comparisons |= losses_of(slice(num_pairs))
  if objective.reward != 'none':
    chosen, rejected = _pair_rewards(objective, pairs, hyper)
    comparisons |= {'reward_chosen': chosen, 'reward_rejected': rejected}
  if 'completions' not in objective.views:
    return Examples(comparisons, {})
  gathered = views.gather_labelled(policy, reference, batch)
  # One number per batch, repeated so that every saved row is complete.
  baseline = gathered.mismatched_log_ratio
  gathered = gathered._replace(
    mismatched_log_ratio=jnp.broadcast_to(baseline, gathered.weight.shape)
  )
  reward = implicit_reward(objective.reward, *gathered[:3], hyper=hyper)
  # The view holds P winners, P losers, then the labelled completions. Only the
  # last part belongs here: `comparisons` has the rest.
  labelled = {
    name: values[2 * num_pairs :]
    for name, values in (_fields(gathered) | {'reward': reward}).items()
  }
  labelled |= losses_of(slice(2 * num_pairs, None))
  return Examples(comparisons, labelled)


def _losses(objective, each, counts, hyper, part: slice) -> dict[str, Array]:
  """{'loss': the weighted sum of the terms' values}, or {} if undefined.

  For a loss of completions, a comparison gets the mean of its two values. A
  loss that sorts the batch, ranks lists or is no weighted mean has no value per
  comparison.
  """
  total, num_pairs = 0.0, part.stop
  for loss in objective.losses:
    view, parts = each[loss.name]
    is_single = loss.view == 'completions'
    # num_pairs None: `part` is the labelled completions.
    if not _has_values(objective, loss) or (
      num_pairs is None and not is_single
    ):
      return {}
    values = sum(
      _linear(view, divisor, of_part, counts[divisor])
      for divisor, of_part in parts.items()
    )
    if num_pairs is None:
      values = values[part]
    elif is_single:
      values = (values[part] + values[num_pairs : 2 * num_pairs]) / 2
    total = total + hyper[f'weight/{loss.name}'] * values
  return {'loss': total}


def _linear(view, divisor: str, values: Array, count: Array) -> Array:
  """Values whose weighted mean over the view is a part's mean R, [P] or [E].

  The part may be divided by tokens or by the completions of one label, u_i of
  example i: R = sum(w v) / sum(w u). R + (v_i - R u_i) sum(w) / sum(w u) has
  that mean too, and the variance of a ratio (the delta method), which intervals
  need. It is v_i itself where the divisor is the view's number.
  """
  weight = divisors.weight(view, divisor)
  units = (weight > 0).astype(weight.dtype)
  if divisor == 'chosen_tokens':
    units = units * view.chosen_tokens
  mean = divisors.mean(values, weight, count)
  scale = jnp.sum(view.weight) / jnp.where(count > 0, count, 1.0)
  return jnp.where(view.weight > 0, mean + scale * (values - mean * units), 0.0)


def _has_values(objective, loss) -> bool:
  """Whether a loss is a sum of one value per comparison or completion."""
  options = objective.transforms
  return (
    loss.kind != 'transport'
    and loss.view != 'lists'
    and not any(o.changes == 'mean' and rules.accepts(o, loss) for o in options)
  )


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
  """The fields that are present, by name."""
  return {k: v for k, v in scores._asdict().items() if v is not None}


def _ordered(rewards: Array, good: Array, bad: Array) -> Array:
  """Sum of good_i bad_j over all i, j whose reward i is larger than reward j.

  By sorting, in memory of order E: a held-out set has E^2 of these pairs.
  """
  # Padding may hold NaN; at infinity, with weight 0, it is below no reward.
  keys = jnp.where(bad > 0, rewards, jnp.inf)
  order = jnp.argsort(keys)
  below = jnp.cumsum(jnp.append(jnp.zeros((), bad.dtype), bad[order]))
  # 'left': a reward that ties is not below.
  return _sum(good, below[jnp.searchsorted(keys[order], rewards, side='left')])


def _weighted(weight: Array, values: Mapping[str, Array]) -> Sums:
  """Sums of several values [P] or [E] with one weight."""
  count = jnp.sum(weight)
  return {name: Mean(_sum(weight, v), count) for name, v in values.items()}


def _sum(weight, values):
  # Padding may hold infinities, and 0 times infinity is NaN: hence the mask.
  return jnp.sum(jnp.where(weight > 0, weight * values, 0.0))


def _as_float(mask):
  return mask.astype(jnp.float32)
