"""update -> metrics: what a step or an evaluation reports, as scalars.

Comes in: PairScores [P] or LabelledScores [E] and the rewards of the loss.
Goes out: sums that add up over batches, and the means made of them, under
TRL's names. Logs nothing.
"""

import jax.numpy as jnp

from dpo_jax.losses.views import LabelledScores, PairScores
from dpo_jax.types import Array


def preference_sums(
  pairs: PairScores,
  chosen_rewards: Array,
  rejected_rewards: Array,
  *,
  has_reference: bool = True,
) -> dict[str, Array]:
  """Weighted sums over comparisons; `means` divides them.

  `kl` is `-mean(log pi - log ref)` over chosen and rejected answers: an
  unbiased estimate of KL(ref || pi) a completion, in nats, where the answers
  were sampled from the reference; a signed drift otherwise. `displacement` is
  the share of comparisons whose *chosen* answer became less likely than under
  the reference: common, and no bug (arXiv: 2402.13228, 2410.08847). Both are
  left out without a reference.

  Args:
    pairs: scores of the comparisons, weight 0 = padding.
    chosen_rewards: [P], see losses.rewards.
    rejected_rewards: [P], likewise.
    has_reference: whether the pairs hold a reference's scores.

  Returns:
    {name: float32 scalar}, with `comparisons` the sum of the weights.
  """
  values = {
    'rewards/chosen': chosen_rewards,
    'rewards/rejected': rejected_rewards,
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


def likelihood_sums(pairs: PairScores) -> dict[str, Array]:
  """Sums that need no reference and no rejected answer, as in SFT."""
  values = {
    'logps/chosen': pairs.policy_chosen,
    'lengths/chosen': pairs.chosen_tokens,
  }
  counts = {'comparisons': jnp.sum(pairs.weight)}
  return _weighted(pairs.weight, values) | counts


def label_sums(completions: LabelledScores, rewards: Array) -> dict[str, Array]:
  """Sums over desirable (`chosen`) and undesirable (`rejected`) completions.

  Nothing says which completion faces which, so `rewards/accuracies` is the
  share of all (desirable, undesirable) pairs of a batch that the rewards put
  in order: 1/2 by chance, as for comparisons. `kl` and `displacement` are as
  in `preference_sums`.

  Args:
    completions: scores, weight 0 = padding.
    rewards: [E], see losses.rewards.

  Returns:
    {name: float32 scalar}, with `count/NAME` what `means` divides NAME by.
  """
  good = completions.weight * completions.desirable
  bad = completions.weight - good
  ahead_EE = rewards[:, None] > rewards[None, :]
  pairs_EE = good[:, None] * bad[None, :]
  sums = {
    'rewards/accuracies': jnp.sum(jnp.where(ahead_EE, pairs_EE, 0.0)),
    'kl': -_sum(completions.weight, completions.log_ratio),
    'displacement': _sum(good, _as_float(completions.log_ratio < 0)),
  }
  counts = {
    'rewards/accuracies': jnp.sum(pairs_EE),
    'kl': jnp.sum(completions.weight),
    'displacement': jnp.sum(good),
  }
  for side, weight in (('chosen', good), ('rejected', bad)):
    for name, values in (
      ('rewards', rewards),
      ('logps', completions.policy),
      ('lengths', completions.num_tokens),
    ):
      sums[f'{name}/{side}'] = _sum(weight, values)
      counts[f'{name}/{side}'] = jnp.sum(weight)
  return sums | {f'count/{k}': v for k, v in counts.items()}


def judgement_sums(
  paired: dict[str, Array], labelled: dict[str, Array]
) -> dict[str, Array]:
  """Of comparisons where the batch has any, of labels where it has none.

  So a loss of single completions reports on paired data what every other
  loss does.

  Args:
    paired: of `preference_sums`.
    labelled: of `label_sums`.

  Returns:
    Sums in the form of `label_sums`.
  """
  has_pairs = paired['comparisons'] > 0
  sums = {}
  for name, value in labelled.items():
    key = name.removeprefix('count/')
    other = paired[name] if name == key else paired['comparisons']
    sums[name] = jnp.where(has_pairs, other, value)
  return sums


def means(sums: dict[str, Array]) -> dict[str, Array]:
  """Divides sums by their `count/NAME`, or else by `comparisons`.

  The counts are left out. Where chosen and rejected were counted apart,
  `rewards/margins` is the difference of their means.
  """
  result = {}
  for name, value in sums.items():
    if name == 'comparisons' or name.startswith('count/'):
      continue
    count = sums.get(f'count/{name}', sums.get('comparisons', 0.0))
    result[name] = value / (count + (count == 0))  # numbers and arrays alike
  if 'count/rewards/chosen' in sums:
    margin = result['rewards/chosen'] - result['rewards/rejected']
    result['rewards/margins'] = margin
  return result


def _weighted(weight, values):
  return {k: _sum(weight, v) for k, v in values.items()}


def _sum(weight, values):
  return jnp.sum(jnp.where(weight > 0, weight * values, 0.0))


def _as_float(mask):
  return mask.astype(jnp.float32)
