"""Metrics of labelled completions against brute force over their pairs."""

import numpy as np
import pytest

from dpo_jax.results import cells, collect, labelled, statistics, tables

NUM, PROMPTS = 30, 12
NAMES = [
  'rewards/accuracies',
  'rewards/margins',
  'rewards/chosen',
  'rewards/rejected',
  'logps/chosen',
  'logps/rejected',
  'lengths/chosen',
  'lengths/rejected',
  'kl',
  'displacement',
]


def _arrays(seed=0, gain=1.0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  # Ties of the rewards, weights of 0, several completions of a prompt.
  desirable = np.random.default_rng(9).random(NUM) < 0.5
  return {
    'desirable': desirable,
    'reward': np.round(rng.normal(gain * desirable, 1), 1),
    'weight': np.random.default_rng(8).choice([0.0, 0.5, 1.0, 2.5], NUM),
    'policy': rng.normal(-20, 4, NUM),
    'reference': rng.normal(-20, 4, NUM),
    'num_tokens': rng.integers(1, 40, NUM),
  }


def _prompts():
  return np.random.default_rng(7).permutation(np.arange(NUM) % PROMPTS)


def _brute(name: str, arrays) -> float:
  """The metric, by loops over completions and pairs."""
  weight, label = arrays['weight'], arrays['desirable']
  sides = {'chosen': weight * label, 'rejected': weight * ~label}
  reward = arrays['reward']
  if name == 'rewards/accuracies':
    good, bad = sides.values()
    pairs = [(i, j) for i in range(len(reward)) for j in range(len(reward))]
    won = sum(good[i] * bad[j] for i, j in pairs if reward[i] > reward[j])
    return won / (good.sum() * bad.sum())
  if name == 'rewards/margins':
    good, bad = (np.average(reward, weights=each) for each in sides.values())
    return good - bad
  ratio = arrays['policy'] - arrays['reference']
  if name == 'kl':
    return -np.average(ratio, weights=weight)
  if name == 'displacement':
    return np.average(ratio < 0, weights=sides['chosen'])
  metric, side = name.split('/')
  values = {
    'rewards': reward,
    'logps': arrays['policy'],
    'lengths': arrays['num_tokens'],
  }
  return np.average(values[metric], weights=sides[side])


@pytest.mark.parametrize('name', NAMES)
def test_a_metric_and_what_is_left_without_each_prompt(name):
  arrays, prompts = _arrays(), _prompts()
  got = labelled.jackknife(name, arrays, prompts)
  whole = _brute(name, arrays)
  assert got.mean == pytest.approx(whole)
  for prompt in range(PROMPTS):
    kept = prompts != prompt
    without = _brute(name, {k: v[kept] for k, v in arrays.items()})
    assert got.moves[prompt] == pytest.approx(whole - without, abs=1e-12)
  assert got.shares.sum() == pytest.approx(1)


@pytest.mark.parametrize('name', NAMES)
def test_a_mean_over_nothing_is_absent(name):
  arrays = _arrays()
  for label in (True, False):
    arrays['desirable'] = np.full(NUM, label)
    got = labelled.jackknife(name, arrays, _prompts())
    absent = 'rejected' if label else 'chosen'
    both = ('rewards/accuracies', 'rewards/margins')
    gone = absent in name or name in both
    gone = gone or (name == 'displacement' and not label)
    assert (got is None) == gone
  arrays['weight'] = np.zeros(NUM)
  assert labelled.jackknife(name, arrays, _prompts()) is None


def test_what_is_no_metric_of_labels_is_absent():
  arrays = _arrays()
  assert labelled.jackknife('grad_norm', arrays, _prompts()) is None
  del arrays['reward']
  assert labelled.jackknife('rewards/margins', arrays, _prompts()) is None


@pytest.fixture
def labelled_run(make_run):
  def make(name, changes=(), seed=0, gain=1.0):
    arrays = _arrays(seed, gain)
    end = {each: float(_brute(each, arrays)) for each in NAMES} | {'loss': 0.5}
    lines = [{'step': step, 'split': 'eval', **end} for step in (0, 10)]
    ids = {
      'uid': np.array([f'{i:016x}' for i in range(NUM)]),
      'prompt_id': np.array([f'{i:032x}' for i in _prompts()]),
    }
    return make_run(name, changes, lines=lines, arrays=ids | arrays)

  return make


def test_labelled_data_have_intervals_and_differences(labelled_run):
  first = labelled_run('a')
  second = labelled_run('b', {'loss.beta': 0.3}, seed=1, gain=2.0)
  table = cells.make_table(collect.collect([first, second]))
  arrays, prompts = _arrays(), _prompts()
  jack = labelled.jackknife('rewards/margins', arrays, prompts)
  cell = table.rows[0].cells['margin', 'after']
  want = statistics.interval(jack)
  assert cell[:5] == pytest.approx(
    (_brute('rewards/margins', arrays), *want[1:])
  )
  cell = table.rows[0].cells['accuracy', 'after']
  jack = labelled.jackknife('rewards/accuracies', arrays, prompts)
  assert (cell.low, cell.high) == statistics.share_interval(jack)[2:4]
  assert 0 <= cell.low < cell.value < cell.high <= 1
  # The loss was not saved per completion.
  assert table.rows[0].cells['loss', 'after'].over == ''
  for each in table.differences:
    one, two = (row.cells[each.metric, 'after'].value for row in table.rows)
    assert each.interval.mean == two - one
    assert each.interval.low < two - one < each.interval.high
  assert {each.metric for each in table.differences} == {'accuracy', 'margin'}
  assert 'minus' in tables.markdown(table, '/')
