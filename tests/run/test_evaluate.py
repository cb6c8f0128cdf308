"""evaluate: batches of a set add up to its values; what is saved of them."""

import hashlib
import types

import commands
import jax
import numpy as np
import pytest
import toy

from dpo_jax import losses, scoring, train_step
from dpo_jax.run import evaluate, weights
from dpo_jax.run import job as job_lib

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


def test_every_value_is_saved_with_its_record_and_prompt(tmp_path):
  job = commands.build(tmp_path, [('loss.beta', '0.3')])
  part = job.inputs.evaluation
  reference = weights.frozen(job, with_reference=True)
  policy = jax.tree.map(lambda leaf: 1.1 * leaf, reference.weights)
  batches = job_lib.batch_source(job, job.eval_plan, part)
  metrics, examples = evaluate.evaluate(job, policy, reference, batches)
  arrays = evaluate.per_example(part, examples)
  assert len(arrays['uid']) == 16
  records = {}
  for i in part.indices:
    record = part.store[i]
    digest = hashlib.sha256(np.asarray(record.prompt, '<i4').tobytes())
    records[record.uid] = digest.hexdigest()[:32], record
  for i, uid in enumerate(arrays['uid'].tolist()):
    prompt_id, record = records[uid.decode()]
    assert arrays['prompt_id'][i].decode() == prompt_id
    (comparison,) = record.comparisons
    for side, index in (
      ('chosen', comparison.winner),
      ('rejected', comparison.loser),
    ):
      assert arrays[f'{side}_tokens'][i] == len(record.completions[index])
  for side in ('chosen', 'rejected'):
    by_hand = arrays[f'policy_{side}'] - arrays[f'reference_{side}']
    saved = arrays[f'reward_{side}']
    np.testing.assert_allclose(saved, 0.3 * by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
      np.average(saved, weights=arrays['weight']),
      metrics[f'rewards/{side}'],
      rtol=1e-4,
    )
  loss = np.average(arrays['loss'], weights=arrays['weight'])
  np.testing.assert_allclose(loss, metrics['loss'], rtol=1e-5)
