"""Views of the scores: what a loss takes as its first argument.

Comes in: CompletionScores [C] of policy and reference, and the batch. Goes
out: PairScores [P] for losses of comparisons, LabelledScores [E] for losses
of single completions, ListScores [C] for losses of all completions of a
prompt, with the quantities of the papers' formulas. Computes no loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.types import Array


class PairScores(NamedTuple):
  """Scores of the comparisons of a batch; every field is float32 [P]."""

  policy_chosen: Array  # log pi(y_w | x), summed over tokens, nats
  policy_rejected: Array  # log pi(y_l | x)
  reference_chosen: Array  # log ref(y_w | x); 0 without a reference
  reference_rejected: Array  # log ref(y_l | x)
  chosen_tokens: Array  # |y_w|
  rejected_tokens: Array  # |y_l|
  weight: Array  # weight of the comparison; 0 = padding
  margin: Array  # the data's margin
  score_chosen: Array  # the data's score of y_w
  score_rejected: Array  # the data's score of y_l
  # Only if a loss or an option needs them:
  policy_chosen_head: Array | None = None  # of the first min(|w|, |l|) tokens
  policy_rejected_head: Array | None = None
  reference_chosen_head: Array | None = None
  reference_rejected_head: Array | None = None
  chosen_aligned: Array | None = None  # sum of log p - log sum_v p_v^2
  rejected_aligned: Array | None = None
  chosen_kl: Array | None = None  # sum of KL(ref, pi) over the vocabulary
  rejected_kl: Array | None = None
  policy_best: Array | None = None  # log pi of the best answer, see `best`
  away_gap: Array | None = None  # h's gain, the policy a step away from ref
  toward_gap: Array | None = None  # the same, a step toward it

  @property
  def chosen_log_ratio(self) -> Array:
    """a_w = log pi(y_w|x) - log ref(y_w|x)."""
    return self.policy_chosen - self.reference_chosen

  @property
  def rejected_log_ratio(self) -> Array:
    """a_l = log pi(y_l|x) - log ref(y_l|x)."""
    return self.policy_rejected - self.reference_rejected

  @property
  def log_ratio_gap(self) -> Array:
    """h = a_w - a_l; beta times h is the argument of DPO's sigmoid."""
    return self.chosen_log_ratio - self.rejected_log_ratio

  @property
  def mean_log_ratio_gap(self) -> Array:
    """a_w/|w| - a_l/|l|: h of log-ratios that are means over tokens."""
    chosen = self.chosen_log_ratio / self.chosen_tokens
    return chosen - self.rejected_log_ratio / self.rejected_tokens


class LabelledScores(NamedTuple):
  """Completions that are desirable or not; float32 [E], E = 2 P + C.

  The order is: winners of the comparisons, their losers, labelled
  completions. So a loss reads paired and unpaired data alike.
  """

  policy: Array  # log pi(y | x), summed over tokens, nats
  reference: Array  # log ref(y | x); 0 without a reference
  num_tokens: Array  # |y|
  desirable: Array  # 1 desirable, 0 undesirable
  weight: Array  # 0 = padding
  mismatched_log_ratio: Array  # scalar: mean log-ratio of the mismatched
  # completions of the batch; 0 if the batch has none
  # share of the reference's own answers that score no better; None = not given
  quantile: Array | None = None

  @property
  def log_ratio(self) -> Array:
    """a = log pi(y|x) - log ref(y|x)."""
    return self.policy - self.reference


class ListScores(NamedTuple):
  """All completions of every prompt; every field is [C].

  `weight` belongs to prompts, not to completions: a batch has at most C of
  them.
  """

  policy: Array  # log pi(y | x), summed over tokens, nats
  reference: Array  # log ref(y | x); 0 without a reference
  scores: Array  # the data's score
  prompt: Array  # int32: prompt in the batch; -1 = none
  weight: Array  # of each prompt, by the data; 0 = less than two completions

  @property
  def log_ratio(self) -> Array:
    """a = log pi(y|x) - log ref(y|x)."""
    return self.policy - self.reference

  def log_softmax(self, values: Array) -> Array:
    """log softmax of values [C] over the completions of each prompt."""
    # A completion of no prompt enters no sum, and its result is 0.
    member = self.prompt >= 0
    top = jax.ops.segment_max(values, self.prompt, values.shape[0])
    top = jax.lax.stop_gradient(jnp.where(member, top[self.prompt], values))
    total = self.sum(jnp.exp(values - top))[self.prompt]
    return values - top - jnp.log(jnp.where(member, total, 1.0))

  def sum(self, values: Array) -> Array:
    """Sums of values [C] over the completions of each prompt, [C]."""
    return jax.ops.segment_sum(values, self.prompt, values.shape[0])


def gather_pairs(
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  batch: types.Batch,
) -> PairScores:
  """Gathers scores [C] by comparison.

  Args:
    policy: scores of the policy.
    reference: scores of the reference, or None for losses that need none.
    batch: its comparisons (indices into [C]) and the data's scores are read.

  Returns:
    PairScores [P]; weight 0 where a completion is absent.
  """
  comparisons = present(batch.comparisons, policy.num_tokens)
  winner, loser = comparisons.winner, comparisons.loser
  ref_logps = _reference_logps(policy, reference)
  num_tokens = _lengths(policy)
  pairs = PairScores(
    policy_chosen=policy.logps[winner],
    policy_rejected=policy.logps[loser],
    reference_chosen=ref_logps[winner],
    reference_rejected=ref_logps[loser],
    chosen_tokens=num_tokens[winner],
    rejected_tokens=num_tokens[loser],
    weight=comparisons.weight,
    margin=comparisons.margin,
    score_chosen=batch.scores[winner],
    score_rejected=batch.scores[loser],
    policy_best=policy.logps[best(batch)],
  )
  return pairs._replace(**_token_sums(policy, reference, winner, loser))


def gather_labelled(
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  batch: types.Batch,
) -> LabelledScores:
  """Reads winners as desirable, losers as undesirable, and the labels.

  A comparison counts only if neither of its completions is labelled, so that
  no completion counts twice. A demonstration (winner = loser) never counts.

  Args:
    policy: scores of the policy [C].
    reference: scores of the reference, or None.
    batch: comparisons, labels and mismatched completions are read.

  Returns:
    LabelledScores [2 P + C].
  """
  comparisons = present(batch.comparisons, policy.num_tokens)
  winner, loser = comparisons.winner, comparisons.loser
  known = batch.labels >= 0
  counts = ~known[winner] & ~known[loser] & (winner != loser)
  pair_weight = jnp.where(counts, comparisons.weight, 0.0)
  index = jnp.concatenate([winner, loser, jnp.arange(known.shape[0])])
  label_weight = (known & _is_present(policy)).astype(policy.logps.dtype)
  ref_logps = _reference_logps(policy, reference)
  return LabelledScores(
    policy=policy.logps[index],
    reference=ref_logps[index],
    num_tokens=_lengths(policy)[index],
    desirable=jnp.concatenate(
      [
        jnp.ones_like(label_weight, shape=winner.shape),
        jnp.zeros_like(label_weight, shape=loser.shape),
        (batch.labels == 1).astype(label_weight.dtype),
      ]
    ),
    weight=jnp.concatenate([pair_weight, pair_weight, label_weight]),
    mismatched_log_ratio=_mismatched(policy, ref_logps, batch.mismatched),
    quantile=None if batch.quantiles is None else batch.quantiles[index],
  )


def gather_lists(
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  batch: types.Batch,
) -> ListScores:
  """Groups the completions of the batch by prompt.

  Args:
    policy: scores of the policy [C].
    reference: scores of the reference, or None.
    batch: scores, prompt_index and mismatched completions are read.

  Returns:
    ListScores [C]; a prompt has the data's weight, or 0 with one completion.
  """
  member = _is_present(policy)
  # A mismatched completion answers another prompt: it is in no list.
  if batch.mismatched is not None:
    member = member & (batch.mismatched == 0)
  prompt = jnp.where(member, batch.prompt_index, -1)
  count = jax.ops.segment_sum(member.astype(jnp.int32), prompt, member.shape[0])
  return ListScores(
    policy=policy.logps,
    reference=_reference_logps(policy, reference),
    scores=batch.scores,
    prompt=prompt,
    weight=jnp.where(count >= 2, _list_weights(batch, prompt), 0.0),
  )


def best(batch: types.Batch) -> Array:
  """The best completion of the prompt of each comparison, int32 [P].

  The one with the most comparisons won minus lost, as in SFT
  (data/text/preferences.py); the first of several. Of a comparison of a
  completion with itself, that completion.
  """
  winner, loser = batch.comparisons.winner, batch.comparisons.loser
  prompt, num = batch.prompt_index, batch.prompt_index.shape[0]
  is_real = winner != loser
  one = is_real.astype(jnp.int32)
  points = jax.ops.segment_sum(one, winner, num)
  points = points - jax.ops.segment_sum(one, loser, num)
  # Completions of no prompt (-1) enter no segment.
  top = jax.ops.segment_max(points, prompt, num)
  numbers = jnp.where(points == top[prompt], jnp.arange(num), num - 1)
  first = jax.ops.segment_min(numbers, prompt, num)
  return jnp.where(is_real, first[prompt[winner]], winner)


def present(
  comparisons: types.Comparisons, num_tokens: Array
) -> types.Comparisons:
  """The comparisons, with weight 0 where a completion is absent.

  Args:
    comparisons: of the batch [P].
    num_tokens: float [C]; 0 = absent, as in another microbatch.
  """
  is_present = num_tokens > 0
  both = is_present[comparisons.winner] & is_present[comparisons.loser]
  weight = jnp.where(both, comparisons.weight, 0.0)
  return comparisons._replace(weight=weight)


def _list_weights(batch: types.Batch, prompt: Array) -> Array:
  """Weight of each prompt's list [C], as Batch.list_weight has it."""
  num, weight = prompt.shape[0], batch.comparisons.weight
  if batch.list_weight is not None:
    # Equal for all completions of a prompt.
    return jax.ops.segment_max(batch.list_weight, prompt, num)
  winner, loser = batch.comparisons.winner, batch.comparisons.loser
  # Padding compares a completion with itself.
  real = (winner != loser).astype(weight.dtype)
  count = jax.ops.segment_sum(real, prompt[winner], num)
  total = jax.ops.segment_sum(real * weight, prompt[winner], num)
  return jnp.where(count > 0, total / jnp.maximum(count, 1), 1.0)


def _reference_logps(policy, reference) -> Array:
  """log ref(y | x) [C]; zeros without a reference."""
  if reference is None:
    return jnp.zeros_like(policy.logps)
  return reference.logps


def _lengths(policy) -> Array:
  """|y| [C], at least 1: an index may point at an absent completion."""
  return jnp.maximum(policy.num_tokens, 1)


def _is_present(policy) -> Array:
  """Bool [C]: whether these scores hold the completion."""
  return policy.num_tokens > 0


def _token_sums(policy, reference, winner, loser) -> dict[str, Array]:
  """The fields that only some losses need, as far as the scores have them."""
  sums = {}
  if policy.log_sum_sq_probs is not None:
    aligned = policy.logps - policy.log_sum_sq_probs
    sums['chosen_aligned'] = aligned[winner]
    sums['rejected_aligned'] = aligned[loser]
  if policy.kl is not None:
    sums['chosen_kl'] = policy.kl[winner]
    sums['rejected_kl'] = policy.kl[loser]
  if policy.away is not None:
    sums['away_gap'] = policy.away[winner] - policy.away[loser]
    sums['toward_gap'] = policy.toward[winner] - policy.toward[loser]
  for side, scores in (('policy', policy), ('reference', reference)):
    if scores is not None and scores.heads_2P is not None:
      chosen, rejected = scores.heads_2P
      sums[f'{side}_chosen_head'] = chosen
      sums[f'{side}_rejected_head'] = rejected
  return sums


def _mismatched(policy, ref_logps, mismatched) -> Array:
  """Mean log-ratio of the mismatched completions; 0 if there are none."""
  if mismatched is None:
    return jnp.zeros((), policy.logps.dtype)
  counts = (mismatched == 1) & _is_present(policy)
  log_ratio = jnp.where(counts, policy.logps - ref_logps, 0.0)
  return jnp.sum(log_ratio) / jnp.maximum(jnp.sum(counts), 1)
