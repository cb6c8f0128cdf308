"""--at: the step whose evaluation the cells are of."""

import json

import numpy as np
import pytest

from dpo_jax.results import __main__ as command
from dpo_jax.results import cells, collect, options, steps
from dpo_jax.types import InputError

# step -> (loss, accuracy, kl): it overfits after 20.
EVALUATIONS = {
  0: (0.69, 0.0, 0.0),
  10: (0.5, 0.6, -0.4),
  20: (0.4, 0.8, 1.0),
  30: (0.5, 0.8, 2.5),
  40: (0.7, 0.7, 1.0),
}
TRAINING = {5: 400, 25: 2400, 40: 4000}  # step -> num_tokens so far


def _records():
  names = 'loss', 'rewards/accuracies', 'kl'
  evaluations = {
    step: dict(zip(names, each)) for step, each in EVALUATIONS.items()
  }
  training = {step: {'num_tokens': each} for step, each in TRAINING.items()}
  return {'eval': evaluations, 'train': training}


def _choose(text: str, keep_best: str = '', records=None) -> int:
  at = options.parse(['runs', '--out=x', f'--at={text}']).options.at
  config = {'train': {'keep_best': keep_best}}
  return steps.choose(records or _records(), config, at, 'a')


@pytest.mark.parametrize(
  'text, step',
  [
    ('last', 40),
    ('best:rewards/accuracies', 20),  # the first of equals
    ('best:-loss', 20),
    ('best:loss', 40),
    ('best:-kl', 10),
    ('tokens=4000', 40),
    ('tokens=3999', 30),
    ('tokens=1900', 20),  # 400 + 15 / 20 of 2000
    ('tokens=1899', 10),
    ('tokens=799', 0),  # nothing after the start
    ('kl=9', 40),
    ('kl=2', 20),  # it ends at step 30, whatever comes later
    ('kl=.4', 10),  # the size: -0.4 is spent
    ('kl=.3', 0),
  ],
)
def test_the_step_is_the_last_within_the_budget(text, step):
  assert _choose(text) == step


def test_best_is_the_run_s_own_metric():
  assert _choose('best', '-loss') == 20 and _choose('best', 'loss') == 40
  assert _choose('best', 'loss', {'train': {}}) == 0  # no evaluation yet


@pytest.mark.parametrize(
  'text, keep_best, message',
  [
    ('best', '', "trained with train.keep_best=''; fix: name the metric"),
    ('best:accuracies', '', "reports no 'accuracies'; fix: did you mean"),
    ('best', '-los', "reports no 'los'; fix: did you mean 'loss'"),
  ],
)
def test_no_best_is_one_line(text, keep_best, message):
  with pytest.raises(InputError) as caught:
    _choose(text, keep_best)
  assert message in str(caught.value) and '\n' not in str(caught.value)


def test_a_budget_of_kl_needs_it():
  records = _records()
  del records['eval'][20]['kl']
  assert _choose('kl=.3', records=records) == 0
  with pytest.raises(InputError, match='a reports no kl at step 20'):
    _choose('kl=2', records=records)


@pytest.fixture
def overfit(make_run):
  """overfit(seed) -> a run that is best at step 20, with its values."""

  def make(seed: int = 0, **changes):
    lines = [
      {'step': step, 'split': 'eval', **each}
      for step, each in _records()['eval'].items()
    ]
    path = make_run(f'runs/{seed}', {'seed': seed, **changes}, lines=lines)
    (path / 'per_example').mkdir()
    for step, (loss, _, _) in EVALUATIONS.items():
      spread = np.linspace(-0.1, 0.1, 8)
      arrays = {'uid': np.arange(8).astype('S16'), 'loss': loss + spread}
      np.savez(path / 'per_example' / f'eval_{step}.npz', **arrays)
    return path

  return make


def test_cells_and_their_intervals_are_of_the_step(overfit):
  run = collect.read_run(overfit(), at=options.At('best', metric='-loss'))
  assert run.step == 20 and run.examples.step == 20
  assert 'per_example/eval_20.npz' in run.digests
  assert 'per_example/eval_40.npz' not in run.digests
  (row,) = cells.make_table([run]).rows
  cell = row.cells['loss', 'after']
  assert row.steps == (20,) and cell.value == 0.4 and cell.over == 'prompts'


def test_a_run_beyond_the_budget_at_once_has_no_cell(overfit):
  run = collect.read_run(overfit(), at=options.At('kl', 0.1))
  (row,) = cells.make_table([run]).rows
  assert row.steps == (0,) and row.cells['loss', 'after'].value is None
  assert row.cells['loss', 'before'].value == 0.69


@pytest.mark.usefixtures('no_drawing')
def test_the_command_verifies_at_its_step(overfit, tmp_path, capsys):
  for seed in range(2):
    overfit(seed)
  out = tmp_path / 'out'
  flags = [f'--out={out}', '--at=best:-loss']
  assert command.main([str(tmp_path / 'runs'), *flags]) == 0
  document = json.loads((out / 'provenance.json').read_bytes())
  assert document['options']['at'] == 'best:-loss'
  assert document['rows'][0]['steps'] == [20]
  assert command.main([f'--verify={out}']) == 0
  # No half of a report where one run has no such metric.
  flags = [f'--out={tmp_path / "other"}', '--at=best:-los']
  assert command.main([str(tmp_path / 'runs'), *flags]) == 2
  assert not (tmp_path / 'other').exists()
  assert capsys.readouterr().err.count('\n') == 2
