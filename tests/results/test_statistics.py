"""Intervals against closed forms, tables, brute force and scipy.stats."""

import math

import numpy as np
import pytest
from scipy import stats

from dpo_jax.results import statistics


def test_mean_ci_t_is_the_textbook_example():
  # mean 4, s = 2 (sum of squares 8 over 2); se = 2 / sqrt(3); t_{.975, 2} =
  # 4.302653 (any printed t table)
  got = statistics.mean_ci_t([2.0, 4.0, 6.0])
  assert got.mean == 4 and got.num == 3
  assert got.se == pytest.approx(2 / math.sqrt(3))
  assert got.high - 4 == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
  assert 4 - got.low == pytest.approx(got.high - 4)


@pytest.mark.parametrize('num', [2, 3, 5, 40])
@pytest.mark.parametrize('level', [0.9, 0.95])
def test_mean_ci_t_is_scipys(num, level):
  values = np.random.default_rng(num).normal(3, 2, num)
  got = statistics.mean_ci_t(values, level)
  want = stats.t.interval(level, num - 1, values.mean(), stats.sem(values))
  np.testing.assert_allclose((got.low, got.high), want, rtol=1e-12)


def test_mean_ci_t_of_one_seed_claims_no_interval():
  got = statistics.mean_ci_t([0.5])
  assert got.mean == 0.5 and got.num == 1
  assert all(math.isnan(end) for end in (got.se, got.low, got.high))


def test_mean_ci_t_covers_the_truth_as_often_as_it_says():
  # 4,000 draws of 4: the share has standard error sqrt(.95 * .05 / 4000) =
  # 0.0034; four of them are 0.014
  draws = np.random.default_rng(0).normal(1.0, 3.0, (4000, 4))
  intervals = [statistics.mean_ci_t(draw) for draw in draws]
  share = np.mean([each.low <= 1.0 <= each.high for each in intervals])
  assert share == pytest.approx(0.95, abs=0.014)


def test_clustered_se_with_one_value_a_cluster_is_the_usual_one():
  values = np.random.default_rng(1).normal(size=50)
  got = statistics.clustered_se(values, np.arange(50))
  assert got == pytest.approx(stats.sem(values), rel=1e-12)


def test_clustered_se_is_the_double_sum_over_pairs_of_one_cluster():
  # sum_g (sum_i e_i)^2 = sum over i, j of the same cluster of e_i e_j
  rng = np.random.default_rng(2)
  values = rng.normal(size=30)
  clusters = rng.choice(['a', 'b', 'c', 'dd'], 30)
  errors = values - values.mean()
  total = sum(
    errors[i] * errors[j]
    for i in range(30)
    for j in range(30)
    if clusters[i] == clusters[j]
  )
  want = math.sqrt(4 / 3 * total) / 30
  assert statistics.clustered_se(values, clusters) == pytest.approx(want)


def test_copies_of_a_comparison_add_no_certainty():
  values = np.random.default_rng(3).normal(size=20)
  once = statistics.clustered_mean(values, np.arange(20))
  copied = statistics.clustered_mean(
    np.repeat(values, 5), np.repeat(np.arange(20), 5)
  )
  np.testing.assert_allclose(copied, once, rtol=1e-12)
  naive = stats.sem(np.repeat(values, 5))
  assert naive < 0.5 * copied.se


def test_one_cluster_says_nothing():
  assert math.isnan(statistics.clustered_se([1.0, 2.0], ['a', 'a']))
  got = statistics.clustered_mean([1.0, 2.0], ['a', 'a'])
  assert got.mean == 1.5 and math.isnan(got.low)


@pytest.mark.parametrize('hits, num', [(0, 10), (3, 7), (434, 512), (9, 9)])
def test_wilson_is_scipys(hits, num):
  want = stats.binomtest(hits, num).proportion_ci(0.95, method='wilson')
  got = statistics.wilson(hits / num, num)
  np.testing.assert_allclose(got, want, atol=1e-12)


def test_wilson_ends_solve_the_score_equation():
  # its definition: |p - q| = z sqrt(q (1 - q) / n) at both ends q
  share, num = 0.3, 40.0
  for end in statistics.wilson(share, num):
    score = abs(share - end) / math.sqrt(end * (1 - end) / num)
    assert score == pytest.approx(stats.norm.ppf(0.975))


def test_clustered_share_of_single_comparisons_is_wilson():
  hits = np.arange(50) % 5 > 0
  got = statistics.clustered_share(hits, np.arange(50))
  assert (got.low, got.high) == statistics.wilson(0.8, 50)
  assert got.mean == 0.8 and got.num == 50


def test_clustered_share_of_copies_is_no_narrower_than_of_the_originals():
  hits = np.arange(40) % 4 > 0
  once = statistics.clustered_share(hits, np.arange(40))
  copied = statistics.clustered_share(
    np.repeat(hits, 3), np.repeat(np.arange(40), 3)
  )
  # Kish: n_eff = p (1 - p) / se^2 = G - 1 for copies (se has G / (G - 1))
  assert (copied.low, copied.high) == pytest.approx(
    statistics.wilson(0.75, 39), rel=1e-12
  )
  assert copied.num == 40
  assert copied.high - copied.low >= once.high - once.low


def test_clustered_share_of_all_hits_counts_prompts():
  got = statistics.clustered_share(np.ones(30), np.repeat(np.arange(10), 3))
  assert (got.low, got.high) == statistics.wilson(1.0, 10)


def test_paired_difference_is_the_paired_t_test():
  rng = np.random.default_rng(4)
  baseline = rng.normal(size=60)
  values = baseline + rng.normal(0.2, 0.3, 60)
  got = statistics.paired_difference(values, baseline, np.arange(60))
  want = stats.ttest_rel(values, baseline).confidence_interval(0.95)
  np.testing.assert_allclose((got.low, got.high), want, rtol=1e-10)
  apart = stats.ttest_ind(values, baseline).confidence_interval(0.95)
  assert got.high - got.low < 0.6 * (apart.high - apart.low)


def test_paired_difference_of_dependent_pairs_agrees_with_a_bootstrap():
  # whole prompts are drawn again, 4,000 times: its standard deviation is the
  # standard error, to 1 / sqrt(2 * 4000) = 1.1 % and the G / (G - 1) of 80
  rng = np.random.default_rng(5)
  prompts = np.repeat(np.arange(80), 3)
  difference = rng.normal(size=80)[prompts] + rng.normal(0, 0.5, 240)
  got = statistics.paired_difference(difference, np.zeros(240), prompts)
  means = difference.reshape(80, 3).mean(1)
  draws = means[rng.integers(0, 80, (4000, 80))].mean(1)
  assert got.se == pytest.approx(draws.std(), rel=0.05)
