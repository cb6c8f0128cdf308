"""rows -> scores: log-probabilities of completions under a model.

Comes in: a language model (its hidden states and output head) and Rows.
Goes out: CompletionScores [C]. Only positions that predict a completion token
are projected onto the vocabulary, one chunk at a time, with float32 logits. The
full logits [R, L, V] exist only in `full_logits` mode, a baseline for tests and
benchmarks. Knows no loss.
"""

import functools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dpo_jax import types
from dpo_jax.models import products
from dpo_jax.types import ROW_AXES, Array

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
    chunk: positions whose logits [chunk, V] exist at one time.
    full_logits: project every position at once, as other trainers do.
    mesh: splits the rows over types.ROW_AXES; None on one device. Each shard
      of rows projects its own predicting positions.

  Returns:
    A pure function of params, Rows [R, L], the static number of completions C
    and, for sums over first tokens, types.Heads. It returns CompletionScores
    [C].
  """
  project = _make_project(chunk, full_logits, mesh)

  def score(params, rows, num_completions, heads=None):
    hidden_RLD, aux = model.hidden(params, rows)
    head = model.head(params)
    # Scale and softcap are constants of the architecture: they are bound here,
    # so that the custom gradient below sees weights only.
    fn = functools.partial(
      _chunk_scores, frozenset(wanted), head.scale, head.softcap
    )
    weights = (head.weight_VD, head.bias)
    tokens = project(fn, rows, weights, hidden_RLD, None)
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
    chunk: positions whose two logits [chunk, V] exist at one time.
    full_logits: as in `make_score`.
    mesh: as in `make_score`.

  Returns:
    A pure function that returns (policy scores, reference scores). The
    reference scores have no gradient.
  """
  project = _make_project(chunk, full_logits, mesh)

  def score_both(
    params, reference, rows, num_completions, heads=None, epsilon=None
  ):
    # Stopping the gradient at the parameters keeps autodiff out of the
    # reference's layers, so none of their activations are stored.
    reference = jax.lax.stop_gradient(reference)
    hidden_RLD, aux = model.hidden(params, rows)
    frozen_RLD, _ = model.hidden(reference, rows)
    head, frozen_head = model.head(params), model.head(reference)
    fn = functools.partial(
      _pair_chunk_scores, frozenset(wanted), head.scale, head.softcap
    )
    weights = (head.weight_VD, head.bias)
    frozen = (frozen_head.weight_VD, frozen_head.bias), epsilon
    frozen = frozen, frozen_RLD
    tokens = project(fn, rows, weights, hidden_RLD, frozen)
    frozen_tokens = {'logps': tokens.pop('reference_logps')}
    policy, frozen_scores = (
      _sum_by_completion(part, rows, num_completions, heads)
      for part in (tokens, frozen_tokens)
    )
    policy = policy._replace(router=aux.get('router'))
    return policy, jax.lax.stop_gradient(frozen_scores)

  return score_both


def logits(head: types.Head, hidden_ND: Array) -> Array:
  """Returns float32 logits [N, V] of hidden states [N, D], not chunked."""
  weights = (head.weight_VD, head.bias)
  return _logits(head.scale, head.softcap, weights, hidden_ND)


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


def _logits(scale, softcap, head, hidden_ND):
  """Float32 logits [N, V] of one chunk."""
  weight_VD, bias = head
  # Operands have the compute dtype, the result is float32: bfloat16 spaces
  # logits near 16 by 1/8 nat, too coarse for a log-ratio.
  hidden_ND = hidden_ND * scale if scale != 1 else hidden_ND
  logits_NV = products.product(
    'nd,vd->nv', hidden_ND, weight_VD, hidden_ND.dtype
  )
  if bias is not None:
    logits_NV = logits_NV + bias.astype(jnp.float32)
  if softcap is not None:
    logits_NV = softcap * jnp.tanh(logits_NV / softcap)
  return logits_NV


def _chunk_scores(wanted, scale, softcap, head, hidden_ND, frozen, targets):
  """Token scores of one chunk: {name: float32 [N]}."""
  del frozen  # None: only one model is scored
  logits_NV = _logits(scale, softcap, head, hidden_ND)
  return _token_scores(wanted, logits_NV, targets)


def _pair_chunk_scores(
  wanted, scale, softcap, head, hidden_ND, frozen, targets
):
  """As `_chunk_scores`, with the reference's logps and what compares both."""
  (frozen_head, epsilon), frozen_ND = frozen
  logits_NV = _logits(scale, softcap, head, hidden_ND)
  frozen_NV = _logits(scale, softcap, frozen_head, frozen_ND)
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


def _token_scores(wanted, logits_NV, targets):
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


def _make_project(chunk, full_logits, mesh):
  """Makes `project(fn, rows, head, hidden_RLD, frozen) -> {name: [R, L]}`."""
  by_rows = _all_at_once if full_logits else functools.partial(_chunked, chunk)

  def project(fn, rows, head, hidden_RLD, frozen):
    # full_logits has no loop whose trip count could differ between devices.
    run = functools.partial(by_rows, fn)
    if mesh is not None and mesh.size > 1 and not full_logits:
      run = _split_rows(run, mesh, has_frozen=frozen is not None)
    mask_RL = rows.completion_id >= 0
    return run(head, hidden_RLD, frozen, rows.targets, mask_RL)

  return project


def _split_rows(run, mesh, has_frozen):
  """Runs `run` on each device's own rows: the numbers of chunks may differ."""
  rows, replicated = PartitionSpec(ROW_AXES), PartitionSpec()
  frozen = (replicated, rows) if has_frozen else replicated
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(replicated, rows, frozen, rows, rows),
    out_specs=rows,
    # The `tensor` axis stays with the compiler, which splits the vocabulary.
    axis_names=set(ROW_AXES),
    check_vma=False,
  )


def _all_at_once(fn, head, hidden_RLD, frozen, targets_RL, mask_RL):
  if frozen is not None:
    frozen = frozen[0], _flat(frozen[1])
  scores = fn(head, _flat(hidden_RLD), frozen, targets_RL.reshape(-1))
  # `where`, not a product with the mask: padding may hold NaN or infinities.
  return {
    k: jnp.where(mask_RL, v.reshape(mask_RL.shape), 0.0)
    for k, v in scores.items()
  }


def _chunked(chunk, fn, head, hidden_RLD, frozen, targets_RL, mask_RL):
  """{name: float32 [R, L]}, 0 where the mask is False; head by chunks."""
  shape, size = mask_RL.shape, mask_RL.size
  chunk = min(chunk, size)
  padding = -size % chunk
  mask = jnp.pad(mask_RL.reshape(size), (0, padding))
  # Predicting positions first, so that the loop can end after the last of them.
  # The sort is stable: equal data gives equal chunks, bit by bit.
  order = jnp.argsort(~mask, stable=True)

  def padded(hidden_RLD):
    return jnp.pad(_flat(hidden_RLD), ((0, padding), (0, 0)))

  if frozen is not None:
    frozen = frozen[0], padded(frozen[1])
  scores = _by_chunks(
    fn,
    chunk,
    head,
    padded(hidden_RLD),
    frozen,
    jnp.pad(targets_RL.reshape(size), (0, padding)),
    mask,
    order,
  )
  return {k: v[:size].reshape(shape) for k, v in scores.items()}


def _flat(hidden_RLD):
  return hidden_RLD.reshape(-1, hidden_RLD.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_chunks(fn, chunk, head, hidden_ND, frozen, targets, mask, order):
  """Applies `fn(head, hidden [c, D], frozen, targets [c])` where mask is True.

  The loop has ceil(count / chunk) steps. The count is data, known at run time
  only: no shape depends on it and one compile serves every batch. The backward
  pass runs the same loop and recomputes each chunk's logits. `frozen`, the
  other model's (head, hidden_ND) or None, has no gradient.
  """
  # jax cannot reverse a loop of unknown length, hence the custom gradient. It
  # also keeps every [chunk, V] array out of the residuals.
  args = (head, hidden_ND, frozen, targets, mask, order)
  return _forward_chunks(fn, chunk, *args)


def _forward_chunks(fn, chunk, head, hidden_ND, frozen, targets, mask, order):
  def apply(index):
    return fn(head, hidden_ND[index], _at(frozen, index), targets[index])

  def body(i, outputs):
    index = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
    return {
      k: outputs[k].at[index].set(jnp.where(mask[index], v, 0.0))
      for k, v in apply(index).items()
    }

  shapes = jax.eval_shape(apply, order[:chunk])
  outputs = {
    k: jnp.zeros(targets.shape, shape.dtype) for k, shape in shapes.items()
  }
  return jax.lax.fori_loop(0, _num_chunks(mask, chunk), body, outputs)


def _at(frozen, index):
  return None if frozen is None else (frozen[0], frozen[1][index])


def _by_chunks_fwd(fn, chunk, *args):
  # The residuals are the arguments: no logits are stored.
  return _forward_chunks(fn, chunk, *args), args


def _by_chunks_bwd(fn, chunk, residuals, cotangents):
  head, hidden_ND, frozen, targets, mask, order = residuals

  def body(i, carry):
    head_bar, hidden_bar_ND = carry
    index = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
    # The last chunk ends in positions that predict nothing.
    out_bar = {
      k: jnp.where(mask[index], v[index], 0.0) for k, v in cotangents.items()
    }
    _, pullback = jax.vjp(
      lambda head, hidden: fn(head, hidden, _at(frozen, index), targets[index]),
      head,
      hidden_ND[index],
    )
    head_step, hidden_step = pullback(out_bar)
    head_bar = jax.tree.map(
      lambda total, step: total + step.astype(total.dtype),
      head_bar,
      head_step,
    )
    return head_bar, hidden_bar_ND.at[index].set(hidden_step)

  # The head's gradient is a sum over all chunks: at least float32.
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), head
  )
  carry = (zeros, jnp.zeros_like(hidden_ND))
  head_bar, hidden_bar_ND = jax.lax.fori_loop(
    0, _num_chunks(mask, chunk), body, carry
  )
  head_bar = jax.tree.map(lambda bar, x: bar.astype(x.dtype), head_bar, head)
  # No gradients of frozen, targets, mask and order.
  return head_bar, hidden_bar_ND, None, None, None, None


def _num_chunks(mask, chunk):
  return (jnp.sum(mask) + chunk - 1) // chunk


_by_chunks.defvjp(_by_chunks_fwd, _by_chunks_bwd)
