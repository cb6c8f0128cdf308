"""evaluate: a set in batches gives what one batch of it all gives."""

import types

import jax
import numpy as np
import pytest
import toy

from dpo_jax import losses, scoring, train_step
from dpo_jax.run import evaluate

TERMS = {'sigmoid': 1.0, 'nll': 0.25}


def run(num_batches, poll=lambda: None):
  objective = losses.make_objective(tuple(TERMS))
  score = scoring.make_score(toy.ToyModel(), wanted=('entropy',))
  step = jax.jit(train_step.make_eval_step(score, objective))
  everything = toy.batch(num_pairs=8)
  size = 8 // num_batches

  def batches(t):
    c = everything.comparisons
    mask = (np.arange(8) // size) == t
    return everything._replace(
      comparisons=c._replace(weight=np.where(mask, c.weight, 0))
    )

  hyper = losses.default_hyper(TERMS)
  job = types.SimpleNamespace(
    eval_step=step,
    objective=objective,
    eval_plan=types.SimpleNamespace(steps_per_epoch=num_batches),
    hyper=hyper,
  )
  return evaluate.evaluate(job, toy.params(), toy.reference(5), batches, poll)


def test_means_and_scores_do_not_depend_on_the_batches():
  one, pairs_one = run(1)
  four, pairs_four = run(4)
  assert set(one) == set(four)
  for name in one:
    np.testing.assert_allclose(one[name], four[name], rtol=1e-5, err_msg=name)
  assert pairs_one.comparisons['policy_chosen'].shape == (8,)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    pairs_one,
    pairs_four,
  )
  np.testing.assert_allclose(
    one['loss'], one['terms/sigmoid'] + 0.25 * one['terms/nll'], rtol=1e-6
  )


def test_poll_can_stop_it():
  class Stop(Exception):
    pass

  def poll():
    raise Stop

  with pytest.raises(Stop):
    run(2, poll)
