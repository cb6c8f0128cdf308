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

What is left of its variance comes from where the drawn tokens lead. So numbers
of mean 0 given y_<t go out with it, the draws: functions of a drawn token less
their means over the vocabulary. control_variates.py takes from the second
estimate what they explain of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import types
from dpo_jax.models import generate, output_head
from dpo_jax.types import Array

# Directions at most in which the output vector of a drawn token is seen.
_DIRECTIONS = 64


class TokenKL(NamedTuple):
  """Both estimates at one token, float32 [R], nats."""

  kl: Array  # Rao-Blackwellised
  kl_mc: Array  # Monte Carlo: logps - reference_logps
  logps: Array  # of the distribution that was sampled from
  reference_logps: Array  # at temperature 1, without filters


class SequenceKL(NamedTuple):
  """Sums of `TokenKL` over the tokens of an answer, float32 [R].

  The last two are of each token. Everything is 0 where there is no token.
  """

  kl: Array
  kl_mc: Array
  logps: Array
  reference_logps: Array
  kl_RT: Array  # the Rao-Blackwellised estimate
  # The Monte Carlo estimate less the other one, -log pi(y_t) less the entropy,
  # and the output vector of the drawn token less its mean.
  draws_RTF: Array


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
    directions_VF = _directions(heads[0].weight_VD)

    def add(t, carry):
      sums, kl_TR, draws_TRF = carry
      logits = [output_head.logits(h, s[:, t]) for h, s in zip(heads, states)]
      token, draws_RF = token_kl(
        *logits, answers_RT[:, t], sampling, known_V, directions_VF
      )
      # `where`, not a product: what follows an answer may be no number.
      is_token = t < counts
      token = jax.tree.map(lambda x: jnp.where(is_token, x, 0.0), token)
      draws_RF = jnp.where(is_token[:, None], draws_RF, 0.0)
      return (
        jax.tree.map(jnp.add, sums, token),
        kl_TR.at[t].set(token.kl),
        draws_TRF.at[t].set(draws_RF),
      )

    R = len(lengths)
    zeros = jnp.zeros(R, jnp.float32)
    start = (
      TokenKL(zeros, zeros, zeros, zeros),
      jnp.zeros((max_new_tokens, R), jnp.float32),
      jnp.zeros((max_new_tokens, R, 2 + directions_VF.shape[1]), jnp.float32),
    )
    sums, kl_TR, draws_TRF = jax.lax.fori_loop(0, counts.max(), add, start)
    return SequenceKL(*sums, kl_TR.T, draws_TRF.swapaxes(0, 1))

  return estimate


def token_kl(
  logits_RV: Array,
  reference_RV: Array,
  token: Array,
  sampling: generate.Sampling,
  known_V: Array | None,
  directions_VF: Array,
) -> tuple[TokenKL, Array]:
  """Returns both estimates at one token of every row, and its draws [R, 2 + F].

  Args:
    logits_RV: of the policy, before temperature and filters.
    reference_RV: logits of the reference.
    token: int32 [R], the tokens that were drawn.
    sampling: the options with which they were.
    known_V: as in `make_sampled_kl`.
    directions_VF: numbers of each token of the vocabulary.
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
  probs_RV = jnp.exp(policy_RV)
  estimates = TokenKL(
    kl=jnp.sum(probs_RV * ratio_RV, axis=1),
    kl_mc=logps - reference_logps,
    logps=logps,
    reference_logps=reference_logps,
  )
  entropy = -jnp.sum(
    probs_RV * jnp.where(policy_RV > -jnp.inf, policy_RV, 0.0), axis=1
  )
  draws = estimates.kl_mc - estimates.kl, -logps - entropy
  # A product in full float32: rounded, its mean would not be 0.
  means_RF = jnp.dot(probs_RV, directions_VF, precision='highest')
  moved_RF = directions_VF[token] - means_RF
  return estimates, jnp.concatenate([jnp.stack(draws, 1), moved_RF], axis=1)


def _directions(weight_VD: Array) -> Array:
  """The output vectors [V, F], float32, seen in few directions if D is many.

  Random directions keep distances (Johnson and Lindenstrauss 1984).
  """
  D = weight_VD.shape[1]
  if D <= _DIRECTIONS:
    return weight_VD.astype(jnp.float32)
  seen = jax.random.normal(jax.random.key(0), (D, _DIRECTIONS)) / D**0.5
  # No float32 copy of the head.
  return jnp.dot(
    weight_VD,
    seen.astype(weight_VD.dtype),
    preferred_element_type=jnp.float32,
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
