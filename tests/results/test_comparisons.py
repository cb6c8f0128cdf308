"""Bold: the rows that no other one beats, by Holm over all pairs."""

import itertools

import numpy as np
import pytest

from dpo_jax.results import cells, collect, comparisons, statistics


@pytest.fixture
def rows(make_scored_run, tmp_path):
  """rows(shifts, ...) -> the table of rows whose margins are so far apart."""

  def make(shifts, seeds=2, **more):
    for index, shift in enumerate(shifts):
      for seed in range(seeds):
        gap = np.random.default_rng(seed).normal(0, 4, 256)
        changes = {'optim.weight_decay': index / 10, 'seed': seed}
        make_scored_run(
          f'a/{index}{seed}', changes, margins=gap + shift, **more
        )
    return cells.make_table(collect.collect([tmp_path / 'a']))

  return make


def test_the_best_rows_are_those_that_none_beats(rows):
  table = rows([0, 3, 3.01])
  column = 'accuracy', 'after'
  assert table.unbeaten[column] == {1, 2} and table.num_tests[column] == 3
  # The loss compares here, and low is good.
  assert table.unbeaten['loss', 'after'] >= {2}
  assert 0 not in table.unbeaten['loss', 'after']
  # Neither a margin nor KL is better by being higher.
  assert set(table.unbeaten) == {column, ('loss', 'after')}


def test_nothing_is_bold_where_nothing_differs(rows):
  table = rows([0, 0.01])
  assert table.unbeaten['accuracy', 'after'] == frozenset()
  assert table.num_tests['accuracy', 'after'] == 1


def test_nothing_is_bold_where_a_row_cannot_be_compared(rows, make_run):
  rows([0, 3])
  make_run('a/x', {'optim.weight_decay': 0.7})  # saved no values
  table = rows([0, 3])
  assert 'accuracy' in {metric for metric, _ in table.shown}
  assert ('accuracy', 'after') not in table.unbeaten


def test_holm_decides_over_all_pairs(monkeypatch):
  # p of pair (i, j), made up: 2 beats 0 clearly and 1 barely, not after Holm.
  tests = {(0, 1): 0.9, (0, 2): 0.001, (1, 2): 0.04}
  scored = [comparisons.Scored(np.array([i]), None, {}) for i in range(3)]

  def difference(first, second):
    i, j = int(first.uid[0]), int(second.uid[0])
    return statistics.Interval(float(i - j), 1.0, tests[i, j], 0.0, 9)

  monkeypatch.setattr(comparisons, 'difference', difference)
  monkeypatch.setattr(statistics, 'p_value', lambda interval: interval.low)
  assert comparisons.unbeaten(scored, 'higher') == ({1, 2}, 3)
  assert comparisons.unbeaten(scored, 'lower') == ({0, 1}, 3)
  assert comparisons.unbeaten(scored, '') == (frozenset(), 0)


def test_p_of_the_differences_are_adjusted_per_metric(rows):
  table = rows([0, 0.4, 0.8])
  for metric in ('accuracy', 'margin'):
    family = [each for each in table.differences if each.metric == metric]
    assert len(family) == 2
    for each in family:
      assert each.p == statistics.p_value(each.interval)
    want = statistics.holm([each.p for each in family])
    assert [each.p_holm for each in family] == want


def test_sixty_rows_are_compared_in_a_second(rows):
  table = rows(np.linspace(0, 3, 60), seeds=1)
  assert table.num_tests['accuracy', 'after'] == len(
    list(itertools.combinations(range(60), 2))
  )
  best = table.unbeaten['accuracy', 'after']
  assert 59 in best and 0 not in best
