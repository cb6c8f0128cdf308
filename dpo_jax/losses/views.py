"""What a loss of completions or of lists reads, gathered from the scores.

Comes in: CompletionScores [C] and the batch. Goes out: LabelledScores [E] for
losses of single completions, ListScores [C] for losses of all completions of
a prompt. Comparisons are in `pairs.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.types import Array


class LabelledScores(NamedTuple):
  """Completions that are desirable or not; float32 [E], E = 2 P + C.

  First the winners of the comparisons, then their losers, then the labelled
  completions: so paired and unpaired data are one thing to a loss.
  """

  policy: Array  # log pi(y | x), summed over tokens, nats
  reference: Array  # log ref(y | x); 0 without a reference
  num_tokens: Array  # |y|
  desirable: Array  # 1 desirable, 0 undesirable
  weight: Array  # 0 = padding
  mismatched_log_ratio: Array  # scalar: mean log-ratio of the batch's
  # mismatched completions, 0 where there is none

  @property
  def log_ratio(self) -> Array:
    """a = log pi(y|x) - log ref(y|x)."""
    return self.policy - self.reference


class ListScores(NamedTuple):
  """All completions of every prompt; [C] but where it says otherwise."""

  policy: Array  # log pi(y | x), summed over tokens, nats
  reference: Array  # log ref(y | x)
  scores: Array  # the data's score
  prompt: Array  # int32: prompt in the batch; -1 = none
  weight: Array  # a prompt, [C] of them; 0 = less than two completions

  @property
  def log_ratio(self) -> Array:
    """a = log pi(y|x) - log ref(y|x)."""
    return self.policy - self.reference

  def log_softmax(self, values: Array) -> Array:
    """log softmax of values [C] over the completions of each prompt."""
    # A completion of no prompt is left out of every sum, and gets 0.
    member = self.prompt >= 0
    top = jax.ops.segment_max(values, self.prompt, values.shape[0])
    top = jax.lax.stop_gradient(jnp.where(member, top[self.prompt], values))
    total = self.sum(jnp.exp(values - top))[self.prompt]
    return values - top - jnp.log(jnp.where(member, total, 1.0))

  def sum(self, values: Array) -> Array:
    """Sums values [C] by prompt, [C] prompts."""
    return jax.ops.segment_sum(values, self.prompt, values.shape[0])


def gather_labelled(
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  comparisons: types.Comparisons,
  batch: types.Batch,
) -> LabelledScores:
  """Reads winners as desirable, losers as undesirable, and the labels.

  A comparison counts where neither of its completions is labelled, so that
  nothing counts twice; a demonstration (winner = loser) never does.

  Args:
    policy: the policy's scores [C].
    reference: the reference's, or None.
    comparisons: those of the batch, weight 0 where one is not there.
    batch: labels and mismatched completions are read.

  Returns:
    LabelledScores [2 P + C].
  """
  winner, loser = comparisons.winner, comparisons.loser
  known = batch.labels >= 0
  counts = ~known[winner] & ~known[loser] & (winner != loser)
  pair_weight = jnp.where(counts, comparisons.weight, 0.0)
  index = jnp.concatenate([winner, loser, jnp.arange(known.shape[0])])
  there = (known & (policy.num_tokens > 0)).astype(policy.logps.dtype)
  ref_logps = (
    jnp.zeros_like(policy.logps) if reference is None else reference.logps
  )
  return LabelledScores(
    policy=policy.logps[index],
    reference=ref_logps[index],
    num_tokens=jnp.maximum(policy.num_tokens, 1)[index],
    desirable=jnp.concatenate(
      [
        jnp.ones_like(there, shape=winner.shape),
        jnp.zeros_like(there, shape=loser.shape),
        (batch.labels == 1).astype(there.dtype),
      ]
    ),
    weight=jnp.concatenate([pair_weight, pair_weight, there]),
    mismatched_log_ratio=_mismatched(policy, ref_logps, batch.mismatched),
  )


def gather_lists(
  policy: types.CompletionScores,
  reference: types.CompletionScores | None,
  batch: types.Batch,
) -> ListScores:
  """Groups the completions that are there by prompt.

  Args:
    policy: the policy's scores [C].
    reference: the reference's, or None.
    batch: scores, prompt_index and mismatched completions are read.

  Returns:
    ListScores; prompts with one completion have weight 0.
  """
  there = policy.num_tokens > 0
  if batch.mismatched is not None:
    there = there & (batch.mismatched == 0)
  prompt = jnp.where(there, batch.prompt_index, -1)
  count = jax.ops.segment_sum(there.astype(jnp.int32), prompt, there.shape[0])
  ref_logps = (
    jnp.zeros_like(policy.logps) if reference is None else reference.logps
  )
  return ListScores(
    policy=policy.logps,
    reference=ref_logps,
    scores=batch.scores,
    prompt=prompt,
    weight=(count >= 2).astype(policy.logps.dtype),
  )


def _mismatched(policy, ref_logps, mismatched) -> Array:
  """Mean log-ratio of the mismatched completions that are there."""
  if mismatched is None:
    return jnp.zeros((), policy.logps.dtype)
  there = (mismatched == 1) & (policy.num_tokens > 0)
  log_ratio = jnp.where(there, policy.logps - ref_logps, 0.0)
  return jnp.sum(log_ratio) / jnp.maximum(jnp.sum(there), 1)
