"""loss -> gradients: one pure training step, and one evaluation step.

Comes in: a score function, an objective, an optimizer. Goes out: pure functions
of arrays; `run/job.py` jits them. Knows no text, no model and no config.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dpo_jax import errors, optim, scoring, types
from dpo_jax import metrics as metrics_lib
from dpo_jax.losses import rules
from dpo_jax.losses.objective import Objective
from dpo_jax.models import experts
from dpo_jax.types import Params, TrainState


def init_state(
  params: Params,
  optimizer: optax.GradientTransformation,
  seed: int,
  loss_state: Params | None = None,
) -> TrainState:
  """Returns the initial state; `loss_state` is Objective.init_state()."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    loss_state={} if loss_state is None else loss_state,
    key=jax.random.key_data(jax.random.key(seed)),
    skipped=jnp.zeros((), jnp.int32),
  )


def make_train_step(
  score: Callable,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: Callable,
  skip_bad_steps: int = 0,
) -> Callable:
  """Makes `train_step(state, reference, batch, hyper) -> (state, metrics)`.

  Accumulation over the batch's M microbatches is exact for every loss. Terms
  that separate over comparisons are divided by the whole batch's denominators
  and summed in one pass. A whole-batch term takes two passes: scores of all
  microbatches and the gradient with respect to them, then a backward pass
  through each microbatch with that cotangent.

  Args:
    score: from scoring.make_score, or from scoring.make_pair_score if the
      objective needs 'distributions'.
    objective: the losses.
    optimizer: from optim.make_optimizer, at unit learning rate.
    schedule: multiplier of hyper['learning_rate'] at a step.
    skip_bad_steps: updates that may be left out in the run, see `_guarded`.

  Returns:
    A pure function. `reference` is a types.Frozen. The losses read and update
    `state.loss_state`. `metrics` holds scalars and metrics.Mean, which
    `metrics.means` divides, and under 'guard' a types.Guard. A model with
    experts descends loss + hyper['router_aux_coef'] * balance loss of the whole
    batch; the metric `loss` leaves the balance loss out.
  """

  def train_step(
    state: TrainState, reference: types.Frozen, batch: types.Batch, hyper
  ):
    epsilon = hyper.get('epsilon')
    forward = _make_forward(score, objective, reference, batch, epsilon)
    # The balance loss is not a sum over microbatches: each would balance only
    # its tokens. Shapes and keys are static, so one branch is compiled.
    balances_parts = (
      batch.rows.tokens.shape[0] > 1 and 'router_aux_coef' in hyper
    )
    gradients = _separable_gradients
    if objective.whole_batch or balances_parts:
      gradients = _whole_batch_gradients
    (loss, terms, policy, ref), loss_state, grads = gradients(
      forward, objective, state, batch, hyper
    )
    # The rate is applied here, not inside optax: as a traced number it changes
    # without a new compile.
    learning_rate = hyper['learning_rate'] * schedule(state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: -learning_rate * u, updates)
    metrics = {
      'loss': loss,
      'learning_rate': learning_rate,
      'grad_norm': optax.tree.norm(grads),  # before clipping
      'update_norm': optax.tree.norm(updates),
      **_term_metrics(terms),
      **metrics_lib.score_sums(objective, policy, ref, batch, hyper),
      **_router_metrics(policy),
    }
    new = state._replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      loss_state=loss_state,
    )
    state, metrics['guard'] = _guarded(
      state, new, metrics, jnp.sum(policy.num_tokens), skip_bad_steps
    )
    return state, metrics

  return train_step


def _guarded(old: TrainState, new: TrainState, metrics, num_tokens, limit: int):
  """Returns (state, types.Guard): `old` in place of a bad `new`.

  An update is bad if a metric of it is not finite (the loss, the norms of
  gradient and update, every sum), its loss or a second moment is too large, or
  its masks leave no token: its loss would be a constant. The first `limit` of
  them are left out: only the step number goes on. The next one leaves the state
  as it was before, and so do all updates after it: the host hears of it one
  update later, and finds the state that led there.
  """
  largest = optim.largest_moment(new.opt_state)
  is_bad = ~(largest < optim.MOST_MOMENT)
  is_bad |= ~(jnp.abs(metrics['loss']) < optim.MOST_LOSS)
  is_bad |= ~(num_tokens > 0)
  for metric in jax.tree.leaves(metrics):
    is_bad |= ~jnp.isfinite(metric)
  stands_still = old.skipped + is_bad > limit
  # A choice, not a branch: it is fused into the update itself.
  chosen = jax.tree.map(
    lambda was, now: jnp.where(is_bad | stands_still, was, now),
    old,
    new,
  )
  state = chosen._replace(
    step=jnp.where(stands_still, old.step, new.step),
    # Once over the limit it stays there.
    skipped=old.skipped + (is_bad & (old.skipped <= limit)),
  )
  return state, types.Guard(is_bad, largest, num_tokens)


def make_eval_step(
  score: Callable, objective: Objective, epsilon: float | None = None
) -> Callable:
  """Makes `eval_step(params, reference, batch) -> (policy, reference) scores`.

  Losses and metrics are computed later, from the scores of the whole held-out
  set: a loss of the whole batch must not depend on the evaluation's batches.

  Args:
    score: as in `make_train_step`.
    objective: the losses; only their needs are read.
    epsilon: for the tilted sums, see scoring.make_pair_score.

  Returns:
    A pure function that returns CompletionScores [C] of the policy, and of the
    reference or None.
  """

  def eval_step(params, reference: types.Frozen, batch: types.Batch):
    forward = _make_forward(score, objective, reference, batch, epsilon)
    policy, ref = _sum_over_microbatches(
      lambda rows: forward(params, rows), batch.rows
    )
    # Router sums count positions, not completions: no metric reads them.
    return policy._replace(router=None), ref and ref._replace(router=None)

  return eval_step


def reference_scores(
  score, objective, reference: types.Frozen, batch, rows, heads=None
):
  """Returns the reference's scores of the completions in `rows`, [C].

  The scores come from the batch if they were precomputed, else from the
  reference model. None if the losses need no reference.
  """
  if not objective.needs_reference:
    return None
  num_completions = batch.labels.shape[0]
  if batch.reference is not None:
    # A microbatch counts only its own completions, or each would count M times.
    here = scoring.count_tokens(rows, num_completions) > 0
    return jax.tree.map(lambda x: jnp.where(here, x, 0.0), batch.reference)
  frozen = jax.lax.stop_gradient(reference.reference())
  return jax.lax.stop_gradient(score(frozen, rows, num_completions, heads))


def _make_forward(score, objective, reference: types.Frozen, batch, epsilon):
  """Makes `forward(params, rows) -> (policy scores, reference scores)`."""
  num_completions = batch.labels.shape[0]
  # Token counts of the whole batch, known before any model runs.
  num_tokens = scoring.count_tokens(batch.rows, num_completions)
  heads = objective.heads(batch, num_tokens)
  _check_batch(objective, batch)

  def forward(params, rows):
    params = reference.policy(params)
    if 'distributions' in objective.needs:
      frozen = reference.reference()
      return score(params, frozen, rows, num_completions, heads, epsilon)
    policy = score(params, rows, num_completions, heads)
    return policy, reference_scores(
      score, objective, reference, batch, rows, heads
    )

  return forward


def _check_batch(objective, batch) -> None:
  """Refuses a batch that lacks what a loss reads."""
  names = ', '.join(objective.terms)
  reason = rules.why_not_cached(objective.needs)
  if batch.reference is not None and reason:
    raise errors.refuse(
      'batch.reference',
      f'precomputed scores do not serve {names}, {reason}',
      'leave it None and give the step the reference model',
    )
  if 'mismatched' in objective.needs and batch.mismatched is None:
    raise errors.refuse(
      'batch.mismatched',
      f"{names} needs every prompt scored with another prompt's answer, and "
      'the batch has none',
      'plan batches with mismatched_length, or use bco',
    )


def _separable_gradients(forward, objective, state, batch, hyper):
  """Loss and gradients in one pass over the microbatches."""
  num_tokens = scoring.count_tokens(batch.rows, batch.labels.shape[0])
  # Counts of the whole batch. A mean of the microbatches' means would give more
  # weight to a comparison in a microbatch that has few.
  denominators = objective.denominators(batch, num_tokens)

  def part(params, rows):
    policy, ref = forward(params, rows)
    loss, terms = objective(policy, ref, batch, hyper, denominators)
    return _with_balance(loss, policy, hyper), (loss, terms, policy, ref)

  def step(rows):
    (_, outputs), grads = jax.value_and_grad(part, has_aux=True)(
      state.params, rows
    )
    return outputs, grads

  outputs, grads = _sum_over_microbatches(step, batch.rows)
  return outputs, state.loss_state, grads


def _whole_batch_gradients(forward, objective, state, batch, hyper):
  """Scores of all microbatches, d(loss)/d(scores), then a backward pass each.

  The second forward pass saves the memory for all microbatches' activations.
  """
  policy, ref = _sum_over_microbatches(
    lambda rows: forward(state.params, rows), batch.rows
  )
  kept, loss_state = objective.prepare(
    policy, ref, batch, hyper, state.loss_state
  )

  def loss_of(scores):
    loss, terms = objective(scores, ref, kept, hyper, state=loss_state)
    return _with_balance(loss, scores, hyper), (loss, terms)

  (_, (loss, terms)), cotangent = jax.value_and_grad(loss_of, has_aux=True)(
    policy
  )

  # The gradient of sum(scores * cotangent) is the vector-Jacobian product. Each
  # microbatch computes its scores again, and absent completions add nothing.
  def backward(rows):
    def weighted(params):
      scores, _ = forward(params, rows)
      products = jax.tree.map(jnp.vdot, scores, cotangent)
      return sum(jax.tree.leaves(products))

    return jax.grad(weighted)(state.params)

  grads = _sum_over_microbatches(backward, batch.rows)
  return (loss, terms, policy, ref), loss_state, grads


def _sum_over_microbatches(fn, rows):
  """Sum of fn(rows[m]) over m; `rows` are [M, R, L].

  A completion lies in one microbatch and its scores are 0 in the others, so the
  sum of scores is the scores of the whole batch.
  """
  # A scan of length one would only cost a copy of the sum.
  first = jax.tree.map(lambda x: x[0], rows)
  if rows.tokens.shape[0] == 1:
    return fn(first)

  def body(total, rows_m):
    return jax.tree.map(jnp.add, total, fn(rows_m)), None

  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, first)
  )
  return jax.lax.scan(body, zeros, rows)[0]


def _with_balance(loss, policy, hyper):
  """The function to differentiate: the loss plus the experts' balance loss."""
  if policy.router is None:
    return loss
  balance = experts.balance_loss(policy.router)
  return loss + hyper['router_aux_coef'] * balance


def _router_metrics(policy):
  if policy.router is None:
    return {}
  return experts.balance_metrics(policy.router)


def _term_metrics(terms):
  """The value of each term; {} for a single one, which is the loss itself."""
  if len(terms) < 2:
    return {}
  return {f'terms/{name}': value for name, value in terms.items()}
