"""Series: what is read of a run, and bands over seeds."""

import numpy as np
import pytest

from dpo_jax.results import collect
from dpo_jax.results.figures import series


def _points(x, y):
  return series.Points(np.array(x, float), np.array(y, float))


def test_a_tie_at_step_0_is_no_accuracy(make_run):
  run = collect.read_run(make_run('a'))
  steps, values = series.read(run, 'eval', 'rewards/accuracies')
  assert list(steps) == [10] and list(values) == [0.8]
  lines = [{'step': 0, 'split': 'eval', 'rewards/accuracies': 0.31}]
  run = collect.read_run(make_run('b', lines=lines))
  assert list(series.read(run, 'eval', 'rewards/accuracies').y) == [0.31]


def test_training_is_averaged_in_bins_of_equal_size(make_run):
  lines = [{'step': s, 'split': 'train', 'loss': s % 2} for s in range(1, 66)]
  run = collect.read_run(make_run('a', lines=lines))
  steps, values = series.read(run, 'train', 'loss')
  # 65 entries in bins of ceil(65 / 30) = 3: 21 of three and one of two
  assert len(steps) == 22
  assert (steps[0], values[0]) == (2, pytest.approx(2 / 3))
  assert (steps[-1], values[-1]) == (64.5, 0.5)
  assert np.dot(values, [3] * 21 + [2]) == pytest.approx(33)


def test_two_seeds_are_thin_lines_at_the_steps_that_both_have():
  made = series.over_seeds(
    [_points([0, 5, 10], [1, 2, 3]), _points([0, 10, 20], [3, 5, 9])]
  )
  assert made['x'] == [0, 10] and made['y'] == [2, 4]
  # t of one degree of freedom is 12.7 standard errors: no band
  assert made['low'] == made['high'] == [None, None] and made['over'] == ''
  assert made['seeds'][1] == [[0, 10, 20], [3, 5, 9]]


def test_three_seeds_have_a_band_of_students_t():
  made = series.over_seeds([_points([4], [y]) for y in (1, 2, 6)])
  # mean 3, s = sqrt(7), t(.975, 2) = 4.302653 (any table of Student's t)
  half = 4.302653 * np.sqrt(7 / 3)
  assert made['y'] == [3] and made['num_seeds'] == 3
  assert made['low'][0] == pytest.approx(3 - half, rel=1e-6)
  assert made['high'][0] == pytest.approx(3 + half, rel=1e-6)
  assert made['over'] == 'seeds' and 'seeds' not in made


def test_seeds_that_share_no_step_give_the_longest():
  made = series.over_seeds([_points([0, 5], [1, 2]), _points([1], [7])])
  assert made['x'] == [0, 5] and made['num_seeds'] == 1


def test_a_repeated_seed_counts_once(make_run):
  for name, final in (('a', 0.2), ('b', 0.4), ('c', 0.9)):
    seed = int(name == 'c')
    make_run(name, {'seed': seed}, final=final)
  runs = [collect.read_run(make_run('a').parent / name) for name in 'abc']
  runs = [
    run._replace(records={'eval': {10: {'loss': loss}}})
    for run, loss in zip(runs, (0.2, 0.4, 0.9))
  ]
  lines = series.by_seed(
    collect.Group(tuple(runs)), lambda run: series.read(run, 'eval', 'loss')
  )
  assert [line.y.tolist() for line in lines] == [[pytest.approx(0.3)], [0.9]]


def test_a_seed_that_has_just_begun_cuts_nothing_off(make_run):
  names = [('a', 10), ('b', 9), ('c', 2)]
  runs = []
  for seed, (name, num) in enumerate(names):
    lines = [{'step': s, 'split': 'eval', 'loss': 1.0} for s in range(num)]
    runs.append(collect.read_run(make_run(name, {'seed': seed}, lines=lines)))
  lines = series.by_seed(
    collect.Group(tuple(runs)), lambda run: series.read(run, 'eval', 'loss')
  )
  assert [line.x.size for line in lines] == [10, 9]


def test_numbers_are_plain_and_finite():
  given = [1 / 3, None, np.nan, np.inf, np.float64(2)]
  assert series.numbers(given) == [0.333333333, None, None, None, 2.0]


def test_the_note_says_what_is_drawn():
  one = {'num_seeds': 2, 'over': '', 'seeds': [1]}
  two = {'num_seeds': 5, 'over': 'seeds'}
  pale = {'num_seeds': 9, 'over': 'prompts', 'context': True}
  assert series.interval_note([one, two, pale]) == (
    'Line: mean of 2–5 seeds; thin line: a seed; band: 95 % interval over '
    'seeds.'
  )
  assert series.interval_note([{'num_seeds': 1, 'over': ''}]) == ''
