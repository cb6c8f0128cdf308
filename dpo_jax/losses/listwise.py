"""Losses of all completions of a prompt at once.

Comes in: ListScores [C]. Goes out: one value per prompt, not reduced, in an
array [C]: a batch has at most as many prompts as completions. The data's scores
rank the completions of a prompt; completions with equal scores are not compared
with each other.
"""

import jax
import jax.numpy as jnp

from dpo_jax.losses.registry import register
from dpo_jax.losses.views import ListScores
from dpo_jax.types import Array


@register(
  label='InfoNCA',
  paper='Chen et al. 2024, arXiv:2402.05369',
  formula='cross-entropy of softmax(scores/alpha) and softmax(r_1..r_K)',
  needs=('reference', 'scores'),
  view='lists',
  grid={'alpha': (0.01, 0.1, 1.0)},
  bounds={'beta': '(0, inf)', 'alpha': '(0, inf)'},
)
def infonca(
  lists: ListScores, *, beta: float = 0.1, alpha: float = 1.0
) -> Array:
  """InfoNCA: the policy's rewards rank K completions as the data's scores do.

  `-sum_k softmax(scores / alpha)_k log softmax(r)_k`, r_k = beta a_k, over
  the K completions of a prompt.

  Source: arXiv:2402.05369.

  Args:
    lists: scores of the completions, grouped by prompt.
    beta: strength of the pull to the reference, per nat.
    alpha: temperature of the data's scores, in their own unit. As it goes to
      0, the best completion takes all weight: for K = 2 the sigmoid loss.

  Returns:
    Losses [C] in nats, one per prompt; log K where policy and reference agree.
  """
  target = jnp.exp(lists.log_softmax(lists.scores / alpha))
  return -lists.sum(target * lists.log_softmax(beta * lists.log_ratio))


@register(
  label='S-DPO',
  paper='Chen et al. 2024 (S-DPO), arXiv:2406.09215',
  formula='-log s(-log sum_j exp(r_j - r_w)), w the best of the K answers, '
  'j all others',
  needs=('reference', 'scores'),
  view='lists',
  grid={'beta': (0.1, 0.5, 1.0)},
  bounds={'beta': '(0, inf)'},
)
def softmax(lists: ListScores, *, beta: float = 0.1) -> Array:
  """Softmax-DPO (S-DPO): the best completion against all others at once.

  `-log s(-log sum_j exp(r_j - r_w))` = `-log softmax(r)_w`, r = beta a, w the
  completion with the highest score and j the others: the more likely one of
  them is, the more of the gradient it has.

  Source: arXiv:2406.09215.

  Args:
    lists: scores of the completions, grouped by prompt. If several have the
      highest score, the loss is the mean of theirs, each against those with a
      lower one.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [C] in nats, one per prompt; log K where policy and reference agree,
    the sigmoid loss for K = 2. 0 if all scores of a prompt are equal.
  """
  best = _top(lists, lists.scores) == lists.scores
  best = (best & (lists.prompt >= 0)).astype(lists.policy.dtype)
  total = lists.sum(best * _log_loss_to_lower(lists, beta * lists.log_ratio))
  return total / jnp.maximum(lists.sum(best), 1.0)


@register(
  label='Plackett-Luce DPO',
  paper='Rafailov et al. 2023, arXiv:2305.18290, appendix A.3',
  formula='-sum_k [r_k - log sum_j exp(r_j)], j = k and all answers ranked '
  'below k',
  needs=('reference', 'scores'),
  view='lists',
  grid={'beta': (0.01, 0.05, 0.1, 0.5)},
  bounds={'beta': '(0, inf)'},
)
def plackett_luce(lists: ListScores, *, beta: float = 0.1) -> Array:
  """DPO of a whole ranking, under the Plackett-Luce model.

  `-sum_k log softmax(r)_k`, r = beta a, the softmax of completion k over itself
  and the completions with a lower score: the chance of drawing the ranking
  from the best to the worst, without replacement.

  Source: arXiv:2305.18290, appendix A.3.

  Args:
    lists: scores of the completions, grouped by prompt.
    beta: strength of the pull to the reference, per nat.

  Returns:
    Losses [C] in nats, one per prompt; log K! where policy and reference agree
    and no scores are equal, the sigmoid loss for K = 2. 0 if all scores of a
    prompt are equal.
  """
  return lists.sum(_log_loss_to_lower(lists, beta * lists.log_ratio))


def _log_loss_to_lower(lists: ListScores, rewards: Array) -> Array:
  """-log softmax of each reward over itself and those of lower scores, [C].

  0 for a completion with the lowest score of its prompt, and for one of no
  prompt. Completions are sorted by prompt and score, so that running sums do
  and no [C, C] matrix is made.
  """
  order = jnp.lexsort((lists.scores, lists.prompt))
  prompt, score = lists.prompt[order], lists.scores[order]
  # A completion of no prompt may hold any number; 0 times NaN would be NaN.
  reward = jnp.where(prompt >= 0, rewards[order], 0.0)
  place = jnp.arange(prompt.shape[0])
  new_prompt = (prompt != jnp.roll(prompt, 1)) | (place == 0)
  new_score = new_prompt | (score != jnp.roll(score, 1))
  # The first completion of each run of equal scores: the one before it is the
  # last with a lower score, if it answers the same prompt.
  first = jax.lax.cummax(jnp.where(new_score, place, 0))
  has_lower = (prompt >= 0) & ~new_prompt[first]
  lower = _log_sums(reward, new_prompt)[jnp.maximum(first - 1, 0)]
  gap = jnp.where(has_lower, lower - reward, 0.0)
  loss = jnp.where(has_lower, jax.nn.softplus(gap), 0.0)
  return jnp.zeros_like(loss).at[order].set(loss)


def _log_sums(values: Array, starts: Array) -> Array:
  """log of the sum of exp(values) from the last start to each place, [C]."""
  place = jnp.arange(values.shape[0])
  start = jax.lax.cummax(jnp.where(starts, place, 0))
  # After each round a place has the sum over twice as many places before it.
  width = 1
  while width < values.shape[0]:
    before = place - width
    both = jnp.logaddexp(values, values[jnp.maximum(before, 0)])
    values = jnp.where(before >= start, both, values)
    width *= 2
  return values


def _top(lists: ListScores, values: Array) -> Array:
  """The largest of values [C] over the completions of each prompt, [C]."""
  top = jax.ops.segment_max(values, lists.prompt, values.shape[0])
  return top[lists.prompt]
