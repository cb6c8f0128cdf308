"""Differences between rows: those of the cells, over seeds and prompts."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from dpo_jax.results import cells, collect, tables

NUM = 96  # comparisons
METRICS = ('accuracy', 'margin')


def _table(*paths) -> cells.Table:
  return cells.make_table(collect.collect(paths))


def _margins(num=64, mean=3.0):
  return np.random.default_rng(num).normal(mean, 4.0, num)


def _rewards(rng, name: str, beta: float, alpha: float = 0.5):
  """Rewards [2, NUM] of chosen and rejected answers, with their scores.

  Formulas of the implicit rewards, as the papers have them: beta log(pi / ref)
  (DPO, arXiv:2305.18290, and KTO), beta log pi (CPO, arXiv:2401.08417),
  beta log pi / |y| (SimPO, arXiv:2405.14734, equation 4, and ORPO), AlphaPO's
  beta (1 - p^-alpha) / alpha with p^-alpha = exp(-alpha log pi / |y|)
  (arXiv:2501.03884).
  """
  tokens = rng.integers(1, 60, (2, NUM))
  policy = -tokens * rng.uniform(0.5, 2.5, (2, NUM))
  reference = policy + rng.normal(0, 4, (2, NUM))
  mean = policy / tokens
  rewards = {
    'log_ratio': beta * (policy - reference),
    'log_prob': beta * policy,
    'mean_log_prob': beta * mean,
    'alpha_log_prob': beta * -np.expm1(-alpha * mean) / alpha,
  }
  return rewards[name], policy, reference, tokens


@pytest.fixture
def trained(make_run):
  """trained(name, loss, reward, beta=, seed=, weight=) -> a run's path."""

  def make(name, loss, reward, beta=0.1, seed=0, weight=None, key=0):
    rng = np.random.default_rng([key, seed])
    rewards, policy, reference, tokens = _rewards(rng, reward, beta)
    weight = np.ones(NUM) if weight is None else weight
    sides = dict(zip(('chosen', 'rejected'), range(2)))
    arrays = {
      'uid': np.array([f'{i:016x}' for i in range(NUM)]),
      # 64 prompts: some have several records.
      'prompt_id': np.array([f'{i % 64:032x}' for i in range(NUM)]),
      'weight': weight.astype(np.float32),
    }
    for side, i in sides.items():
      arrays[f'reward_{side}'] = rewards[i].astype(np.float32)
      arrays[f'policy_{side}'] = policy[i].astype(np.float32)
      arrays[f'reference_{side}'] = reference[i].astype(np.float32)
      arrays[f'{side}_tokens'] = tokens[i]
    end = {
      'loss': 0.4,
      'rewards/accuracies': np.average(rewards[0] > rewards[1], weights=weight),
      'rewards/margins': np.average(rewards[0] - rewards[1], weights=weight),
    }
    lines = [{'step': 0, 'split': 'eval', **dict.fromkeys(end, 0.0)}]
    lines += [{'step': 10, 'split': 'eval', **end}]
    changes = {'loss.terms': {loss: 1.0}, 'loss.beta': beta, 'seed': seed}
    return make_run(name, changes, lines=lines, arrays=arrays)

  return make


HEAVY = np.where(np.arange(NUM) < 24, 4.0, 0.25)
EVEN = np.ones(NUM)
# (loss, reward, beta, weights) of the two rows, and the number of their seeds.
PAIRS = [
  (
    ('sigmoid', 'log_ratio', 0.1, EVEN),
    ('simpo', 'mean_log_prob', 2.0, EVEN),
    1,
  ),
  (
    ('sigmoid', 'log_ratio', 0.1, EVEN),
    ('orpo', 'mean_log_prob', 1.0, EVEN),
    1,
  ),
  (
    ('ipo', 'log_ratio', 0.1, EVEN),
    ('alphapo', 'alpha_log_prob', 2.5, EVEN),
    1,
  ),
  (('sigmoid', 'log_ratio', 0.1, EVEN), ('kto', 'log_ratio', 0.2, EVEN), 1),
  (('sigmoid', 'log_ratio', 0.1, HEAVY), ('ipo', 'log_ratio', 0.1, HEAVY), 1),
  (('simpo', 'mean_log_prob', 2.0, HEAVY), ('kto', 'log_ratio', 0.1, HEAVY), 1),
  (('cpo', 'log_prob', 0.1, EVEN), ('simpo', 'mean_log_prob', 2.5, EVEN), 3),
  (
    ('sigmoid', 'log_ratio', 0.1, HEAVY),
    ('orpo', 'mean_log_prob', 1, HEAVY),
    3,
  ),
  (
    ('alphapo', 'alpha_log_prob', 2.0, EVEN),
    ('kto', 'log_ratio', 0.3, EVEN),
    4,
  ),
  # The rows weigh the comparisons differently: data.weigh_prompts in one.
  (('sigmoid', 'log_ratio', 0.1, EVEN), ('hinge', 'log_ratio', 0.5, HEAVY), 3),
]


@pytest.mark.parametrize(
  'first, second, seeds',
  PAIRS,
  ids=[f'{a[0]}-{b[0]}-{n}' for a, b, n in PAIRS],
)
def test_the_table_s_differences_are_those_of_its_cells(
  trained, tmp_path, first, second, seeds
):
  for key, (loss, reward, beta, weight) in enumerate((first, second)):
    for seed in range(seeds):
      trained(f'{key}{seed}', loss, reward, beta, seed, weight, key)
  table = _table(tmp_path)
  assert {each.metric for each in table.differences} == set(METRICS)
  text = tables.markdown(table, '/')
  grid, _, differences = text.split('\n\n')[:3]
  shown = _columns(grid)
  (line,) = differences.splitlines()[2:]
  names = [part.strip() for part in differences.splitlines()[0].split('|')]
  parts = [part.strip() for part in line.split('|')]
  assert parts[names.index('seeds')] == str(seeds)
  assert parts[names.index('prompts')] == '64'
  for each in table.differences:
    column = each.metric, 'after'
    row, baseline = (table.rows[i] for i in (each.row, each.baseline))
    want = row.cells[column].value - baseline.cells[column].value
    assert each.interval.mean == want  # to the last bit
    text = parts[names.index(each.metric)]
    assert float(text.split(' ')[0]) == float(f'{want:.{_digits(text)}f}')
    # What a reader gets who subtracts the rounded cells.
    one, two = (shown[i, each.metric] for i in (each.row, 0))
    digits = min(map(_digits, (one, two, text)))
    by_hand = float(one.split(' ')[0]) - float(two.split(' ')[0])
    assert abs(by_hand - float(text.split(' ')[0])) < 1.6 * 10**-digits
    assert each.over == ('prompts' if seeds == 1 else 'seeds and prompts')
    assert each.interval.low < want < each.interval.high


def _columns(grid: str) -> dict[tuple[int, str], str]:
  """(row, column) -> text of a Markdown table."""
  head, _, *rows = (
    [part.strip() for part in line.split('|')[1:-1]]
    for line in grid.splitlines()
  )
  return {
    (i, name): text
    for i, row in enumerate(rows)
    for name, text in zip(head, row)
  }


def _digits(text: str) -> int:
  return len(re.match(r'[-+]?\d+\.(\d+)', text)[1])


def test_values_that_are_not_the_cell_s_give_no_difference(trained, tmp_path):
  trained('a', 'sigmoid', 'log_ratio')
  path = trained('b', 'simpo', 'mean_log_prob', 2.0, key=1)
  file = path / 'per_example' / 'eval_10.npz'
  arrays = dict(np.load(file))
  # Sums of log-ratios, in place of the loss's own rewards.
  for side in ('chosen', 'rejected'):
    reward = arrays[f'policy_{side}'] - arrays[f'reference_{side}']
    arrays[f'reward_{side}'] = 0.1 * reward
  np.savez(file, **arrays)
  table = _table(tmp_path)
  assert not table.differences
  assert table.rows[1].cells['margin', 'after'].over == ''


def test_rows_are_compared_on_the_same_prompts(make_scored_run):
  gap = _margins()
  other = gap + np.random.default_rng(9).normal(0.5, 1.0, 64)
  first = make_scored_run('a', margins=gap)
  # the same comparisons in another order
  order = np.random.default_rng(1).permutation(64)
  uids = np.array([f'{i:016x}' for i in range(64)])
  second = make_scored_run(
    'b', {'optim.name': 'lion'}, margins=other[order], uids=uids[order]
  )
  foreign = make_scored_run(
    'c', {'optim.name': 'sgd'}, margins=gap, uids=[f'x{i}' for i in range(64)]
  )
  table = _table(first, second, foreign)
  differences = {(each.row, each.metric): each for each in table.differences}
  assert set(differences) == {(1, 'accuracy'), (1, 'margin')}
  want = stats.ttest_rel(0.1 * other, 0.1 * gap).confidence_interval(0.95)
  got = differences[1, 'margin'].interval
  np.testing.assert_allclose((got.low, got.high), want)
  text = tables.markdown(table, '/')
  assert 'comparisons, minus name=adamw:' in text and ' +0.0' in text
  assert 'it does not cover the seed' in text


def test_differences_cluster_by_prompt(make_scored_run):
  # 60 records of 20 prompts that all gain the same within a prompt.
  gap = _margins(60)
  gain = np.random.default_rng(2).normal(1, 1, 20)
  prompts = np.repeat([f'{i:032x}' for i in range(20)], 3)
  first = make_scored_run('a', margins=gap, prompts=prompts)
  changes = {'optim.name': 'lion'}
  more = gap + np.repeat(gain, 3)
  second = make_scored_run('b', changes, margins=more, prompts=prompts)
  table = _table(first, second)
  (margin,) = [d for d in table.differences if d.metric == 'margin']
  want = stats.ttest_1samp(0.1 * gain, 0).confidence_interval(0.95)
  got = margin.interval
  np.testing.assert_allclose((got.low, got.high), want)
  assert got.num == 20
  assert re.search(r'\| +1 \| +20 \|', tables.markdown(table, '/'))


def test_seeds_are_averaged_before_rows_are_compared(make_scored_run):
  gap = _margins()
  base = make_scored_run('a', margins=gap)
  changes = {'optim.name': 'lion'}
  paths = [
    make_scored_run(f'b{i}', {**changes, 'seed': i}, margins=gap + shift)
    for i, shift in enumerate((1.0, 3.0))
  ]
  table = _table(base, *paths)
  (margin,) = [d for d in table.differences if d.metric == 'margin']
  assert margin.interval.mean == pytest.approx(0.1 * 2)
  assert margin.num_seeds == (2, 1) and margin.over == 'prompts'
  assert re.search(r'\| +2, 1 \| +64 \|', tables.markdown(table, '/'))


def _rows(make_scored_run, shifts, **more):
  """Rows of runs whose margins are `shifts` apart, by seed."""
  gap = _margins()
  for name, row in shifts.items():
    for seed, shift in row.items():
      changes = {'optim.name': name, 'seed': seed}
      margins = gap + shift
      make_scored_run(f'{name}{seed}', changes, margins=margins, **more)


def test_seeds_that_differ_more_than_prompts_make_the_interval(
  make_scored_run, tmp_path
):
  # The gains are equal on every prompt: only the seeds vary.
  first, second = [0.0, 20, -20], [5.0, -15, 10]
  shifts = {'adamw': dict(enumerate(first)), 'lion': dict(enumerate(second))}
  _rows(make_scored_run, shifts)
  table = _table(tmp_path)
  (margin,) = [d for d in table.differences if d.metric == 'margin']
  paired = 0.1 * np.subtract(second, first)
  want = stats.ttest_1samp(paired, 0).confidence_interval(0.95)
  got = margin.interval
  np.testing.assert_allclose((got.low, got.high), want)
  assert margin.over == 'seeds and prompts' and margin.num_seeds == (3, 3)
  text = tables.markdown(table, '/')
  assert 'over seeds and evaluation prompts (two-way)' in text
  assert 'does not cover the seed' not in text


def test_other_seeds_are_not_paired(make_scored_run, tmp_path):
  first, second = [0.0, 20, -20], [5.0, -15, 10]
  shifts = {
    'adamw': dict(zip((0, 1, 2), first)),
    'lion': dict(zip((1, 2, 3), second)),
  }
  _rows(make_scored_run, shifts)
  table = _table(tmp_path)
  (margin,) = [d for d in table.differences if d.metric == 'margin']
  want = stats.ttest_ind(
    0.1 * np.array(second), 0.1 * np.array(first), equal_var=False
  ).confidence_interval(0.95)
  got = margin.interval
  np.testing.assert_allclose((got.low, got.high), want)


def test_a_seed_without_an_evaluation_counts_in_neither(
  make_scored_run, make_run, tmp_path
):
  _rows(make_scored_run, {'adamw': {0: 0.0, 1: 1.0}, 'lion': {0: 2.0, 1: 4.0}})
  make_run('lion2', {'optim.name': 'lion', 'seed': 2}, lines=[], done=False)
  table = _table(tmp_path)
  (margin,) = [d for d in table.differences if d.metric == 'margin']
  column = 'margin', 'after'
  values = [row.cells[column].value for row in table.rows]
  assert margin.interval.mean == values[1] - values[0]
  assert margin.num_seeds == (2, 2)


def test_a_repeated_seed_counts_once(make_scored_run, tmp_path):
  _rows(make_scored_run, {'adamw': {0: 0.0, 1: 1.0}, 'lion': {0: 2.0, 1: 4.0}})
  make_scored_run(
    'again', {'optim.name': 'lion', 'seed': 1}, margins=_margins() + 8
  )
  table = _table(tmp_path)
  (margin,) = [d for d in table.differences if d.metric == 'margin']
  # Seed 1 gained 4 and 8: 6.
  assert margin.interval.mean == pytest.approx(0.1 * ((2 + 6) / 2 - 0.5))
  assert margin.num_seeds == (2, 2)


def test_runs_of_an_older_version_are_said_to_have_no_prompts(
  make_scored_run, tmp_path
):
  make_scored_run('a', margins=_margins(), without=['prompt_id'])
  table = _table(tmp_path)
  assert 'saved no prompts' in tables.markdown(table, '/')
  assert table.rows[0].cells['margin', 'after'].num == 64


def test_provenance_says_what_varies(paper):
  document = json.loads((paper / 'provenance.json').read_bytes())
  for each in document['differences']:
    assert each['seeds'] == [2, 2] and each['over'] == 'seeds and prompts'
