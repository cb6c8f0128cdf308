"""samples -> KL(policy || reference) of whole answers, estimated in two ways.

Comes in: sampled answers, the parameters of policy and reference, and the
options of sampling. Goes out: two unbiased estimates per answer, in nats. Draws
no sample and takes no mean.

The KL is that between two distributions over answers y of at most T tokens: one
that the samples come from (the policy after temperature and filters) and the
reference at temperature 1 without filters. An answer ends with its stop token,
which counts, or with its token T, after which nothing counts. Both estimates
are sums over the tokens t of an answer:

  Monte Carlo:      log pi(y_t | y_<t) - log ref(y_t | y_<t)
  Rao-Blackwell:    KL(pi(. | y_<t) || ref(. | y_<t)), over the vocabulary

The second is the mean of the first given y_<t, so it has the same expectation
and drops the variance of the drawn token (Amini, Vieira and Cotterell 2025,
arXiv:2504.10637, eq. 12). It is never negative.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.models import generate, output_head
from dpo_jax.types import Array


class SequenceKL(NamedTuple):
  """Sums over the tokens of an answer, float32 [R], nats; 0 without tokens."""

  kl: Array  # Rao-Blackwellised
  kl_mc: Array  # Monte Carlo: logps - reference_logps
  logps: Array  # of the distribution that was sampled from
  reference_logps: Array  # at temperature 1, without filters


def make_sampled_kl(
  model, max_new_tokens: int, known_V: Array | None = None
) -> Callable[..., SequenceKL]:
  """Makes `estimate(params, reference, prompts, lengths, answers, counts, s)`.

  The arguments of `estimate`: parameters of the policy, and of the reference;
  prompts int32 [R, P], right-padded, and their lengths [R], 0 for a row of
  padding; answers int32 [R, T] and their numbers of tokens [R]; the Sampling
  that drew them. Both models read all texts at once. The logits of one token
  of every row exist at one time, [R, V] per model: as many as generation has.

  Args:
    model: anything with `hidden` and `head`, see decoder.LanguageModel.
    max_new_tokens: T.
    known_V: bool [V], the ids that are tokens. Others are never drawn, and no
      part of either distribution. None = all.
  """

  def estimate(
    params, reference, prompts_RP, lengths, answers_RT, counts, sampling
  ):
    texts = _texts(prompts_RP, lengths, answers_RT, counts)
    # The token t is predicted one place before it.
    places_RT = jnp.maximum(lengths[:, None] - 1, 0) + jnp.arange(
      max_new_tokens
    )
    states = [_states(model, p, texts, places_RT) for p in (params, reference)]
    heads = [model.head(p) for p in (params, reference)]

    def add(t, sums):
      logits = [output_head.logits(h, s[:, t]) for h, s in zip(heads, states)]
      token = token_kl(*logits, answers_RT[:, t], sampling, known_V)
      # `where`, not a product: what follows an answer may be no number.
      is_token = t < counts
      return jax.tree.map(
        lambda total, x: total + jnp.where(is_token, x, 0.0), sums, token
      )

    zeros = jnp.zeros(len(lengths), jnp.float32)
    start = SequenceKL(zeros, zeros, zeros, zeros)
    return jax.lax.fori_loop(0, counts.max(), add, start)

  return estimate


def token_kl(
  logits_RV: Array,
  reference_RV: Array,
  token: Array,
  sampling: generate.Sampling,
  known_V: Array | None = None,
) -> SequenceKL:
  """Returns both estimates at one token of every row.

  Args:
    logits_RV: of the policy, before temperature and filters.
    reference_RV: logits of the reference.
    token: int32 [R], the tokens that were drawn.
    sampling: the options with which they were.
    known_V: as in `make_sampled_kl`.
  """
  if known_V is not None:
    logits_RV, reference_RV = (
      jnp.where(known_V, x, -jnp.inf) for x in (logits_RV, reference_RV)
    )
  policy_RV = jax.nn.log_softmax(generate.policy_logits(logits_RV, sampling))
  frozen_RV = jax.nn.log_softmax(reference_RV.astype(jnp.float32))
  # A token that cannot be drawn adds 0, not 0 * inf.
  ratio_RV = jnp.where(policy_RV > -jnp.inf, policy_RV - frozen_RV, 0.0)
  logps, reference_logps = (
    jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]
    for x in (policy_RV, frozen_RV)
  )
  return SequenceKL(
    kl=jnp.sum(jnp.exp(policy_RV) * ratio_RV, axis=1),
    kl_mc=logps - reference_logps,
    logps=logps,
    reference_logps=reference_logps,
  )


def _texts(prompts_RP, lengths, answers_RT, counts) -> types.Rows:
  """Rows [R, P + T], one text each: a prompt, right after it an answer."""
  R, P = prompts_RP.shape
  T = answers_RT.shape[1]
  slots_RL = jnp.broadcast_to(jnp.arange(P + T), (R, P + T))
  behind_RL = jnp.clip(slots_RL - lengths[:, None], 0, T - 1)
  tokens_RL = jnp.where(
    slots_RL < lengths[:, None],
    jnp.pad(prompts_RP, ((0, 0), (0, T))),
    jnp.take_along_axis(answers_RT, behind_RL, axis=1),
  )
  is_token_RL = slots_RL < (lengths + counts)[:, None]
  tokens_RL = jnp.where(is_token_RL, tokens_RL, 0)
  return generate.rows_of_texts(tokens_RL, slots_RL, is_token_RL)


def _states(model, params, texts: types.Rows, places_RT) -> Array:
  """The hidden states [R, T, D] that predict the tokens of the answers."""
  hidden_RLD, _ = model.hidden(params, texts)
  return jnp.take_along_axis(hidden_RLD, places_RT[..., None], axis=1)
