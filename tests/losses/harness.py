"""Batches whose log-ratios are given, for every view of a loss.

A comparison is a prompt with three completions: winner, loser, and another
prompt's answer (mismatched). A loss of completions reads the first two as
desirable and undesirable, a loss of lists as the two completions of a prompt.
All batches have NUM comparisons: with one shape, tests compile little.
"""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses, types

NUM = 4


def scores_of(
  a_w,
  a_l,
  *,
  tokens=(3.0, 5.0),
  policy=(-7.0, -11.0),
  mismatched=0.5,
  kl=(0.3, 0.8),
  log_sum_sq=(-2.0, -4.0),
  away=(0.2, 0.1),
  toward=(-0.2, 0.1),
):
  """(policy, reference) CompletionScores [3 NUM]; numbers or arrays [NUM]."""

  def spread(w, x, rest):
    columns = [np.broadcast_to(v, NUM) for v in (w, x, rest)]
    return jnp.asarray(np.stack(columns, 1).reshape(-1), jnp.float32)

  log_ratio, logps = spread(a_w, a_l, mismatched), spread(*policy, -9.0)
  num_tokens = spread(*tokens, 4.0)
  # The longer answer's tail: 3 nats of the policy, half of the log-ratio.
  shorter = spread(*3 * [np.minimum(*tokens)])
  is_longer = num_tokens > shorter
  heads = logps + jnp.where(is_longer, 3.0, 0.0)
  drift = jnp.where(is_longer, 0.5, 1.0) * log_ratio

  def pairs_of(values):
    return values.reshape(NUM, 3)[:, :2].T

  policy = types.CompletionScores(
    logps,
    num_tokens,
    log_sum_sq_probs=spread(*log_sum_sq, 0.0),
    kl=spread(*kl, 0.0),
    heads_2P=pairs_of(heads),
    away=spread(*away, 0.0),
    toward=spread(*toward, 0.0),
  )
  reference = types.CompletionScores(
    logps - log_ratio, num_tokens, heads_2P=pairs_of(heads - drift)
  )
  return policy, reference


def batch_of(
  *, scores=(4.0, 2.5), quantiles=(1.0, 0.25), margin=0.5, weight=(1, 1, 1, 1)
):
  """The batch that belongs to the completions of `scores_of`."""
  winner = 3 * jnp.arange(NUM)
  weight = jnp.asarray(weight, jnp.float32)
  margin = jnp.full(NUM, margin, jnp.float32)
  return types.Batch(
    rows=None,
    comparisons=types.Comparisons(winner, winner + 1, weight, margin),
    labels=jnp.full(3 * NUM, -1),
    scores=jnp.tile(jnp.array([*scores, 0.0], jnp.float32), NUM),
    prompt_index=jnp.repeat(jnp.arange(NUM), 3),
    mismatched=jnp.tile(jnp.array([0, 0, 1]), NUM),
    quantiles=jnp.tile(jnp.array([*quantiles, 0.0], jnp.float32), NUM),
  )


def evaluate(name, scores, batch=None, options=(), **values):
  """(value, d value / d policy scores, d value / d hyper) of one loss.

  The loss state is that of the first step of a run. `values` are the
  hyper-parameters and static choices that differ from the defaults.
  """
  hyper = losses.default_hyper({name: 1.0}, options, **values)
  static = {k: v for k, v in values.items() if isinstance(v, (str, bool))}
  run = _program(name, options, tuple(static.items()))
  return run(*scores, batch_of() if batch is None else batch, hyper)


@functools.cache
def _program(name, options, static):
  """The function behind `evaluate`, traced and not compiled.

  One trace serves all numbers, as in a sweep.
  """
  objective = losses.make_objective((name,), dict(static), options)

  def loss_of(policy, hyper, reference, batch):
    kept, state = objective.prepare(
      policy, reference, batch, hyper, objective.init_state()
    )
    return objective(policy, reference, kept, hyper, state=state)[0]

  def fn(policy, reference, batch, hyper):
    grad = jax.value_and_grad(loss_of, (0, 1))
    value, grads = grad(policy, hyper, reference, batch)
    return value, *grads

  hyper = losses.default_hyper({name: 1.0}, options)
  args = (*scores_of(2.0, -1.0), batch_of(), hyper)
  program, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
  structure = jax.tree.structure(shape)
  flat = jax.extend.core.jaxpr_as_fun(program)

  def run(*args):
    return jax.tree.unflatten(structure, flat(*jax.tree.leaves(args)))

  return run
