"""The lines of a diagnosis: number and order, and where they come from."""

import json
import subprocess
import sys

import numpy as np
import test_symptoms as cases

from dpo_jax import main
from dpo_jax.run import diagnose


def _lines(case, **more):
  return diagnose.lines(
    case.first, case.last, case.history, config={'loss': {'beta': 0.1}}, **more
  )


def test_a_healthy_run_has_one_line():
  told = _lines(cases.make_case())
  assert len(told) == 1
  assert told[0].startswith(
    'diagnosis: nothing stands out: held-out loss 0.693'
  )


def test_three_lines_at_most_and_the_others_by_name():
  fallen = {'logps/chosen': -115.0, 'logps/rejected': -150.0, 'kl': 51.0}
  train = {31: {'grad_norm': 84.0}}
  case = cases.make_case(last=fallen | {'displacement': 1.0}, train=train)
  told = _lines(case)
  assert [line.split(':')[1] for line in told] == [
    ' the policy is far from the reference',
    ' both rewards fall',
    ' gradients jump',
  ]
  assert 'Raise loss.beta (now 0.1)' in told[0]
  margin = np.random.default_rng(0).normal(1.3, 1, 100)
  margin[:5] = 0
  arrays = {'reward_chosen': margin, 'reward_rejected': np.zeros(100)}
  told = _lines(case, arrays=arrays)
  assert len(told) == 3 and 'tie' in told[2]
  assert told[2].endswith(' Also: gradients jump.')


def test_a_history_may_lack_everything():
  assert diagnose.lines({}, {}, {}) == [
    'diagnosis: nothing stands out: nothing was measured.'
  ]


def _write_run(path, evals, samples=()):
  path.mkdir()
  (path / 'config.json').write_text(json.dumps({'loss': {'beta': 0.2}}))
  entries = [
    {'step': step, 'split': 'eval', **metrics} for step, metrics in evals
  ]
  entries.append({'step': 1, 'split': 'train', 'loss': 0.69})
  text = ''.join(json.dumps(entry) + '\n' for entry in entries)
  (path / 'metrics.jsonl').write_text(text)
  (path / 'samples').mkdir()
  for step, counts in samples:
    rows = ''.join(json.dumps({'num_tokens': n}) + '\n' for n in counts)
    (path / 'samples' / f'eval_{step}_t1_seed0_ab.jsonl').write_text(rows)
  return path


def test_a_run_directory_is_read(tmp_path):
  far = cases.LAST | {'kl': 40.0}
  evals = [(0, cases.FIRST), (50, far)]
  samples = [(0, [10, 20]), (50, [20, 30])]
  run = _write_run(tmp_path / 'run', evals, samples)
  (run / 'per_example').mkdir()
  rewards = np.array([1.0] * 18 + [0.0] * 2)
  np.savez(
    run / 'per_example' / 'eval_50.npz',
    reward_chosen=rewards,
    reward_rejected=np.zeros(20),
    **{'whole.policy.logps': np.zeros(3)},
  )
  told = diagnose.of_run(run)
  assert [line.split(':')[1] for line in told] == [
    ' the policy is far from the reference',
    ' length grows',
    ' 10% of the held-out pairs tie and count as lost',
  ]
  assert 'loss.beta (now 0.2)' in told[0]
  assert 'from 15 to 25 tokens' in told[1]


def test_an_evaluation_on_other_data_is_not_compared_with_the_first(tmp_path):
  evals = [(0, cases.FIRST), (20, {'loss': 0.4}), (50, {'loss': 0.6})]
  run = _write_run(tmp_path / 'run', evals)
  worse = cases.LAST | {'loss': 0.9}
  assert 'above its start' in diagnose.of_run(run, worse, {})[0]
  assert 'rose from 0.4' in diagnose.of_run(run)[0]
  told = diagnose.of_run(run, worse, {}, is_own=False)
  assert told == ['diagnosis: nothing stands out: accuracy 86%.']


def test_it_needs_no_jax():
  # Results import it.
  code = (
    'import sys; sys.modules["jax"] = None; from dpo_jax.run import diagnose'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_the_flag_belongs_to_evaluate(capsys):
  command = ['--mode=plan', '--config=experiments/quickstart.py', '--diagnose']
  assert main.main(command) == 2
  assert 'use --mode=evaluate' in capsys.readouterr().err
