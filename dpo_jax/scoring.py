"""rows -> scores: log-probabilities of completions under a model.

Comes in: a language model (its hidden states and output head) and Rows.
Goes out: CompletionScores [C]. The head is projected only at positions that
predict a completion token, a chunk at a time, in float32 from the log-sum-exp
on; the full [R, L, V] logits exist only in `full_logits` mode, which is there
to be compared with.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dpo_jax import types
from dpo_jax.types import Array, Params

ROW_AXES = ('data', 'fsdp')  # mesh axes that rows are split over


def make_score(
  model,
  *,
  chunk: int = 1024,
  entropy: bool = False,
  full_logits: bool = False,
  mesh: Mesh | None = None,
) -> Callable[[Params, types.Rows, int], types.CompletionScores]:
  """Makes `score(params, rows, num_completions)`.

  Args:
    model: anything with `hidden(params, rows) -> (hidden_RLD, aux)` and
      `head(params) -> types.Head`.
    chunk: positions whose logits [chunk, V] exist at one time.
    entropy: also sum the entropy of the predicting distributions.
    full_logits: project every position at once, as other trainers do.
    mesh: where the rows are split over ROW_AXES; None on one device. Each
      shard of rows projects its own predicting positions.

  Returns:
    A pure function of params, Rows [R, L] and the static number of
    completions C, giving CompletionScores [C].
  """

  def score(params, rows, num_completions):
    hidden_RLD, _ = model.hidden(params, rows)
    head = model.head(params)
    # Scale and softcap are numbers of the architecture, not parameters.
    fn = functools.partial(_chunk_scores, entropy, head.scale, head.softcap)
    if full_logits:
      project = functools.partial(_full_token_scores, fn)
    else:
      project = functools.partial(_token_scores, fn, chunk)
      if mesh is not None and mesh.size > 1:
        project = _split_rows(project, mesh)
    tokens = project(
      (head.weight_VD, head.bias),
      hidden_RLD,
      rows.targets,
      rows.completion_id >= 0,
    )
    return _sum_by_completion(tokens, rows, num_completions)

  return score


def count_tokens(rows: types.Rows, num_completions: int) -> Array:
  """Tokens of each completion in `rows` (of any rank): float32 [C]."""
  ids = rows.completion_id.reshape(-1)
  ones = (ids >= 0).astype(jnp.float32)
  return _segment_sum(ones, ids, num_completions)


def _sum_by_completion(tokens, rows, num_completions):
  ids = rows.completion_id.reshape(-1)
  sums = {
    name: _segment_sum(values.reshape(-1), ids, num_completions)
    for name, values in tokens.items()
  }
  return types.CompletionScores(
    num_tokens=count_tokens(rows, num_completions), **sums
  )


def _segment_sum(values, ids, num_segments):
  return jax.ops.segment_sum(values, ids, num_segments)  # drops id -1


def _chunk_scores(entropy, scale, softcap, head, hidden_ND, targets):
  """Token scores of one chunk: {name: float32 [N]}."""
  weight_VD, bias = head
  logits_NV = jnp.einsum(
    'nd,vd->nv',
    hidden_ND * scale if scale != 1 else hidden_ND,
    weight_VD.astype(hidden_ND.dtype),
    preferred_element_type=jnp.float32,
  )
  if bias is not None:
    logits_NV = logits_NV + bias.astype(jnp.float32)
  if softcap is not None:
    logits_NV = softcap * jnp.tanh(logits_NV / softcap)
  log_normaliser = jax.nn.logsumexp(logits_NV, axis=-1)
  target_logits = jnp.take_along_axis(logits_NV, targets[:, None], axis=-1)
  scores = {'logps': target_logits[:, 0] - log_normaliser}
  if entropy:
    probs_NV = jnp.exp(logits_NV - log_normaliser[:, None])
    expected = jnp.sum(probs_NV * logits_NV, axis=-1)
    scores['entropy'] = jax.lax.stop_gradient(log_normaliser - expected)
  return scores


def _full_token_scores(fn, head, hidden_RLD, targets_RL, mask_RL):
  flat_ND = hidden_RLD.reshape(-1, hidden_RLD.shape[-1])
  scores = fn(head, flat_ND, targets_RL.reshape(-1))
  return {
    k: jnp.where(mask_RL, v.reshape(mask_RL.shape), 0.0)
    for k, v in scores.items()
  }


def _split_rows(project, mesh):
  """Runs `project` on each device's own rows: their counts may differ."""
  rows = PartitionSpec(ROW_AXES)
  return jax.shard_map(
    project,
    mesh=mesh,
    in_specs=(PartitionSpec(), rows, rows, rows),
    out_specs=rows,
    axis_names=set(ROW_AXES),
    check_vma=False,
  )


def _token_scores(fn, chunk, head, hidden_RLD, targets_RL, mask_RL):
  """{name: float32 [R, L]}, 0 where mask is False; head by chunks."""
  num_rows, length, width = hidden_RLD.shape
  size = num_rows * length
  chunk = min(chunk, size)
  padding = -size % chunk
  mask = jnp.pad(mask_RL.reshape(size), (0, padding))
  # Predicting positions first: the loop ends after the last chunk with one.
  order = jnp.argsort(~mask, stable=True)
  scores = _by_chunks(
    fn,
    chunk,
    head,
    jnp.pad(hidden_RLD.reshape(size, width), ((0, padding), (0, 0))),
    jnp.pad(targets_RL.reshape(size), (0, padding)),
    mask,
    order,
  )
  return {k: v[:size].reshape(num_rows, length) for k, v in scores.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_chunks(fn, chunk, head, hidden_ND, targets, mask, order):
  """Applies `fn(head, hidden [c, D], targets [c])` where mask is True.

  A loop of ceil(count / chunk) steps, count known only at run time: no
  position is projected that predicts nothing, and no shape depends on the
  data. The backward runs the same loop, recomputing each chunk's logits.
  """
  return _forward_chunks(fn, chunk, head, hidden_ND, targets, mask, order)


def _forward_chunks(fn, chunk, head, hidden_ND, targets, mask, order):
  def body(i, outputs):
    index = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
    scores = fn(head, hidden_ND[index], targets[index])
    return {
      k: outputs[k].at[index].set(jnp.where(mask[index], v, 0.0))
      for k, v in scores.items()
    }

  shapes = jax.eval_shape(fn, head, hidden_ND[:chunk], targets[:chunk])
  outputs = {
    k: jnp.zeros(targets.shape, shape.dtype) for k, shape in shapes.items()
  }
  return jax.lax.fori_loop(0, _num_chunks(mask, chunk), body, outputs)


def _by_chunks_fwd(fn, chunk, head, hidden_ND, targets, mask, order):
  outputs = _forward_chunks(fn, chunk, head, hidden_ND, targets, mask, order)
  return outputs, (head, hidden_ND, targets, mask, order)


def _by_chunks_bwd(fn, chunk, residuals, cotangents):
  head, hidden_ND, targets, mask, order = residuals

  def body(i, carry):
    head_bar, hidden_bar_ND = carry
    index = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
    out_bar = {
      k: jnp.where(mask[index], v[index], 0.0) for k, v in cotangents.items()
    }
    _, pullback = jax.vjp(
      lambda head, hidden: fn(head, hidden, targets[index]),
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

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), head
  )
  carry = (zeros, jnp.zeros_like(hidden_ND))
  head_bar, hidden_bar_ND = jax.lax.fori_loop(
    0, _num_chunks(mask, chunk), body, carry
  )
  head_bar = jax.tree.map(lambda bar, x: bar.astype(x.dtype), head_bar, head)
  return head_bar, hidden_bar_ND, None, None, None


def _num_chunks(mask, chunk):
  return (jnp.sum(mask) + chunk - 1) // chunk


_by_chunks.defvjp(_by_chunks_fwd, _by_chunks_bwd)
