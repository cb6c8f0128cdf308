"""Differences of rows over seeds and prompts, and measured coverage."""

import math

import numpy as np
import pytest
from results import coverage
from scipy import stats

from dpo_jax.results import statistics


def _row(values, prompts):
  """One Jackknife per seed of values [S, N]."""
  return [statistics.leave_out(each, prompts) for each in np.atleast_2d(values)]


def _difference(first, second, prompts, paired=True):
  rows = _row(first, prompts), _row(second, prompts)
  return statistics.difference(*rows, paired=paired)


def test_one_seed_is_the_paired_t_test():
  rng = np.random.default_rng(4)
  baseline = rng.normal(size=60)
  values = baseline + rng.normal(0.2, 0.3, 60)
  got = _difference(values, baseline, np.arange(60))
  want = stats.ttest_rel(values, baseline).confidence_interval(0.95)
  np.testing.assert_allclose((got.low, got.high), want, rtol=1e-10)
  apart = stats.ttest_ind(values, baseline).confidence_interval(0.95)
  assert got.high - got.low < 0.6 * (apart.high - apart.low)


def test_dependent_pairs_agree_with_a_bootstrap():
  # whole prompts are drawn again, 4,000 times: its standard deviation is the
  # standard error, to 1 / sqrt(2 * 4000) = 1.1 % and the G / (G - 1) of 80
  rng = np.random.default_rng(5)
  prompts = np.repeat(np.arange(80), 3)
  values = rng.normal(size=80)[prompts] + rng.normal(0, 0.5, 240)
  got = _difference(values, np.zeros(240), prompts)
  means = values.reshape(80, 3).mean(1)
  draws = means[rng.integers(0, 80, (4000, 80))].mean(1)
  assert got.se == pytest.approx(draws.std(), rel=0.05)


@pytest.mark.parametrize('paired', [True, False])
def test_two_ways_are_the_mean_squares_of_the_analysis_of_variance(paired):
  # Balanced: Var = (MS_seeds + MS_prompts - MS_rest) / (S G), by hand from the
  # table of means; not paired, once per row and with the prompts' part of the
  # difference.
  rng = np.random.default_rng(7)
  num_seeds, num = 4, 25
  first = rng.normal(size=(num_seeds, 1)) + rng.normal(0, 3, (num_seeds, num))
  second = rng.normal(size=(num_seeds, 1)) + rng.normal(0, 1, (num_seeds, num))
  first += 9 * rng.normal(size=num)
  got = _difference(first, second, np.arange(num), paired)
  sides = [first - second] if paired else [first, second]
  seeds = sum(side.mean(1).var(ddof=1) / num_seeds for side in sides)
  prompts = (first - second).mean(0).var(ddof=1) / num
  rest = sum(
    np.sum(
      (side - side.mean(0) - side.mean(1, keepdims=True) + side.mean()) ** 2
    )
    / ((num_seeds - 1) * (num - 1) * num_seeds * num)
    for side in sides
  )
  assert got.mean == pytest.approx(first.mean() - second.mean())
  assert got.se == pytest.approx(math.sqrt(seeds + prompts - rest), rel=1e-9)
  df = num_seeds - 1
  if not paired:
    df = stats.ttest_ind(
      first.mean(1), second.mean(1), equal_var=False
    ).df  # Welch
  part = seeds / (seeds + prompts - rest)
  quantile = part * stats.t.ppf(0.975, df)
  quantile += (1 - part) * stats.t.ppf(0.975, num - 1)
  assert got.high - got.mean == pytest.approx(quantile * got.se, rel=1e-9)


def test_seeds_alone_are_students_paired_t():
  # No comparison differs from another: the prompts tell nothing.
  first, second = np.array([[3.0], [5.0], [10.0]]), np.array([[1.0], [4], [2]])
  got = _difference(first + np.zeros(20), second + np.zeros(20), np.arange(20))
  want = stats.ttest_rel(first[:, 0], second[:, 0]).confidence_interval(0.95)
  np.testing.assert_allclose((got.low, got.high), want, rtol=1e-12)


def test_equal_seeds_are_the_interval_over_prompts():
  # Every seed gave the same: nothing but the prompts varies.
  values = np.random.default_rng(8).normal(size=30)
  values -= values.mean()
  got = _difference(np.tile(values, (3, 1)), np.zeros((3, 30)), np.arange(30))
  want = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  np.testing.assert_allclose((got.low, got.high), want, rtol=1e-9, atol=1e-12)


def test_rows_that_are_equal_have_no_spread():
  values = np.ones((3, 12))
  got = _difference(values, values, np.arange(12))
  assert got[:4] == (0, 0, 0, 0)


def test_a_seed_that_diverged_leaves_no_number():
  values = np.random.default_rng(9).normal(size=(3, 12))
  spoilt = values.copy()
  spoilt[1, 4] = np.nan
  got = _difference(spoilt, values, np.arange(12))
  assert math.isnan(got.mean) and math.isnan(got.low)


def test_the_reported_mean_is_the_middle():
  prompts = np.arange(9)
  first = _row(np.arange(9.0), prompts)[0]._replace(mean=4.25)
  second = _row(np.ones(9), prompts)[0]
  got = statistics.difference([first], [second], paired=True)
  assert got.mean == 3.25 and (got.low + got.high) / 2 == pytest.approx(3.25)


@pytest.mark.parametrize(
  'setting', coverage.settings(full=False), ids=lambda setting: setting.name
)
def test_intervals_hold_the_truth_as_often_as_they_say(setting):
  share = coverage.coverage(setting, coverage.QUICK_DRAWS)
  low, high = setting.bounds
  slack = coverage.QUICK_SLACK
  assert low - slack <= share <= high + slack


def test_the_simulation_sees_an_interval_that_is_too_narrow():
  # Clusters of records where prompts repeat: .735 at correlation .3.
  setting = coverage.over_prompts(64, '8', 0.3, by_record=True)
  assert coverage.coverage(setting, 400) < 0.8
