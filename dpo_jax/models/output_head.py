"""Projection of hidden states onto the vocabulary, where a token is predicted.

Comes in: hidden states, an output head, Rows and a function of logits. Goes
out: that function's value per position, with float32 logits. Knows neither
tokens' scores nor completions: scoring.py gives the function.

There are three forms. *Chunked*: the logits of one chunk of positions exist at
a time, and the backward pass computes them again. *Kept*: the backward pass
reads the logits, rounded to the compute dtype, instead. *Full*: the logits of
all positions at once, a baseline for tests and benchmarks.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dpo_jax import types
from dpo_jax.models import head_parts, products
from dpo_jax.models.head_parts import Parts
from dpo_jax.types import Array

# Positions of a chunk when logits are kept. Larger chunks read and write the
# gradient of the head less often.
KEPT_CHUNK = 4096
_PRODUCT = 'nd,vd->nv'

# (weight_VD, bias or None): the arrays of types.Head.
Weights = tuple[Array, Array | None]


class Frozen(NamedTuple):
  """A second model, whose logits the function reads; it has no gradient."""

  weights: Weights
  extra: Any  # further argument of the function, a pytree or None
  hidden: Array  # [R, L, D], or [N, D] of chosen positions


class _Form(NamedTuple):
  """The static choices of a projection."""

  fn: Callable[..., dict[str, Array]]
  scale: float
  softcap: float | None
  chunk: int  # positions of each part
  keeps: bool  # logits, for the backward pass
  parts: Parts = Parts()  # of a mesh


def logits(head: types.Head, hidden_ND: Array) -> Array:
  """Returns float32 logits [N, V] of hidden states [N, D], not chunked."""
  raw_NV = _product(head.scale, head.weight_VD, hidden_ND)
  form = _Form(None, head.scale, head.softcap, chunk=0, keeps=False)
  return _shaped(form, raw_NV, head.bias)


def make_project(
  chunk: int, full_logits: bool = False, mesh: Mesh | None = None
) -> Callable[..., dict[str, Array]]:
  """Makes `project(fn, rows, head, hidden_RLD, frozen=None)`.

  The result is `{name: float32 [R, L]}`: what `fn(logits_NV, targets)` returns
  at the positions that predict a token, and 0 elsewhere. With `frozen` it is
  `fn(logits_NV, targets, frozen_logits_NV, frozen.extra)`.

  Args:
    chunk: positions whose logits [chunk, V] exist at one time; 0 keeps the
      logits of all predicting positions for the backward pass.
    full_logits: project every position at once.
    mesh: splits the rows over types.ROW_AXES; None on one device. A chunk has
      positions of all devices with one index of `data`: see head_parts.
  """
  by_rows = _all_at_once if full_logits else _by_rows

  def project(fn, rows, head, hidden_RLD, frozen=None):
    # Scale and softcap are constants of the architecture: they are bound here,
    # so that the custom gradient below sees weights only.
    form = _Form(
      fn, head.scale, head.softcap, chunk or KEPT_CHUNK, keeps=not chunk
    )
    weights, mask_RL = (head.weight_VD, head.bias), rows.completion_id >= 0
    args = weights, hidden_RLD, frozen, rows.targets, mask_RL
    # full_logits has no loop whose trip count could differ between devices.
    if mesh is None or mesh.size == 1 or full_logits:
      return by_rows(form, *args)

    def run(weights, hidden_RLD, frozen, targets_RL, mask_RL):
      parts = head_parts.on_mesh(mesh, weights[0].shape[0])
      if frozen is not None:
        split = parts.split_vocabulary(frozen.weights)
        frozen = frozen._replace(weights=split)
      return _by_rows(
        form._replace(parts=parts, chunk=parts.chunk(form.chunk)),
        parts.split_vocabulary(weights),
        hidden_RLD,
        frozen,
        targets_RL,
        mask_RL,
      )

    replicated, by_data = PartitionSpec(), PartitionSpec('data')
    specs = frozen and Frozen(replicated, replicated, by_data)
    return head_parts.over_data(run, mesh, specs or replicated)(*args)

  return project


def _product(scale, weight_VD, hidden_ND):
  """Logits before bias and softcap, float32 [N, V]."""
  # Operands have the compute dtype, the result is float32: bfloat16 spaces
  # logits near 16 by 1/8 nat, too coarse for a log-ratio.
  hidden_ND = hidden_ND * scale if scale != 1 else hidden_ND
  return products.product(_PRODUCT, hidden_ND, weight_VD, hidden_ND.dtype)


def _shaped(form, raw_NV, bias):
  """Logits from their products."""
  logits_NV = form.parts.place(raw_NV, None, form.parts.axes)
  if bias is not None:
    logits_NV = logits_NV + bias.astype(jnp.float32)
  if form.softcap is not None:
    logits_NV = form.softcap * jnp.tanh(logits_NV / form.softcap)
  return form.parts.hide_filling(logits_NV)


def _raws(form, weights, hidden_ND, frozen) -> list[Array]:
  """The products of the policy and of the frozen model, if there is one."""
  raws = [_product(form.scale, weights[0], hidden_ND)]
  if frozen is not None:
    raws.append(_product(form.scale, frozen.weights[0], frozen.hidden))
  return raws


def _values(form, raws, bias, frozen, targets):
  """{name: float32 [N]} of one chunk's products."""
  logits_NV = _shaped(form, raws[0], bias)
  if frozen is None:
    return form.fn(logits_NV, targets)
  frozen_NV = _shaped(form, raws[1], frozen.weights[1])
  return form.fn(logits_NV, targets, frozen_NV, frozen.extra)


def _whole(form, weights, hidden_ND, frozen, targets):
  """`_values` of hidden states."""
  raws = _raws(form, weights, hidden_ND, frozen)
  return _values(form, raws, weights[1], frozen, targets)


def _all_at_once(form, weights, hidden_RLD, frozen, targets_RL, mask_RL):
  if frozen is not None:
    frozen = frozen._replace(hidden=_flat(frozen.hidden))
  values = _whole(
    form, weights, _flat(hidden_RLD), frozen, targets_RL.reshape(-1)
  )
  # `where`, not a product with the mask: padding may hold NaN or infinities.
  return {
    k: jnp.where(mask_RL, v.reshape(mask_RL.shape), 0.0)
    for k, v in values.items()
  }


def _by_rows(form, weights, hidden_RLD, frozen, targets_RL, mask_RL):
  """{name: float32 [R, L]}, 0 where the mask is False; head by chunks."""
  parts = form.parts
  shape, size = mask_RL.shape, mask_RL.size // parts.rows
  form = form._replace(chunk=min(form.chunk, size))
  padding = -size % form.chunk

  def padded(x):
    return parts.by_part(x, size, padding)

  mask = padded(mask_RL)
  # Predicting positions first, so that the loop can end after the last of them.
  # The sort is stable: equal data gives equal chunks, bit by bit.
  order = jnp.argsort(~mask, stable=True, axis=-1)
  if frozen is not None:
    frozen = frozen._replace(hidden=padded(frozen.hidden))
  values = _by_chunks(
    form,
    weights,
    padded(hidden_RLD),
    frozen,
    padded(targets_RL),
    mask,
    order,
  )
  return {k: v[..., :size].reshape(shape) for k, v in values.items()}


def _flat(hidden_RLD):
  return hidden_RLD.reshape(-1, hidden_RLD.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_chunks(form, weights, hidden_ND, frozen, targets, mask, order):
  """Applies `_whole` where mask is True, one chunk at a time.

  The loop has ceil(count / chunk) steps. The count is data, known at run time
  only: no shape depends on it and one compile serves every batch. The backward
  pass runs the same loop and recomputes each chunk's logits, or reads them.
  `frozen`, the other model or None, has no gradient.
  """
  # jax cannot reverse a loop of unknown length, hence the custom gradient. It
  # also keeps every [chunk, V] array out of the residuals.
  args = (weights, hidden_ND, frozen, targets, mask, order)
  return _forward_chunks(form._replace(keeps=False), *args)[0]


def _forward_chunks(form, weights, hidden_ND, frozen, targets, mask, order):
  """Values, and the products of all chunks in the dtype of `hidden_ND`."""

  def apply(index):
    here = _at(form, frozen, index)
    raws = _raws(form, weights, form.parts.take(hidden_ND, index), here)
    values = _values(
      form, raws, weights[1], here, form.parts.take(targets, index)
    )
    return raws, values

  def body(i, carry):
    outputs, kept = carry
    index = _index(order, form.chunk, i)
    raws, values = apply(index)
    is_real = form.parts.take(mask, index)
    outputs = {
      k: form.parts.put(outputs[k], index, jnp.where(is_real, v, 0.0))
      for k, v in values.items()
    }
    # Rounded here and nowhere before: the values are those of float32 logits.
    kept = [
      jax.lax.dynamic_update_index_in_dim(old, raw.astype(old.dtype), i, 0)
      for old, raw in zip(kept, raws)
    ]
    return outputs, kept

  raws, values = jax.eval_shape(apply, order[..., : form.chunk])
  outputs = {k: jnp.zeros(targets.shape, v.dtype) for k, v in values.items()}
  # Room for the case that every position predicts: the shape cannot depend on
  # data. Chunks that are not reached cost memory and no arithmetic.
  most = order.shape[-1] // form.chunk
  kept = [jnp.zeros((most, *raw.shape), hidden_ND.dtype) for raw in raws]
  return jax.lax.fori_loop(
    0,
    _num_chunks(mask, form.chunk),
    body,
    (outputs, kept if form.keeps else []),
  )


def _index(order, chunk, i):
  """Positions [n] of a chunk, or [S, n] of each part's own."""
  return jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk, axis=-1)


def _at(form, frozen, index):
  return frozen and frozen._replace(
    hidden=form.parts.take(frozen.hidden, index)
  )


def _by_chunks_fwd(form, *args):
  outputs, kept = _forward_chunks(form, *args)
  return outputs, (*args, kept)


def _by_chunks_bwd(form, residuals, cotangents):
  weights, hidden_ND, frozen, targets, mask, order, kept = residuals

  def body(i, carry):
    weights_bar, hidden_bar_ND = carry
    index = _index(order, form.chunk, i)
    # The last chunk ends in positions that predict nothing.
    is_real, hidden = (form.parts.take(x, index) for x in (mask, hidden_ND))
    out_bar = {
      k: jnp.where(is_real, form.parts.take(v, index), 0.0)
      for k, v in cotangents.items()
    }
    here = _at(form, frozen, index), form.parts.take(targets, index)
    if form.keeps:
      raws = [raw[i].astype(jnp.float32) for raw in kept]
      pulled = _pull_kept(form, weights, hidden, raws, *here, out_bar)
    else:
      _, pullback = jax.vjp(
        lambda weights, hidden: _whole(form, weights, hidden, *here),
        weights,
        hidden,
      )
      pulled = pullback(out_bar)
    weights_step, hidden_step = pulled
    weights_bar = jax.tree.map(
      lambda total, step: total + step.astype(total.dtype),
      weights_bar,
      weights_step,
    )
    return weights_bar, form.parts.put(hidden_bar_ND, index, hidden_step)

  # The head's gradient is a sum over all chunks: at least float32.
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
    weights,
  )
  zeros = jax.tree.map(lambda x: form.parts.place(x, form.parts.axes), zeros)
  carry = (zeros, jnp.zeros_like(hidden_ND))
  weights_bar, hidden_bar_ND = jax.lax.fori_loop(
    0, _num_chunks(mask, form.chunk), body, carry
  )
  weights_bar = jax.tree.map(
    lambda bar, x: bar.astype(x.dtype), weights_bar, weights
  )
  # No gradients of frozen, targets, mask and order.
  return weights_bar, hidden_bar_ND, None, None, None, None


def _pull_kept(form, weights, hidden_ND, raws, frozen, targets, out_bar):
  """Cotangents of weights and hidden states of a chunk, from its products."""
  weight_VD, bias = weights
  raw_NV, *others = raws
  _, pullback = jax.vjp(
    lambda raw_NV, bias: _values(
      form, [raw_NV, *others], bias, frozen, targets
    ),
    raw_NV,
    bias,
  )
  raw_bar_NV, bias_bar = pullback(out_bar)
  hidden_bar_ND, weight_bar_VD = products.backward(
    _PRODUCT,
    hidden_ND * form.scale if form.scale != 1 else hidden_ND,
    weight_VD.astype(hidden_ND.dtype),
    raw_bar_NV,
  )
  hidden_bar_ND = (hidden_bar_ND * form.scale).astype(hidden_ND.dtype)
  return (weight_bar_VD, bias_bar), hidden_bar_ND


def _num_chunks(mask, chunk):
  """Chunks of the part that has most predicting positions."""
  return (jnp.max(jnp.sum(mask, axis=-1)) + chunk - 1) // chunk


_by_chunks.defvjp(_by_chunks_fwd, _by_chunks_bwd)
