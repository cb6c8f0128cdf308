"""Evaluations on other data: read, in tables of their own, verified."""

import json

import numpy as np
import pytest

from dpo_jax.results import __main__ as command
from dpo_jax.results import arrays as arrays_lib
from dpo_jax.results import collect
from dpo_jax.types import InputError


def evaluate(path, name, *, margin=1.0, step=10, data=None, count=8):
  """What --mode=evaluate leaves in a run."""
  rng = np.random.default_rng(len(name))
  chosen = rng.normal(margin, 1, count)
  rejected = np.zeros(count)
  metrics = {
    'loss': 0.5,
    'rewards/accuracies': float((chosen > rejected).mean()),
    'rewards/margins': float((chosen - rejected).mean()),
  }
  (path / 'evaluate').mkdir(exist_ok=True)
  (path / 'per_example').mkdir(exist_ok=True)
  (path / f'evaluate/{name}.json').write_text(
    json.dumps(
      {'name': name, 'step': step, 'data': data or f'd/{name}.jsonl'}
      | {'metrics': metrics}
    )
  )
  np.savez(
    path / f'per_example/{name}.npz',
    uid=np.array([f'{i:016x}' for i in range(count)], 'S16'),
    prompt_id=np.array([f'{i:032x}' for i in range(count)], 'S32'),
    reward_chosen=chosen,
    reward_rejected=rejected,
    weight=np.ones(count),
  )
  return metrics


pytestmark = pytest.mark.usefixtures('no_drawing')


@pytest.fixture
def runs(make_run):
  runs = [make_run(f'b{b}', {'loss.beta': b}) for b in (0.1, 0.3)]
  for i, path in enumerate(runs):
    evaluate(path, 'test', margin=1 + i)
  evaluate(runs[0], 'hard', margin=-1)
  return runs


def test_each_has_a_table_with_intervals_and_differences(runs, tmp_path):
  out = tmp_path / 'out'
  assert command.main([*map(str, runs), f'--out={out}']) == 0
  text = (out / 'results.md').read_text()
  main, hard, test = text.split('\n## ')
  assert hard.startswith('hard: d/hard.jsonl\n')
  assert test.startswith('test: d/test.jsonl\n')
  for i in (0, 1):
    metrics = json.loads((runs[i] / 'evaluate/test.json').read_text())
    margin = metrics['metrics']['rewards/margins']
    assert f' {margin:.3f} ± ' in test and f' {margin:.3f} ± ' not in main
  assert 'Differences on the same' in test and 'Differences' not in hard
  assert 'b0.3' not in hard and '0.3' not in hard.split('|')[1]
  for name in ('results_test.csv', 'results_test.tex', 'results_hard.csv'):
    assert (out / name).is_file()
  assert command.main(['--verify', str(out)]) == 0


def test_verify_sees_a_changed_one_and_ignores_a_new_one(
  runs, tmp_path, capsys
):
  out = tmp_path / 'out'
  assert command.main([*map(str, runs), f'--out={out}']) == 0
  evaluate(runs[1], 'later')
  assert command.main(['--verify', str(out)]) == 0
  evaluate(runs[1], 'test', margin=3)
  capsys.readouterr()
  assert command.main(['--verify', str(out)]) == 1
  said = capsys.readouterr().out
  assert 'evaluate/test.json' in said and "'margin after, test'" in said


def test_the_run_s_own_data_gets_no_second_table(make_run, tmp_path):
  path = make_run('a', {'data.eval': 'split'})
  evaluate(path, 'evaluate', data='split')
  assert command.main([str(path), f'--out={tmp_path / "out"}']) == 0
  assert '##' not in (tmp_path / 'out/results.md').read_text()


def test_a_metric_that_only_training_has_needs_no_other(runs, tmp_path):
  out = tmp_path / 'out'
  words = [*map(str, runs), f'--out={out}', '--metrics=kl,rewards/margins']
  assert command.main(words) == 0
  _, _, test = (out / 'results.md').read_text().split('\n## ')
  assert 'margin after' in test and 'KL' not in test


@pytest.mark.parametrize('text', ['', '[]', '{"step": 1}', '{"metrics": {}}'])
def test_a_damaged_one_is_named(text, runs):
  file = runs[0] / 'evaluate/test.json'
  file.write_text(text)
  with pytest.raises(InputError, match='evaluate/test.json'):
    collect.read_run(runs[0])


def test_a_notebook_reads_them(runs):
  record = arrays_lib.read_run(runs[0])
  assert sorted(record.evaluations) == ['hard', 'test']
  metrics = record.evaluations['hard']['metrics']
  values = record.examples['hard']
  margin = (values['reward_chosen'] - values['reward_rejected']).mean()
  np.testing.assert_allclose(margin, metrics['rewards/margins'])
  assert values['uid'].tolist() == [f'{i:016x}' for i in range(8)]
