"""train_step: whole-batch losses on planned batches, exact for every split.

Real `Plan`s of pairs, lists and labelled answers, cut into microbatches and
rows for 1, 2 and 8 devices. KTO's value is also computed from the texts alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_train_step_losses
import toy

from dpo_jax import losses, scoring, sharding, train_step, types
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.train_step import init_state

BETA = 0.3
STEP = 2  # of the plan; one at which KTO has a baseline above 0
# {name: (terms, options)}: every loss and option that needs the whole batch, of
# those that read no whole distributions (test_train_step_losses.py has them).
SETS = {
  'losses': (
    tuple(
      name
      for name in test_train_step_losses.WHOLE
      if 'distributions' not in losses.get(name).needs
    ),
    (),
  ),
  'beta_dpo': (('sigmoid',), ('beta_dpo',)),
}


def records():
  """Pairs, ranked lists and labelled answers; every 5th prompt is the same."""
  rng = np.random.default_rng(0)
  draw = lambda most: rng.integers(0, toy.VOCAB, rng.integers(1, most), 'i4')  # noqa: E731
  encoded, common = [], draw(5)
  for i in range(16):
    answers = tuple(draw(9) for _ in range(1 if i % 3 == 2 else 2 + i % 2))
    compared = tuple(
      types.Comparison(0, k, weight=0.5 + 0.1 * i)
      for k in range(1, len(answers))
    )
    known = {} if i % 3 < 2 else {'labels': (i % 2 == 0,)}
    prompt = common if i % 5 == 0 else draw(5)
    record = types.EncodedRecord(prompt, answers, compared, **known)
    encoded.append(record._replace(scores=tuple(rng.normal(size=len(answers)))))
  return encoded


def plan_of(microbatches=1, num_devices=1):
  return pipeline.make_plan(
    length_table.make_table(records()),
    seed=1,
    batch_size=8,
    microbatches=microbatches,
    row_length=24,
    row_multiple=num_devices,
    mismatched_length=24,
  )


@functools.cache
def run(name, microbatches=1, num_devices=1):
  """(step's metrics, moved parameters, loss state): SGD of rate 1, beta 0.3."""
  terms, options = SETS[name]
  objective = losses.make_objective(terms, options=options)
  plan = plan_of(microbatches, num_devices)
  batch = plan.batch(STEP, records())
  mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
  is_alone = num_devices == 1
  score = scoring.make_score(
    toy.ToyModel(), chunk=7, full_logits=is_alone, mesh=mesh
  )
  step = train_step.make_train_step(
    score, objective, optax.identity(), lambda step: 1.0
  )
  hyper = losses.default_hyper(dict.fromkeys(terms, 1.0), options, beta=BETA)
  hyper['learning_rate'] = jnp.float32(1.0)
  params, reference = (
    jax.tree.map(lambda x: 0.3 * x, tree)
    for tree in (toy.params(), toy.reference(5))
  )
  state = init_state(params, optax.identity(), 0, objective.init_state())
  everywhere, rows = (
    sharding.replicated(mesh),
    sharding.batch_shardings(mesh, batch),
  )
  jitted = jax.jit(
    step,
    compiler_options=test_train_step_losses.QUICKLY,
    in_shardings=(everywhere, everywhere, rows, everywhere),
  )
  new, metrics = jitted(state, reference, batch, hyper)
  assert max(np.abs(new.params[k] - params[k]).max() for k in params) > 1e-3
  return jax.device_get((metrics, new.params, new.loss_state))


@pytest.mark.parametrize(
  'name,microbatches,num_devices',
  [('losses', 4, 1), ('losses', 2, 2), ('losses', 2, 8), ('beta_dpo', 4, 8)],
)
def test_a_cut_batch_takes_the_same_step(name, microbatches, num_devices):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=3e-5),
    run(name, microbatches, num_devices),
    run(name),
  )


def log_prob(params, prompt, completion):
  """log p(completion | prompt) under toy.ToyModel, float64."""
  text = np.concatenate([prompt, completion])
  at = np.arange(len(prompt) - 1, len(text) - 1)
  p = {k: 0.3 * v.astype(np.float64) for k, v in params.items()}
  logits = (p['embed'][text[at]] + p['pos'][at]) @ p['head'].T + p['bias']
  logits -= np.log(np.exp(logits).sum(1, keepdims=True))
  return logits[np.arange(len(at)), completion].sum()


def test_kto_is_that_of_the_paper_over_the_global_batch():
  # arXiv:2402.01306, eq. 8, with TRL's estimate of z: a mean over prompts.
  def log_ratio(record, completion):
    return log_prob(toy.params(0), record.prompt, completion) - log_prob(
      toy.params(5), record.prompt, completion
    )

  chosen = [records()[i] for i in plan_of().records(STEP)]
  drift = []
  for i, record in enumerate(chosen):
    for place in (*range(i + 1, 8), *range(i)):
      other = chosen[place]
      if other.prompt.tolist() != record.prompt.tolist():
        # Its completions take turns, by place and step.
        k = (place + STEP) % len(other.completions)
        drift.append(log_ratio(record, other.completions[k]))
        break
  assert len(drift) == 8
  z = max(0, BETA * np.mean(drift))
  total, weights = 0.0, 0.0
  for record in chosen:
    judged = [
      (side, is_good, c.weight)
      for c in record.comparisons
      for side, is_good in ((c.winner, 1), (c.loser, -1))
    ]
    if record.labels:
      judged = [(0, 1 if record.labels[0] else -1, 1.0)]
    for k, sign, weight in judged:
      gain = BETA * log_ratio(record, record.completions[k]) - z
      total += weight * (1 - 1 / (1 + np.exp(-sign * gain)))
      weights += weight
  expected = total / weights
  assert z > 0.01  # the test would not see a baseline of 0
  for cut in ((1, 1), (2, 8)):
    metrics, _, _ = run('losses', *cut)
    np.testing.assert_allclose(metrics['terms/kto'], expected, rtol=1e-5)
