"""What a loss of comparisons reads: scores gathered by comparison.

Comes in: CompletionScores [C] and Comparisons [P]. Goes out: PairScores [P]
with the quantities that the papers' formulas are written in.
"""

from typing import NamedTuple

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
  # Only where a loss or an option asks for them:
  policy_chosen_head: Array | None = None  # of the first min(|w|, |l|) tokens
  policy_rejected_head: Array | None = None
  reference_chosen_head: Array | None = None
  reference_rejected_head: Array | None = None
  chosen_aligned: Array | None = None  # sum of log p - log sum_v p_v^2
  rejected_aligned: Array | None = None
  chosen_kl: Array | None = None  # sum of KL(ref, pi) over the vocabulary
  rejected_kl: Array | None = None
  # Only in what is saved of an evaluation, see losses.examples:
  loss: Array | None = None  # weighted sum of the terms

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
    """h = a_w - a_l, the quantity that DPO's sigmoid sees times beta."""
    return self.chosen_log_ratio - self.rejected_log_ratio

  @property
  def mean_log_ratio_gap(self) -> Array:
    """a_w/|w| - a_l/|l|, h with every log-ratio a mean over its tokens."""
    chosen = self.chosen_log_ratio / self.chosen_tokens
    return chosen - self.rejected_log_ratio / self.rejected_tokens


def gather(
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  comparisons: types.Comparisons,
  scores: Array,
) -> PairScores:
  """Gathers scores [C] by comparison.

  Args:
    policy: the policy's scores.
    reference: the reference's, or None for losses that need none.
    comparisons: winner and loser, indices into [C].
    scores: float [C], the data's own scores.

  Returns:
    PairScores [P].
  """
  winner, loser = comparisons.winner, comparisons.loser
  zeros = jnp.zeros_like(policy.logps)
  ref_logps = zeros if reference is None else reference.logps
  # A padded index may point at an absent completion: no division by zero.
  tokens = jnp.maximum(policy.num_tokens, 1)
  pairs = PairScores(
    policy_chosen=policy.logps[winner],
    policy_rejected=policy.logps[loser],
    reference_chosen=ref_logps[winner],
    reference_rejected=ref_logps[loser],
    chosen_tokens=tokens[winner],
    rejected_tokens=tokens[loser],
    weight=comparisons.weight,
    margin=comparisons.margin,
    score_chosen=scores[winner],
    score_rejected=scores[loser],
  )
  return pairs._replace(**_token_sums(policy, reference, winner, loser))


def _token_sums(policy, reference, winner, loser) -> dict[str, Array]:
  """The fields that only some losses ask for, where the scores have them."""
  sums = {}
  if policy.log_sum_sq_probs is not None:
    aligned = policy.logps - policy.log_sum_sq_probs
    sums['chosen_aligned'] = aligned[winner]
    sums['rejected_aligned'] = aligned[loser]
  if policy.kl is not None:
    sums['chosen_kl'] = policy.kl[winner]
    sums['rejected_kl'] = policy.kl[loser]
  for side, scores in (('policy', policy), ('reference', reference)):
    if scores is not None and scores.heads_2P is not None:
      chosen, rejected = scores.heads_2P
      sums[f'{side}_chosen_head'] = chosen
      sums[f'{side}_rejected_head'] = rejected
  return sums
