"""Cells: which numbers, which intervals, which differences."""

import json

import numpy as np
import pytest
from scipy import stats

from dpo_jax.results import cells, collect, options, statistics, tables

AFTER = [(metric, 'after') for metric in ('loss', 'accuracy', 'margin', 'KL')]


def _table(*paths) -> cells.Table:
  return cells.make_table(collect.collect(paths))


def _rewrite(path, **metrics):
  """Changes the last evaluation of a run."""
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  last = {**json.loads(lines[-1]), **metrics}
  text = '\n'.join([*lines[:-1], json.dumps(last)]) + '\n'
  (path / 'metrics.jsonl').write_text(text)


def _save(path, **arrays):
  """Sets arrays of a run's per-example file."""
  file = path / 'per_example' / 'eval_10.npz'
  np.savez(file, **(dict(np.load(file)) | arrays))


def _margins(num=64, mean=3.0):
  return np.random.default_rng(num).normal(mean, 4.0, num)


def test_before_is_step_0_and_after_the_last_evaluation(make_run):
  (row,) = _table(make_run('a', final=0.37)).rows
  assert row.cells['loss', 'before'].value == 0.6931
  assert row.cells['loss', 'after'].value == 0.37
  assert row.cells['accuracy', 'after'].value == 0.8
  assert row.cells['margin', 'after'].value == 1.5
  assert row.cells['KL', 'after'].value == 2.0
  assert row.steps == (10,)


def test_seeds_are_averaged_with_students_t(make_run, tmp_path):
  finals = [0.40, 0.44, 0.36, 0.41]
  for seed, final in enumerate(finals):
    make_run(f'{seed}', {'seed': seed}, final=final)
  (row,) = _table(tmp_path).rows
  cell = row.cells['loss', 'after']
  want = stats.t.interval(0.95, 3, np.mean(finals), stats.sem(finals))
  np.testing.assert_allclose((cell.low, cell.high), want)
  assert (cell.num, cell.over, cell.num_seeds) == (4, 'seeds', 4)


def test_one_seed_has_the_interval_of_its_prompts(make_scored_run):
  gap = _margins()
  (row,) = _table(make_scored_run('a', margins=gap)).rows
  loss, accuracy, margin, kl = (row.cells[column] for column in AFTER)
  # the fixture: chosen log-ratio 3/4 gap, rejected -1/4 gap, beta 0.1
  assert loss.se == pytest.approx(stats.sem(np.logaddexp(0, -0.1 * gap)))
  assert margin.se == pytest.approx(stats.sem(0.1 * gap))
  assert kl.se == pytest.approx(stats.sem(-0.25 * gap))
  want = statistics.wilson(float(np.mean(gap > 0)), 64)
  assert (accuracy.low, accuracy.high) == want
  assert {cell.over for cell in (loss, accuracy, margin, kl)} == {'prompts'}


def test_comparisons_of_one_prompt_are_clustered(make_scored_run):
  gap = np.repeat(_margins(20), 3)
  # Each comparison is a record of its own: 60 records of 20 prompts.
  prompts = np.repeat([f'{i:032x}' for i in range(20)], 3)
  (row,) = _table(make_scored_run('a', margins=gap, prompts=prompts)).rows
  cell = row.cells['margin', 'after']
  assert cell.num == 20
  assert cell.se == pytest.approx(stats.sem(0.1 * gap[::3]))


def test_label_smoothing_and_a_default_beta(make_scored_run):
  # The config says neither the reward nor the loss: the saved values do.
  gap = _margins()
  changes = {'loss.beta': None, 'loss.label_smoothing': 0.2}
  path = make_scored_run('a', changes, margins=gap, beta=0.3)
  loss = 0.8 * np.log1p(np.exp(-0.3 * gap)) + 0.2 * np.log1p(np.exp(0.3 * gap))
  _save(path, loss=loss)
  _rewrite(path, loss=float(loss.mean()))
  (row,) = _table(path).rows
  assert row.cells['loss', 'after'].se == pytest.approx(stats.sem(loss))
  assert row.cells['margin', 'after'].se == pytest.approx(stats.sem(0.3 * gap))


def test_saved_losses_serve_any_loss(make_scored_run):
  path = make_scored_run('a', {'loss.terms': {'ipo': 1}}, margins=_margins())
  losses = np.square(_margins() - 5)
  _save(path, loss=losses)
  _rewrite(path, loss=float(losses.mean()))
  (row,) = _table(path).rows
  assert row.cells['loss', 'after'].se == pytest.approx(stats.sem(losses))


def test_rewards_are_read_and_never_made_of_log_ratios(make_scored_run):
  # A reward without a reference, as SimPO's: no beta gives it.
  path = make_scored_run('a', margins=_margins())
  rewards = np.random.default_rng(3).normal(0, 1, (2, 64))
  _save(path, reward_chosen=rewards[0], reward_rejected=rewards[1])
  hits, margins = rewards[0] > rewards[1], rewards[0] - rewards[1]
  values = {'accuracies': hits.mean(), 'margins': margins.mean()}
  _rewrite(path, **{f'rewards/{k}': float(v) for k, v in values.items()})
  (row,) = _table(path).rows
  assert row.cells['margin', 'after'].se == pytest.approx(stats.sem(margins))
  cell = row.cells['accuracy', 'after']
  assert (cell.low, cell.high) == statistics.wilson(float(hits.mean()), 64)


@pytest.mark.parametrize(
  'without, labels',
  [
    (['reward_chosen', 'reward_rejected', 'loss'], {'KL'}),
    (['reward_rejected'], {'loss', 'KL'}),
    (['loss'], {'accuracy', 'margin', 'KL'}),
    (['reference_chosen'], {'loss', 'accuracy', 'margin'}),
  ],
)
def test_a_field_that_an_older_run_lacks_is_no_interval(
  make_scored_run, without, labels
):
  gap = _margins()
  first = make_scored_run('a', margins=gap, without=without)
  changes = {'optim.name': 'lion'}
  second = make_scored_run('b', changes, margins=gap + 1, without=without)
  table = _table(first, second)
  for column in AFTER:
    cell = table.rows[0].cells[column]
    assert cell.value is not None
    assert (cell.over == 'prompts') == (column[0] in labels), column
  compared = {each.metric for each in table.differences}
  assert compared == labels & {'accuracy', 'margin'}


def test_weights_are_used_in_values_and_intervals(make_scored_run):
  gap, weight = _margins(), np.linspace(0.5, 1.5, 64)
  path = make_scored_run('a', margins=gap, weight=weight)
  (row,) = _table(path).rows
  loss, accuracy, margin, _ = (row.cells[column] for column in AFTER)
  for cell, each in (
    (loss, np.logaddexp(0, -0.1 * gap)),
    (margin, 0.1 * gap),
  ):
    # The weighted least-squares fit of a constant, by hand.
    mean = np.average(each, weights=weight)
    pulls = weight * (each - mean) / (weight.sum() - weight)
    assert cell.value == pytest.approx(mean)
    assert cell.se == pytest.approx(np.sqrt(63 / 64 * np.sum(pulls**2)))
    assert cell.num == 64 and cell.over == 'prompts'
  want = statistics.clustered_share(gap > 0, np.arange(64), weight)
  assert (accuracy.low, accuracy.high) == (want.low, want.high)
  _save(path, weight=np.full(64, 0.5))  # all alike: another mean
  (row,) = _table(path).rows
  assert row.cells['margin', 'after'].over == ''
  _save(path, weight=np.zeros(64))
  (row,) = _table(path).rows
  assert row.cells['margin', 'after'].over == ''


def test_a_mean_over_nothing_is_absent(make_run):
  # Labelled data of one label: no undesirable answer, no pair to put in order.
  end = {'loss': 0.4, 'rewards/chosen': 1.5, 'kl': 0.25}
  lines = [{'step': step, 'split': 'eval', **end} for step in (0, 10)]
  arrays = {
    'uid': np.arange(8).astype('S16'),
    'prompt_id': np.arange(8).astype('S32'),
    'weight': np.ones(8),
    'loss': np.full(8, 0.4),
    'desirable': np.ones(8, bool),
  }
  path = make_run('a', lines=lines, arrays=arrays)
  runs = collect.collect([path])
  names = ['loss', 'rewards/accuracies', 'rewards/rejected', 'kl']
  table = cells.make_table(runs, options.Options(metrics=tuple(names)))
  for label in ('accuracy', 'rewards/rejected'):
    assert table.rows[0].cells[label, 'after'] == cells.Cell(None)
  line = tables.markdown(table, '/').splitlines()[2]
  assert [part.strip() for part in line.split('|')[4:-1]] == [
    *['0.400'] * 2,
    *['-'] * 4,
    *['0.250'] * 2,
  ]
  by_default = cells.make_table(runs)
  assert {name for name, _ in by_default.columns} == {'loss', 'KL'}


def test_scores_that_do_not_give_the_value_give_no_interval(make_scored_run):
  path = make_scored_run('a', {'loss.terms': {'ipo': 1}}, margins=_margins())
  _rewrite(
    path, **{'rewards/accuracies': 0.5, 'rewards/margins': 9.0, 'loss': 1.0}
  )
  (row,) = _table(path).rows
  for metric in ('loss', 'accuracy', 'margin'):
    cell = row.cells[metric, 'after']
    assert cell.value is not None and cell.se is None and cell.over == ''


@pytest.mark.filterwarnings('error')
def test_a_seed_that_diverged_is_not_hidden(make_run, tmp_path):
  make_run('0', {'seed': 0})
  path = make_run('1', {'seed': 1}, done=False)
  _rewrite(path, loss=None, kl=None, nonfinite='loss=nan, kl=inf')
  text = tables.markdown(_table(tmp_path), '/')
  (row,) = [line for line in text.splitlines() if line.startswith('| 0')]
  cut = [part.strip() for part in row.split('|')]
  assert cut[5] == 'nan' and cut[11] == 'inf'
