"""loss -> gradients: one pure training step, and one evaluation step.

Comes in: a score function, an objective, an optimiser. Goes out: functions
of arrays, not yet jitted (`train.py` does that). Knows no text and no model.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dpo_jax import metrics as metrics_lib
from dpo_jax import scoring, types
from dpo_jax.losses import pairs as pairs_lib
from dpo_jax.losses.objective import Objective, present
from dpo_jax.train_state import TrainState


def make_train_step(
  score: Callable,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: Callable,
) -> Callable:
  """Makes `train_step(state, reference, batch, hyper) -> (state, metrics)`.

  Accumulation over the batch's M microbatches is exact for every loss: terms
  that separate over comparisons are divided by the whole batch's
  denominators and summed in one pass; a whole-batch term is differentiated
  with respect to the scores of all microbatches first, and that cotangent is
  sent back through each.

  Args:
    score: `score(params, rows, num_completions)`, see scoring.make_score.
    objective: the losses.
    optimizer: from optim.make_optimizer, at unit learning rate.
    schedule: multiplier of hyper['learning_rate'] at a step.

  Returns:
    A pure function. `reference` is a pytree of parameters, or None where the
    batch brings precomputed scores or the losses need none.
  """
  gradients = (
    _whole_batch_gradients if objective.whole_batch else _separable_gradients
  )

  def train_step(state: TrainState, reference, batch: types.Batch, hyper):
    reference_of = functools.partial(
      reference_scores, score, objective, reference, batch
    )
    (loss, terms, policy, ref), grads = gradients(
      score, objective, state.params, reference_of, batch, hyper
    )
    learning_rate = hyper['learning_rate'] * schedule(state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: -learning_rate * u, updates)
    metrics = {
      'loss': loss,
      'learning_rate': learning_rate,
      'grad_norm': optax.tree.norm(grads),
      'update_norm': optax.tree.norm(updates),
      **_term_metrics(terms),
      **metrics_lib.means(
        score_sums(objective, policy, ref, batch, hyper),
      ),
    }
    state = state._replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
    )
    return state, metrics

  return train_step


def make_eval_step(score: Callable, objective: Objective) -> Callable:
  """Makes `eval_step(params, reference, batch, hyper) -> (sums, pairs)`.

  Returns:
    A pure function giving sums that add up over batches (`loss` and the term
    values are multiplied by their denominators), and the PairScores [P].
  """

  def eval_step(params, reference, batch: types.Batch, hyper):
    num_completions = batch.labels.shape[0]

    def forward(rows):
      ref = reference_scores(score, objective, reference, batch, rows)
      return score(params, rows, num_completions), ref

    policy, ref = _sum_over_microbatches(forward, batch.rows)
    comparisons = present(batch.comparisons, policy.num_tokens)
    denominators = objective.denominators(comparisons, policy.num_tokens)
    _, terms = objective(policy, ref, batch, hyper, denominators)
    sums = score_sums(objective, policy, ref, batch, hyper)
    for loss in objective.losses:
      sums[f'term/{loss.name}'] = (
        terms[loss.name] * denominators[loss.normaliser]
      )
    sums |= {f'denominator/{k}': v for k, v in denominators.items()}
    if policy.entropy is not None:
      sums['entropy'] = jnp.sum(policy.entropy)
      sums['tokens'] = jnp.sum(policy.num_tokens)
    return sums, pairs_lib.gather(policy, ref, comparisons, batch.scores)

  return eval_step


def reference_scores(score, objective, reference, batch, rows):
  """The frozen reference's scores of the completions in `rows`, [C].

  From the batch where they were precomputed, from the reference's parameters
  otherwise; None where the losses need no reference.
  """
  if not objective.needs_reference:
    return None
  num_completions = batch.labels.shape[0]
  if batch.reference is not None:
    here = scoring.count_tokens(rows, num_completions) > 0
    return jax.tree.map(lambda x: jnp.where(here, x, 0.0), batch.reference)
  frozen = jax.lax.stop_gradient(reference)
  return jax.lax.stop_gradient(score(frozen, rows, num_completions))


def score_sums(objective, policy, reference, batch, hyper):
  """Sums of the metrics that these scores allow."""
  comparisons = present(batch.comparisons, policy.num_tokens)
  pairs = pairs_lib.gather(policy, reference, comparisons, batch.scores)
  if reference is None:
    return metrics_lib.likelihood_sums(pairs)
  return metrics_lib.preference_sums(pairs, hyper.get('beta', 1.0))


def _separable_gradients(score, objective, params, reference_of, batch, hyper):
  """Loss and gradients in one pass over the microbatches."""
  num_completions = batch.labels.shape[0]
  num_tokens = scoring.count_tokens(batch.rows, num_completions)
  denominators = objective.denominators(batch.comparisons, num_tokens)

  def part(params, rows):
    policy = score(params, rows, num_completions)
    ref = reference_of(rows)
    loss, terms = objective(policy, ref, batch, hyper, denominators)
    return loss, (loss, terms, policy, ref)

  def step(rows):
    (_, outputs), grads = jax.value_and_grad(part, has_aux=True)(params, rows)
    return outputs, grads

  return _sum_over_microbatches(step, batch.rows)


def _whole_batch_gradients(
  score, objective, params, reference_of, batch, hyper
):
  """Scores of all microbatches, d(loss)/d(scores), then back through each."""
  num_completions = batch.labels.shape[0]

  def forward(rows):
    return score(params, rows, num_completions), reference_of(rows)

  policy, ref = _sum_over_microbatches(forward, batch.rows)

  def loss_of(logps):
    full = policy._replace(logps=logps)
    loss, terms = objective(full, ref, batch, hyper)
    return loss, terms

  (loss, terms), cotangent = jax.value_and_grad(loss_of, has_aux=True)(
    policy.logps
  )

  def backward(rows):
    def weighted(params):
      logps = score(params, rows, num_completions).logps
      return jnp.sum(logps * cotangent)

    return jax.grad(weighted)(params)

  grads = _sum_over_microbatches(backward, batch.rows)
  return (loss, terms, policy, ref), grads


def _sum_over_microbatches(fn, rows):
  """Sum of fn(rows[m]) over m; `rows` are [M, R, L]."""
  first = jax.tree.map(lambda x: x[0], rows)
  if rows.tokens.shape[0] == 1:
    return fn(first)

  def body(total, rows_m):
    return jax.tree.map(jnp.add, total, fn(rows_m)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, first)
  )
  return jax.lax.scan(body, zeros, rows)[0]


def _term_metrics(terms):
  """Each term's value, where there is more than the loss itself to see."""
  if len(terms) < 2:
    return {}
  return {f'terms/{name}': value for name, value in terms.items()}
