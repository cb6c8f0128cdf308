"""evaluate: batches of a set add up to its values; what is saved of them."""

import hashlib
import json
import types

import commands
import jax
import numpy as np
import pytest
import toy

import dpo_jax
from dpo_jax import losses, scoring, train_step
from dpo_jax import main as main_lib
from dpo_jax.results import recompute
from dpo_jax.run import diagnose, evaluate, held_out, weights
from dpo_jax.run import job as job_lib

TERMS = {'sigmoid': 1.0, 'nll': 0.25}


def run(num_batches, poll=lambda: None):
  """Evaluates eight pairs of the toy; every batch has their rows."""
  objective = losses.make_objective(tuple(TERMS))
  score = scoring.make_score(toy.ToyModel(), wanted=('entropy',))
  step = jax.jit(train_step.make_eval_step(score, objective))
  size = 8 // num_batches
  whole = toy.batch(num_pairs=8)

  def batches(t):
    is_here = np.arange(16) // (2 * size) == t
    ids = whole.rows.completion_id
    return whole._replace(
      rows=whole.rows._replace(
        completion_id=np.where((ids >= 0) & is_here[ids], ids, -1)
      )
    )

  job = types.SimpleNamespace(
    eval_step=step,
    objective=objective,
    eval_plan=types.SimpleNamespace(steps_per_epoch=num_batches),
    hyper=losses.default_hyper(TERMS),
  )
  return evaluate.evaluate(job, toy.params(), toy.reference(5), batches, poll)


def test_means_and_scores_do_not_depend_on_the_batches():
  one, saved_one = run(1)
  four, saved_four = run(4)
  assert list(one) == list(four)
  for name in one:
    np.testing.assert_allclose(one[name], four[name], rtol=1e-6, err_msg=name)
  assert saved_one.comparisons['policy_chosen'].shape == (8,)
  assert saved_one.whole['policy.logps'].shape == (16,)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    saved_one,
    saved_four,
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


def test_an_evaluation_can_score_for_other_losses(tmp_path):
  names = 'kto,tdpo2,wpo,ld_alpha'
  job = commands.build(tmp_path, [('eval.score_for', names)])
  assert job.eval_plan.is_mismatched and not job.train_plan.is_mismatched
  assert job.objective.terms == ('sigmoid',)
  part = job.inputs.evaluation
  reference = weights.frozen(job, with_reference=True)
  policy = jax.tree.map(lambda leaf: 1.1 * leaf, reference.weights)
  batches = job_lib.batch_source(job, job.eval_plan, part)
  metrics, saved = evaluate.evaluate(job, policy, reference, batches)
  scored, _ = held_out.from_arrays(saved.whole, 'x')
  hyper = jax.device_get(job.hyper)
  # The further scores change no metric of the run's own loss.
  assert held_out.measure(job.objective, hyper, scored)[0] == metrics
  assert scored.policy.heads_2P.shape == (2, 16)
  assert (scored.policy.kl[scored.batch.mismatched == 0] > 0).all()
  assert (scored.policy.log_sum_sq_probs < 0).all()
  for name, options in (
    ('kto', ()),
    ('tdpo2', ()),
    ('sigmoid', ('wpo', 'ld_alpha')),
  ):
    objective = losses.make_objective((name,), options=options)
    hyper = losses.default_hyper({name: 1.0}, options)
    got, _ = held_out.measure(objective, jax.device_get(hyper), scored)
    assert got['loss'] > 0


@pytest.mark.parametrize(
  'source,name',
  [
    ('split', 'evaluate'),
    ('test.jsonl', 'test'),
    ('/a/b/held out.v2.jsonl.gz', 'held_out.v2'),
    ('x.parquet', 'x'),
    ('a/.jsonl', 'data'),
    ('../eval_90.jsonl', 'data_eval_90'),
    (
      'tfds:hh_rlhf/harmless-base:test[:9]',
      'tfds_hh_rlhf_harmless-base_test_9',
    ),
    ('synthetic', 'synthetic'),
  ],
)
def test_an_evaluation_is_named_after_its_data(source, name):
  assert evaluate.source_name(source) == name


def test_each_evaluation_stays_beside_the_runs_own(tmp_path, capsys):
  run = tmp_path / 'run'
  workdir = f'--workdir={run}'
  assert main_lib.main([commands.CONFIG, workdir]) == 0
  # A run ends with its diagnosis.
  told = diagnose.of_run(run)
  assert capsys.readouterr().out.splitlines()[-1 - len(told) : -1] == told
  own = {p.name: p.read_bytes() for p in (run / 'per_example').iterdir()}
  for folder, text in (('a', 'yes'), ('b', 'yes it is')):
    (tmp_path / folder).mkdir()
    rows = (
      {'prompt': f'p{i}', 'chosen': text, 'rejected': 'no'} for i in range(6)
    )
    (tmp_path / folder / 'eval_2.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in rows)
    )

  def measure(*more):
    words = [commands.CONFIG, workdir, '--mode=evaluate', *more]
    assert main_lib.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    if '--diagnose' in more:
      assert printed[-len(told) :] == told
      printed = printed[: -len(told)]
    line = printed[-1]
    return json.loads(line.split(': ', 1)[1])

  files = [f'--config.data.eval={tmp_path}/{x}/eval_2.jsonl' for x in 'ab']
  first, second = measure(files[0]), measure(files[1])
  assert first['lengths/chosen'] != second['lengths/chosen']
  again = measure(files[0])  # the same once more: the same file
  assert again == first
  record = dpo_jax.read_run(run)
  names = sorted(record.evaluations)
  assert names[0] == 'data_eval_2' and len(names) == 2
  assert names[1].startswith('data_eval_2-step_2-')
  for name, metrics in zip(names, (first, second)):
    facts = record.evaluations[name]
    assert facts['metrics'] == metrics and facts['step'] == 2
    values = record.examples[name]
    assert len(values['uid']) == facts['num_values'] == 6
    margins = values['reward_chosen'] - values['reward_rejected']
    np.testing.assert_allclose(
      margins.mean(), metrics['rewards/margins'], rtol=1e-3, atol=1e-6
    )
  for name, data in own.items():
    assert (run / 'per_example' / name).read_bytes() == data
  # Every evaluation can be computed again from its file, to the last bit.
  lines = recompute.recompute([str(run)], recompute.parse('beta=0.1'))
  reported = {
    f'eval_{step}': {
      k: v[i] for k, v in record.metrics['eval'].items() if k != 'step'
    }
    for i, step in enumerate(record.metrics['eval']['step'])
  } | {name: facts['metrics'] for name, facts in record.evaluations.items()}
  assert {line.evaluation: line.metrics for line in lines} == reported
  # The run's own data again gives the run's own numbers, and its diagnosis.
  assert measure('--diagnose') == pytest.approx(
    {k: v[-1] for k, v in record.metrics['eval'].items() if k != 'step'},
    rel=1e-5,
    abs=1e-6,
  )


def test_a_metric_that_is_not_finite_is_named_and_nothing_written(
  tmp_path, capsys, monkeypatch
):
  words = [commands.CONFIG, f'--workdir={tmp_path}/run', '--mode=evaluate']
  real = evaluate.evaluate

  def spoilt(*arguments, **more):
    metrics, examples = real(*arguments, **more)
    return metrics | {'kl': float('nan')}, examples

  monkeypatch.setattr(evaluate, 'evaluate', spoilt)
  assert main_lib.main(words) == 1
  error = capsys.readouterr().err
  assert error.startswith('step 0, held out: kl is nan')
  assert not (tmp_path / 'run/evaluate').exists()
