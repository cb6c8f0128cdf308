"""Sampling of tokens from a model: prefill, then a decode loop.

Comes in: a language model, prompts of token ids, one seed per row. Goes out:
Samples. Does not handle text, files or batches: run/sample.py does.

The tokens of a row depend on its own prompt, its own seed and the key: its
noise comes from a key of its own, and no operation mixes rows. Only the
rounding of matmuls may differ between batches of different *shapes*.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dpo_jax import types
from dpo_jax.models import output_head
from dpo_jax.types import Array, Params

_NEVER = -jnp.inf  # logit of a token that the filters remove


class Sampling(NamedTuple):
  """Options of drawing a token: traced scalars, in the order of their use."""

  temperature: Array | float = 1.0  # 0 = greedy: the likeliest token
  top_k: Array | int = 0  # number of tokens to keep; 0 = all
  top_p: Array | float = 1.0  # then the fewest tokens with this probability
  min_p: Array | float = 0.0  # least probability, as a share of the largest


class Samples(NamedTuple):
  """Drawn tokens and their log-probabilities [R, T]; 0 after a row's end."""

  tokens_RT: Array  # int32; a row's last one is its stop token, if it stopped
  logps_RT: Array  # float32, nats, under the policy that was sampled from
  model_logps_RT: Array  # float32, nats, at temperature 1 without filters
  num_tokens: Array  # int32 [R], the stop token included
  stopped: Array  # bool [R]: ended by a stop token, not by the length


class _State(NamedTuple):
  """Carry of the decode loop."""

  step: Array  # int32 scalar, tokens drawn so far
  token: Array  # int32 [R], the last token, not yet in the cache
  is_done: Array  # bool [R]
  cache: Params
  samples: Samples


def make_generate(
  model,
  *,
  max_new_tokens: int,
  known_V: Array | None = None,
  mesh: Mesh | None = None,
) -> Callable[..., Samples]:
  """Makes `generate(params, prompts, lengths, seeds, key, sampling, stop)`.

  The arguments of `generate`: parameters; prompts int32 [R, P], right-padded;
  lengths int32 [R], 0 for a row of padding; seeds uint32 [R]; a PRNG key;
  Sampling; stop tokens int32 [n] (-1 = none). Shapes are static, values are
  traced: another temperature or stop token does not compile again.

  Args:
    model: anything with `decode`, `make_cache` and `head`, see
      decoder.LanguageModel.
    max_new_tokens: T, tokens per row at most.
    known_V: bool [V], the ids that are tokens; others are never drawn, as if
      the first filter removed them. None = all.
    mesh: mesh on which rows are split over types.ROW_AXES; None = one device.
  """

  def generate(params, prompts_RP, lengths, seeds, key, sampling, stop):
    R, P = prompts_RP.shape
    cache = model.make_cache(R, P + max_new_tokens)
    cache = _split_rows(cache, mesh)
    slots_RP = jnp.broadcast_to(jnp.arange(P), (R, P))
    # The prompt's last token is the first that the loop reads.
    trunk = rows_of_texts(prompts_RP, slots_RP, slots_RP < lengths[:, None] - 1)
    _, cache = model.decode(params, trunk, cache)
    head = model.head(params)
    # A key per row and, in the loop, per step: a row's noise is its own.
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, seeds)
    last = jnp.maximum(lengths - 1, 0)

    def unfinished(state):
      return (state.step < max_new_tokens) & ~state.is_done.all()

    def step(state):
      rows = rows_of_texts(
        state.token[:, None],
        (last + state.step)[:, None],
        jnp.broadcast_to(lengths[:, None] > 0, (R, 1)),
      )
      hidden_RLD, cache = model.decode(params, rows, state.cache)
      logits_RV = output_head.logits(head, hidden_RLD[:, 0])
      drawn_RV = logits_RV
      if known_V is not None:
        drawn_RV = jnp.where(known_V, logits_RV, _NEVER)
      policy_RV = policy_logits(drawn_RV, sampling)
      keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, state.step)
      token = draw(keys, policy_RV)
      logps = _log_prob(policy_RV, token), _log_prob(logits_RV, token)
      return _record(state._replace(cache=cache), token, logps, stop)

    start = _State(
      step=jnp.int32(0),
      token=jnp.take_along_axis(prompts_RP, last[:, None], axis=1)[:, 0],
      is_done=lengths == 0,
      cache=cache,
      samples=_no_samples(R, max_new_tokens),
    )
    return jax.lax.while_loop(unfinished, step, start).samples

  return generate


def policy_logits(logits_RV: Array, sampling: Sampling) -> Array:
  """Returns logits of the policy that is sampled from; -inf for removed tokens.

  Temperature, then top-k, then top-p of the remaining tokens (Holtzman et al.
  2020, arXiv:1904.09751), then min-p (Nguyen et al. 2024, arXiv:2407.01082):
  the order of transformers. Tokens as likely as the last one kept are kept too,
  so the order of the vocabulary does not matter. Greedy sampling takes the
  first of equals.

  Args:
    logits_RV: logits of the model.
    sampling: the options.

  Returns:
    [R, V] float32, not normalised.
  """
  V = logits_RV.shape[-1]
  greedy = sampling.temperature == 0
  # Greedy divides by 1: a NaN of the division by 0 would survive the select.
  temperature = jnp.where(greedy, 1.0, sampling.temperature)
  scaled_RV = (logits_RV / temperature).astype(jnp.float32)

  def smallest_kept(scaled_RV):
    sorted_RV = -jnp.sort(-scaled_RV, axis=-1)
    top_k = jnp.where(sampling.top_k > 0, sampling.top_k, V)
    in_top_k = jnp.arange(V) < top_k
    probs_RV = jax.nn.softmax(jnp.where(in_top_k, sorted_RV, _NEVER), axis=-1)
    # Probability of the tokens before each: the first to reach top_p is kept.
    before_RV = jnp.cumsum(probs_RV, axis=-1) - probs_RV
    kept_RV = in_top_k & ((before_RV < sampling.top_p) | (sampling.top_p >= 1))
    last = jnp.maximum(kept_RV.sum(axis=-1), 1) - 1
    return jnp.take_along_axis(sorted_RV, last[:, None], axis=-1)

  # The vocabulary is sorted only if top-k or top-p is on.
  least = jax.lax.cond(
    (sampling.top_k > 0) | (sampling.top_p < 1),
    smallest_kept,
    lambda scaled_RV: scaled_RV.min(axis=-1, keepdims=True),
    scaled_RV,
  )
  highest = scaled_RV.max(axis=-1, keepdims=True)
  least = jnp.maximum(least, highest + jnp.log(sampling.min_p))
  kept_RV = scaled_RV >= least
  first = jnp.argmax(scaled_RV, axis=-1, keepdims=True)
  kept_RV = jnp.where(greedy, jnp.arange(V) == first, kept_RV)
  return jnp.where(kept_RV, scaled_RV, _NEVER)


def draw(keys: Array, policy_RV: Array) -> Array:
  """Returns one token per row, int32 [R]: argmax of logits + Gumbel noise.

  Args:
    keys: [R] PRNG keys.
    policy_RV: logits; -inf is never drawn.
  """
  num_tokens = policy_RV.shape[-1]
  noise_RV = jax.vmap(lambda key: jax.random.gumbel(key, (num_tokens,)))(keys)
  return jnp.argmax(policy_RV + noise_RV, axis=-1).astype(jnp.int32)


def _record(state: _State, token, logps, stop) -> _State:
  """The state with one more token in the rows that are not done."""
  active = ~state.is_done
  old = state.samples

  def put(values_RT, value):
    value = jnp.where(active, value, 0).astype(values_RT.dtype)[:, None]
    start = (0, state.step)
    return jax.lax.dynamic_update_slice(values_RT, value, start)

  stops = active & (token[:, None] == stop).any(axis=-1)
  samples = Samples(
    tokens_RT=put(old.tokens_RT, token),
    logps_RT=put(old.logps_RT, logps[0]),
    model_logps_RT=put(old.model_logps_RT, logps[1]),
    num_tokens=old.num_tokens + active,
    stopped=old.stopped | stops,
  )
  return _State(
    state.step + 1, token, state.is_done | stops, state.cache, samples
  )


def _log_prob(logits_RV, token):
  logps_RV = jax.nn.log_softmax(logits_RV, axis=-1)
  return jnp.take_along_axis(logps_RV, token[:, None], axis=-1)[:, 0]


def _no_samples(num_rows, num_tokens):
  zeros = jnp.zeros((num_rows, num_tokens), jnp.float32)
  none = jnp.zeros(num_rows, jnp.int32)
  return Samples(zeros.astype(jnp.int32), zeros, zeros, none, none > 0)


def rows_of_texts(tokens_RL, positions_RL, is_token_RL) -> types.Rows:
  """Returns rows of one text each, without branches and without targets."""
  zeros = jnp.zeros_like(tokens_RL)
  return types.Rows(
    tokens=tokens_RL,
    positions=jnp.where(is_token_RL, positions_RL, 0),
    prompt_id=is_token_RL.astype(jnp.int32),
    branch=zeros,
    targets=zeros,
    completion_id=zeros - 1,
  )


def _split_rows(cache, mesh):
  """The cache with its rows split over the mesh as the prompts are."""
  if mesh is None or mesh.size == 1:
    return cache
  layers = NamedSharding(mesh, PartitionSpec(None, types.ROW_AXES))
  split = jax.lax.with_sharding_constraint
  return cache._replace(
    keys_NRGSK=split(cache.keys_NRGSK, layers),
    values_NRGSK=split(cache.values_NRGSK, layers),
  )
