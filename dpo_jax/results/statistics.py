"""Numbers -> intervals: means and how well they are known.

Comes in: numpy arrays of one number per seed, or one number per comparison with
the prompt that it belongs to. Goes out: `Interval`s. Reads no files and knows
no metric names.
"""

from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95


class Interval(NamedTuple):
  """A mean and how well it is known; NaN if that cannot be told."""

  mean: float
  se: float  # standard error of the mean, in the mean's unit
  low: float  # lower end of the confidence interval
  high: float  # upper end
  num: int  # independent units behind it: seeds, or prompts


def mean_ci_t(values, level: float = LEVEL) -> Interval:
  """Mean of independent values (seeds) with Student's t interval.

  se = s / sqrt(n), interval = mean -+ t_{(1 + level) / 2, n - 1} se,
  with s the standard deviation of n - 1 degrees of freedom.

  Args:
    values: [n], one number per seed, n >= 1.
    level: confidence level, between 0 and 1.

  Returns:
    Interval with num = n; se and ends are NaN for n = 1.

  Source: Student, "The probable error of a mean", Biometrika 6 (1908).
  """
  values = np.asarray(values, np.float64)
  num = len(values)
  if num == 1:
    return Interval(float(values[0]), np.nan, np.nan, np.nan, 1)
  # A seed that ended in infinity makes the spread NaN, with a warning.
  with np.errstate(invalid='ignore'):
    se = values.std(ddof=1) / np.sqrt(num)
    return _around(values.mean(), se, num, level)


def clustered_se(values, clusters) -> float:
  """Standard error of a mean whose terms are dependent within a cluster.

  se^2 = G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / N^2,
  with N values in G clusters. With one value per cluster it is s / sqrt(N).

  Args:
    values: [N], one number per comparison.
    clusters: [N], the prompt of each (any type that sorts).

  Returns:
    The standard error in the values' unit; NaN if G = 1.

  Source: Liang and Zeger, Biometrika 73 (1986); for language model
  evaluations Miller, "Adding Error Bars to Evals", arXiv:2411.00640, on
  clustered standard errors. G / (G - 1) is the small-sample factor.
  """
  values = np.asarray(values, np.float64)
  _, index = np.unique(np.asarray(clusters), return_inverse=True)
  sums = np.bincount(index, values - values.mean())
  num = len(sums)
  if num == 1:
    return float('nan')
  return float(np.sqrt(num / (num - 1) * np.sum(sums**2)) / len(values))


def clustered_mean(values, clusters, level: float = LEVEL) -> Interval:
  """Mean over comparisons, interval from `clustered_se`, t with G - 1.

  Args and source: as `clustered_se`. Returns: Interval with num = G.
  """
  num = len(np.unique(np.asarray(clusters)))
  se = clustered_se(values, clusters)
  return _around(np.mean(np.asarray(values, np.float64)), se, num, level)


def wilson(share: float, num: float, level: float = LEVEL) -> tuple:
  """Wilson's score interval of a share of `num` independent trials.

  (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

  Args:
    share: p, successes / trials, in [0, 1].
    num: n > 0; may be fractional, as an effective size is.
    level: confidence level.

  Returns:
    (low, high), within [0, 1].

  Source: Wilson, J. American Statistical Association 22 (1927), p. 209.
  """
  z = special.ndtri((1 + level) / 2)
  centre = share + z**2 / (2 * num)
  half = z * np.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
  scale = 1 + z**2 / num
  low, high = (centre - half) / scale, (centre + half) / scale
  return float(max(low, 0.0)), float(min(high, 1.0))


def clustered_share(hits, clusters, level: float = LEVEL) -> Interval:
  """Share of hits with Wilson's interval at the effective sample size.

  With one comparison per prompt, n is their number. With several, n is cut to
  p (1 - p) / se_clustered^2 if that is smaller.

  Args:
    hits: [N] bool, one per comparison.
    clusters: [N], the prompt of each.
    level: confidence level.

  Returns:
    Interval with num = number of prompts; se is the clustered one.

  Source: Kish, "Survey Sampling" (1965), design effect, for the effective
  size; Dean and Pagano, J. Survey Statistics and Methodology 3 (2015), for
  its use in Wilson's interval.
  """
  hits = np.asarray(hits, np.float64)
  share, se = float(hits.mean()), clustered_se(hits, clusters)
  num = len(np.unique(np.asarray(clusters)))
  size = float(len(hits))
  if num < len(hits) and np.isfinite(se):
    # A share of 0 or 1 has se 0 and tells nothing of the dependence: count the
    # prompts, not their comparisons.
    size = min(size, share * (1 - share) / se**2 if se > 0 else float(num))
  return Interval(share, se, *wilson(share, size, level), num)


def paired_difference(
  values, baseline, clusters, level: float = LEVEL
) -> Interval:
  """Mean of values - baseline over the same comparisons.

  The difference is taken per comparison, so that hard and easy prompts, which
  both policies share, cancel. Then `clustered_mean` of the differences.

  Args:
    values: [N], one number per comparison under one policy.
    baseline: [N], the same comparisons, in the same order, under another.
    clusters: [N], the prompt of each.
    level: confidence level.

  Returns:
    Interval of the mean difference, num = number of prompts.

  Source: Miller, arXiv:2411.00640, on paired differences.
  """
  values = np.asarray(values, np.float64)
  return clustered_mean(values - np.asarray(baseline), clusters, level)


def _around(mean, se, num: int, level: float) -> Interval:
  """The symmetric t interval with num - 1 degrees of freedom."""
  half = se * special.stdtrit(num - 1, (1 + level) / 2) if num > 1 else np.nan
  return Interval(
    float(mean), float(se), float(mean - half), float(mean + half), num
  )
