"""best: the first step with the best value, and the step of a flag."""

import json
import types

import pytest
from commands import CONFIG

from dpo_jax import main as main_lib
from dpo_jax.run import best
from dpo_jax.storage.run_dir import RunDir
from dpo_jax.types import InputError


@pytest.fixture
def run(tmp_path):
  """A run with five evaluations."""
  lines = [
    {'step': step, 'split': 'eval', 'loss': loss, 'rewards/accuracies': share}
    for step, loss, share in (
      (0, 0.69, 0.5),
      (10, 0.4, 0.8),
      (20, None, 0.8),
      (30, 0.3, 0.7),
      (40, 0.9, 0.7),
    )
  ]
  lines.append({'step': 40, 'split': 'train', 'loss': 0.1})
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (tmp_path / 'metrics.jsonl').write_text(text)
  return RunDir(tmp_path)


@pytest.mark.parametrize(
  ('metric', 'step'), [('rewards/accuracies', 10), ('-loss', 30), ('loss', 40)]
)
def test_the_first_of_the_best(run, metric, step):
  assert best.Best(metric, run).step == step
  config = types.SimpleNamespace(train=types.SimpleNamespace(keep_best=metric))
  assert best.parse_step('best', run, config) == step


def test_it_goes_on_from_a_step_and_takes_evaluations(run):
  record = best.Best('-loss', run)
  record.forget_after(20)
  assert record.step == 10
  assert not record.take(30, {'loss': 0.5})
  assert record.take(40, {'loss': 0.2}) and record.step == 40
  assert not record.take(50, {'loss': float('nan')})
  assert record.step == 40


def test_an_unknown_metric_is_refused_at_the_first_evaluation(run):
  record = best.Best('rewards/acuracies', run)
  with pytest.raises(InputError, match="keep_best.*'rewards/accuracies'"):
    record.take(0, {'rewards/accuracies': 0.5, 'loss': 1.0})
  assert not best.Best('', run).take(0, {})


def test_a_flag_without_a_best_step_is_refused(run):
  config = types.SimpleNamespace(train=types.SimpleNamespace(keep_best=''))
  assert best.parse_step('', run, config) is None
  assert best.parse_step('12', run, config) == 12
  for text in ('best', 'last'):
    with pytest.raises(InputError, match='--step'):
      best.parse_step(text, run, config)


def test_a_run_keeps_its_best_step_beside_the_newest(tmp_path, capsys):
  workdir = f'--workdir={tmp_path}/run'
  # The loss of the second evaluation is the best: the rate is far too high.
  arguments = [
    *(CONFIG, workdir, '--config.train.keep_best=-loss'),
    *('--config.train.num_steps=6', '--config.train.eval_every=1'),
    *('--config.train.keep_checkpoints=1', '--config.optim.schedule=constant'),
    '--config.optim.learning_rate=0.03',
  ]
  assert main_lib.main(arguments) == 0
  evaluations = {
    line['step']: line['loss']
    for line in map(
      json.loads, (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
    )
    if line['split'] == 'eval'
  }
  first = min(evaluations, key=evaluations.get)
  assert first < 6, evaluations
  steps = sorted(
    int(p.name)
    for p in (tmp_path / 'run/checkpoints').iterdir()
    if p.name.isdigit()
  )
  assert steps == [first, 6]
  capsys.readouterr()
  for step, wanted in (('best', first), ('6', 6), ('', 6)):
    flag = [f'--step={step}'] if step else []
    assert main_lib.main(['--mode=evaluate', workdir, *flag]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f'step {wanted}: ')
    loss = json.loads(line.partition(': ')[2])['loss']
    assert loss == pytest.approx(evaluations[wanted], rel=1e-6)
  missing = f'--step={2 if first == 3 else 3}'
  assert main_lib.main(['--mode=evaluate', workdir, missing]) == 2
  assert 'there is no such step' in capsys.readouterr().err
