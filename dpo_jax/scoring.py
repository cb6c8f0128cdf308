"""rows -> scores: log-probabilities of completions under a model.

Comes in: a language model (its hidden states and output head) and Rows.
Goes out: CompletionScores [C]. Only positions that predict a completion token
are projected onto the vocabulary, with float32 logits: models/output_head.py
has the ways. Knows no loss.
"""

import functools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax import types
from dpo_jax.models import output_head
from dpo_jax.types import Array

# Optional sums over tokens, beside `logps`. The names are those of
# losses.records.NEEDS; the metrics ask for the entropy. Only `make_pair_score`
# has the tilted sums.
SUMS = ('entropy', 'sum_sq_probs', 'tilted')


def make_score(
  model,
  wanted: Collection[str] = (),
  *,
  chunk: int = 1024,
  full_logits: bool = False,
  mesh: Mesh | None = None,
) -> Callable[..., types.CompletionScores]:
  """Makes `score(params, rows, num_completions, heads=None)`.

  Args:
    model: anything with `hidden(params, rows) -> (hidden_RLD, aux)` and
      `head(params) -> types.Head`. The scores carry aux['router'], if any.
    wanted: optional sums, a subset of SUMS: the entropy of the predicted
      distributions, log sum_v p_v^2 (for WPO). Neither has a gradient.
    chunk: positions whose logits [chunk, V] exist at one time; 0 keeps all
      logits in the compute dtype for the backward pass.
    full_logits: project every position at once, as other trainers do.
    mesh: splits the rows over types.ROW_AXES; None on one device. Each shard
      of rows projects its own predicting positions.

  Returns:
    A pure function of params, Rows [R, L], the static number of completions C
    and, for sums over first tokens, types.Heads. It returns CompletionScores
    [C].
  """
  project = output_head.make_project(chunk, full_logits, mesh)
  of_logits = functools.partial(_token_scores, frozenset(wanted))

  def score(params, rows, num_completions, heads=None):
    hidden_RLD, aux = model.hidden(params, rows)
    tokens = project(of_logits, rows, model.head(params), hidden_RLD)
    scores = _sum_by_completion(tokens, rows, num_completions, heads)
    return scores._replace(router=aux.get('router'))

  return score


def make_pair_score(
  model,
  wanted: Collection[str] = (),
  *,
  chunk: int = 1024,
  full_logits: bool = False,
  mesh: Mesh | None = None,
) -> Callable[..., tuple[types.CompletionScores, types.CompletionScores]]:
  """Makes `score_both(params, reference, rows, num_completions, heads=None)`.

  For losses that compare whole distributions: both models' logits of a chunk
  exist side by side, and the policy's scores have `kl`, the sum over tokens
  of KL(reference, policy), whose gradient flows to the policy. For the tilted
  sums, `score_both` has one more argument: `epsilon`, a traced scalar.

  Args:
    model: as in `make_score`; one architecture for both sets of parameters.
    wanted: as in `make_score`, of the policy.
    chunk: as in `make_score`; the logits of both models count.
    full_logits: as in `make_score`.
    mesh: as in `make_score`.

  Returns:
    A pure function that returns (policy scores, reference scores). The
    reference scores have no gradient.
  """
  project = output_head.make_project(chunk, full_logits, mesh)
  of_logits = functools.partial(_pair_scores, frozenset(wanted))

  def score_both(
    params, reference, rows, num_completions, heads=None, epsilon=None
  ):
    # Stopping the gradient at the parameters keeps autodiff out of the
    # reference's layers, so none of their activations are stored.
    reference = jax.lax.stop_gradient(reference)
    hidden_RLD, aux = model.hidden(params, rows)
    frozen_RLD, _ = model.hidden(reference, rows)
    head, frozen_head = model.head(params), model.head(reference)
    frozen = output_head.Frozen(
      (frozen_head.weight_VD, frozen_head.bias), epsilon, frozen_RLD
    )
    tokens = project(of_logits, rows, head, hidden_RLD, frozen)
    frozen_tokens = {'logps': tokens.pop('reference_logps')}
    policy, frozen_scores = (
      _sum_by_completion(part, rows, num_completions, heads)
      for part in (tokens, frozen_tokens)
    )
    policy = policy._replace(router=aux.get('router'))
    return policy, jax.lax.stop_gradient(frozen_scores)

  return score_both


def count_tokens(rows: types.Rows, num_completions: int) -> Array:
  """Returns the number of tokens of each completion [C]; Rows of any rank."""
  ids = rows.completion_id.reshape(-1)
  ones = (ids >= 0).astype(jnp.float32)
  return _segment_sum(ones, ids, num_completions)


def _sum_by_completion(tokens, rows, num_completions, heads):
  """CompletionScores [C] from token scores {name: [R, L]}."""
  ids = rows.completion_id.reshape(-1)
  sums = {
    name: _segment_sum(values.reshape(-1), ids, num_completions)
    for name, values in tokens.items()
  }
  if heads is not None:
    sums['heads_2P'] = _sum_heads(tokens['logps'], rows, heads, num_completions)
  return types.CompletionScores(
    num_tokens=count_tokens(rows, num_completions), **sums
  )


def _segment_sum(values, ids, num_segments):
  # segment_sum drops ids out of range: id -1 marks positions without a target.
  return jax.ops.segment_sum(values, ids, num_segments)


def _sum_heads(logps_RL, rows, heads, num_completions):
  """Log-probabilities of the first tokens of winners and losers, [2, P]."""
  ids = rows.completion_id
  # An offset counts predicted tokens, not positions: a completion may hold
  # tokens that are only read. A completion lies in one row, in order.
  count_RL = jnp.cumsum(ids >= 0, axis=-1)
  start = jax.ops.segment_min(
    count_RL.reshape(-1), ids.reshape(-1), num_completions
  )
  offset_RL = count_RL - start[ids]

  def of_one_side(logps_RL, completion):
    own_PRL = ids == completion[:, None, None]
    first_PRL = offset_RL < heads.num_tokens[:, None, None]
    kept_PRL = jnp.where(own_PRL & first_PRL, logps_RL, 0.0)
    return jnp.sum(kept_PRL, axis=(1, 2))

  # The backward pass recomputes the masks: [P, R, L] is never stored.
  one_side = jax.checkpoint(of_one_side)
  return jnp.stack(
    [one_side(logps_RL, heads.winner), one_side(logps_RL, heads.loser)]
  )


def _token_scores(wanted, logits_NV, targets):
  """Token scores of one chunk: {name: float32 [N]}."""
  # No log_softmax: the target's log-probability needs no second [N, V] array.
  log_normaliser = jax.nn.logsumexp(logits_NV, axis=-1)
  scores = {'logps': _pick(logits_NV, targets) - log_normaliser}
  if 'entropy' in wanted:
    probs_NV = jnp.exp(logits_NV - log_normaliser[:, None])
    expected = jnp.sum(probs_NV * logits_NV, axis=-1)
    # -sum p log p = log_normaliser - sum p logit.
    scores['entropy'] = jax.lax.stop_gradient(log_normaliser - expected)
  if 'sum_sq_probs' in wanted:
    log_sum_sq = jax.nn.logsumexp(2 * logits_NV, axis=-1) - 2 * log_normaliser
    scores['log_sum_sq_probs'] = jax.lax.stop_gradient(log_sum_sq)
  return scores


def _pick(values_NV, targets):
  return jnp.take_along_axis(values_NV, targets[:, None], axis=-1)[:, 0]


def _pair_scores(wanted, logits_NV, targets, frozen_NV, epsilon):
  """As `_token_scores`, with the reference's logps and what compares both."""
  # One formula for both models: where their weights are equal, so are their
  # log-probabilities, bit by bit, and every log-ratio is 0.
  scores = _token_scores(wanted, logits_NV, targets)
  scores['reference_logps'] = _token_scores((), frozen_NV, targets)['logps']
  log_ref_NV, log_pi_NV = map(jax.nn.log_softmax, (frozen_NV, logits_NV))
  scores['kl'] = jnp.sum(jnp.exp(log_ref_NV) * (log_ref_NV - log_pi_NV), -1)
  if 'tilted' in wanted:
    for name, step in (('away', epsilon), ('toward', -epsilon)):
      tilted_NV = logits_NV + step * (logits_NV - frozen_NV)
      logps = _token_scores((), tilted_NV, targets)['logps']
      scores[name] = jax.lax.stop_gradient(logps - scores['logps'])
  return scores
