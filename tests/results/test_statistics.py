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
  # sum_g (sum_i e_i)^2 = sum over i, j of the same cluster of e_i e_j; clusters
  # of one size
  rng = np.random.default_rng(2)
  values = rng.normal(size=32)
  clusters = rng.permutation(np.repeat(['a', 'b', 'c', 'dd'], 8))
  errors = values - values.mean()
  total = sum(
    errors[i] * errors[j]
    for i in range(32)
    for j in range(32)
    if clusters[i] == clusters[j]
  )
  want = math.sqrt(4 / 3 * total) / 32
  assert statistics.clustered_se(values, clusters) == pytest.approx(want)


@pytest.mark.parametrize('weighted', [False, True])
def test_clustered_se_leaves_out_each_prompt_in_turn(weighted):
  # The definition of the jackknife, by brute force; prompts of unequal size.
  rng = np.random.default_rng(2)
  values = rng.normal(size=30)
  clusters = rng.choice(['a', 'b', 'c', 'dd', 'e'], 30, p=[0.6, *[0.1] * 4])
  weights = rng.uniform(0.1, 4, 30) if weighted else np.ones(30)
  mean = np.average(values, weights=weights)
  without = [
    np.average(values[clusters != each], weights=weights[clusters != each])
    for each in 'a b c dd e'.split()
  ]
  want = math.sqrt(4 / 5 * np.sum((mean - np.array(without)) ** 2))
  got = statistics.clustered_mean(values, clusters, weights)
  assert got.mean == pytest.approx(mean) and got.num == 5
  assert got.se == pytest.approx(want, rel=1e-12)
  assert got.se == statistics.clustered_se(values, clusters, weights)
  share = np.array([weights[clusters == e].sum() for e in np.unique(clusters)])
  df = weights.sum() ** 2 / np.sum(share**2) - 1  # Kish
  assert got.high - mean == pytest.approx(want * stats.t.ppf(0.975, df))


def test_a_weight_is_a_number_of_copies_and_0_is_none():
  values = np.random.default_rng(6).normal(size=12)
  prompts = np.arange(12) // 2
  weights = np.tile([1, 2, 3, 0], 3)
  copied = np.repeat(np.arange(12), weights)
  for interval in (statistics.clustered_mean, statistics.clustered_share):
    each = values > 0 if interval is statistics.clustered_share else values
    got = interval(each, prompts, weights)
    want = interval(each[copied], prompts[copied])
    assert got[:2] == pytest.approx(want[:2]) and got.num == want.num == 6
  got = statistics.clustered_mean(values, prompts, np.arange(12) < 6)
  assert got == pytest.approx(
    statistics.clustered_mean(values[:6], prompts[:6])
  )


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
  # Kish: n_eff = p (1 - p) / se^2 = G - 1 for copies (se has G / (G - 1)); it
  # is an estimate, so t with 39 degrees of freedom is in place of z
  assert (copied.low, copied.high) == pytest.approx(
    statistics.wilson(0.75, 39, df=39), rel=1e-12
  )
  assert copied.num == 40
  assert copied.high - copied.low >= once.high - once.low


def test_wilson_with_t_solves_its_equation():
  share, num = 0.3, 40.0
  for end in statistics.wilson(share, num, df=9):
    score = abs(share - end) / math.sqrt(end * (1 - end) / num)
    assert score == pytest.approx(stats.t.ppf(0.975, 9))


def test_clustered_share_never_counts_more_than_its_comparisons():
  # One hit and one miss per prompt: the share is 1/2 whatever the prompts, but
  # no more than 40 comparisons were seen.
  hits, prompts = np.arange(40) % 2, np.arange(40) // 2
  got = statistics.clustered_share(hits, prompts)
  assert (got.low, got.high) == statistics.wilson(0.5, 40)
  # Kish's size of weights 1 and 3: 160 ** 2 / (20 * 1 + 20 * 9) / 2 = 64 / 2
  weights = np.repeat([1, 3], 20)
  got = statistics.clustered_share(hits, prompts, weights)
  assert (got.low, got.high) == statistics.wilson(0.5, 80**2 / 200)


def test_a_share_of_one_prompt_has_no_interval():
  got = statistics.clustered_share([True, False, True], ['a'] * 3)
  assert got.mean == pytest.approx(2 / 3) and math.isnan(got.low)


def test_clustered_share_of_all_hits_counts_prompts():
  got = statistics.clustered_share(np.ones(30), np.repeat(np.arange(10), 3))
  want = statistics.wilson(1.0, 10)
  assert (got.low, got.high) == pytest.approx(want, rel=1e-12)
