"""P-values against their intervals and scipy; Holm against worked examples."""

import math

import numpy as np
import pytest
from results import coverage, null
from scipy import stats

from dpo_jax.results import statistics


def test_p_of_one_mean_is_students():
  values = np.random.default_rng(0).normal(0.5, 1, 7)
  got = statistics.p_value(statistics.mean_ci_t(values))
  assert got == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-9)


@pytest.mark.parametrize('shift', [0.0, 0.1, 1.0])
def test_p_of_one_seed_is_the_paired_t_test(shift):
  rng = np.random.default_rng(1)
  baseline = rng.normal(size=60)
  values = baseline + rng.normal(shift, 0.3, 60)
  rows = [
    [statistics.leave_out(each, np.arange(60))] for each in (values, baseline)
  ]
  got = statistics.p_value(statistics.difference(*rows, paired=True))
  want = stats.ttest_rel(values, baseline).pvalue
  assert got == pytest.approx(want, rel=1e-9)


def test_p_of_seeds_alone_is_students_paired_t():
  first, second = np.array([3.0, 5.0, 10.0]), np.array([1.0, 4.0, 2.0])
  rows = [
    [statistics.leave_out(np.full(20, each), np.arange(20)) for each in side]
    for side in (first, second)
  ]
  got = statistics.p_value(statistics.difference(*rows, paired=True))
  assert got == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-9)


@pytest.mark.parametrize('level', [0.9, 0.95, 0.99])
def test_p_is_small_exactly_when_the_interval_excludes_0(level):
  # Seeds x prompts, both sides of the border; each is moved until 0 is its end.
  rng = np.random.default_rng(2)
  seen = set()
  for _ in range(200):
    rows = [
      [
        statistics.leave_out(rng.normal(seed, 1, 30), np.arange(30) // 2)
        for seed in rng.normal(mean, 0.1, 3)
      ]
      for mean in (0.4, 0)
    ]
    got = statistics.difference(*rows, paired=False, level=level)
    half = got.high - got.mean
    for mean in (got.mean, half, -half, np.nextafter(half, 9)):
      moved = got._replace(mean=mean, low=mean - half, high=mean + half)
      excluded = moved.low > 0 or moved.high < 0
      assert (statistics.p_value(moved, level) < 1 - level) == excluded
      seen.add(excluded)
  assert seen == {False, True}


def test_p_without_spread_or_ends():
  interval = statistics.Interval(0.0, 0.0, 0.0, 0.0, 3)
  assert statistics.p_value(interval) == 1
  assert statistics.p_value(interval._replace(mean=2.0, low=2.0, high=2.0)) == 0
  assert math.isnan(statistics.p_value(statistics.mean_ci_t([0.5])))


def test_holms_worked_example():
  # Wikipedia, "Holm-Bonferroni method", example: four tests at .05. H4 (.005 <=
  # .05 / 4) and H1 (.01 <= .05 / 3) are rejected, H3 (.03 > .05 / 2) is not,
  # and so H2 is not. By hand: 4 * .005, 3 * .01, 2 * .03, max(.06, .04).
  got = statistics.holm([0.01, 0.04, 0.03, 0.005])
  assert got == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert [p <= 0.05 for p in got] == [True, False, False, True]


def test_holm_rejects_as_his_procedure_does():
  # Holm (1979), section 3: in order, reject while p <= alpha / (m - j + 1).
  rng = np.random.default_rng(3)
  for _ in range(300):
    p_values = rng.beta(0.3, 3, rng.integers(1, 12))
    order = np.argsort(p_values)
    rejected = set()
    for rank, index in enumerate(order):
      if p_values[index] > 0.05 / (len(order) - rank):
        break
      rejected.add(int(index))
    got = statistics.holm(list(p_values))
    assert {i for i, p in enumerate(got) if p <= 0.05} == rejected


def test_holm_of_none_one_ties_and_tests_that_were_not_made():
  assert statistics.holm([]) == []
  assert statistics.holm([0.2]) == [0.2]
  assert statistics.holm([0.4, 0.4, 0.9]) == [1, 1, 1]
  got = statistics.holm([0.02, float('nan'), 0.04])
  assert got[0] == got[2] == 0.04 and math.isnan(got[1])


@pytest.mark.parametrize(
  'setting',
  [s for s in coverage.settings(full=False) if null.has_null(s)],
  ids=lambda setting: setting.name,
)
def test_p_values_are_uniform_where_nothing_differs(setting):
  draws = coverage.QUICK_DRAWS
  got = null.uniform(setting, draws)
  assert null.is_uniform(setting, got, draws), got
  # scipy's distance is the same number.
  p_values = [
    statistics.p_value(interval)
    for interval, _ in coverage.intervals(setting, draws)
  ]
  assert stats.kstest(p_values, 'uniform').statistic == pytest.approx(
    max(got.up, got.down)
  )


@pytest.mark.parametrize(
  'family', null.families(full=False), ids=lambda family: family.name
)
def test_holm_rejects_a_true_hypothesis_in_5_of_100_families(family):
  draws = 400
  holm, alone = null.false_rejections(family, draws)
  assert holm <= null.most_rejections(draws)
  assert alone > null.most_rejections(draws)  # what Holm is for


def test_the_simulation_sees_p_values_that_are_too_small():
  # Clusters of records where prompts repeat, as in old tables.
  setting = coverage.over_prompts(64, '8', 0.3, by_record=True)
  got = null.uniform(setting, 400)
  assert not null.is_uniform(setting, got, 400)
  assert got.below[0.05] > 0.2
