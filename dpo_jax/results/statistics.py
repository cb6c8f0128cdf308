"""Numbers -> intervals: means and how well they are known.

Comes in: numpy arrays of one number per seed, or one number per comparison with
its weight and the prompt that it belongs to. Goes out: `Interval`s. Reads no
files and knows no metric names.

Comparisons of one prompt depend on each other, so every standard error over the
evaluation data is the jackknife over prompts: the mean is taken again without
each prompt in turn. tests/results/coverage.py measures how often the intervals
hold the truth.
"""

from collections.abc import Iterable, Sequence
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


class Jackknife(NamedTuple):
  """A mean over the evaluation data, and its dependence on each prompt."""

  mean: float
  moves: np.ndarray  # [G], the mean less the mean without prompt g
  shares: np.ndarray  # [G], prompt g's share of the weight; the sum is 1


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
    return _around(values.mean(), se, _quantile(num - 1, level), num)


def leave_out(values, clusters, weights=None) -> Jackknife:
  """Returns the weighted mean and its moves as each prompt is left out.

  With u_g = sum_{i in g} w_i (x_i - mean) / W and h_g = W_g / W, the mean moves
  by u_g / (1 - h_g) when prompt g goes.

  Args:
    values: [N], one number per comparison.
    clusters: [N], the prompt of each (any type that sorts).
    weights: [N], >= 0, not all 0; None = equal ones.

  Returns:
    Jackknife of the G prompts in sorted order. The move of a prompt that holds
    the whole weight is NaN.
  """
  values = np.asarray(values, np.float64)
  weights = np.ones(len(values)) if weights is None else np.asarray(weights)
  _, index = np.unique(np.asarray(clusters), return_inverse=True)
  total = weights.sum()
  mean = float(weights @ values / total)
  sums = np.bincount(index, weights * (values - mean)) / total
  shares = np.bincount(index, weights) / total
  with np.errstate(invalid='ignore', divide='ignore'):
    moves = np.where(shares < 1, sums / (1 - shares), np.nan)
  return Jackknife(mean, moves, shares)


def average(jacks: Iterable[Jackknife]) -> Jackknife:
  """Returns the mean of several policies on the same prompts."""
  return Jackknife(*(np.mean(each, axis=0) for each in zip(*jacks)))


def clustered_se(values, clusters, weights=None) -> float:
  """Standard error of a mean whose terms are dependent within a prompt.

  se^2 = (G - 1) / G * sum_g (mean - mean without prompt g)^2.
  With one value per prompt and equal weights it is s / sqrt(N); with G prompts
  of equal weight, G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2 / N^2.

  Args:
    values: [N], one number per comparison.
    clusters: [N], the prompt of each (any type that sorts).
    weights: [N], >= 0, not all 0; None = equal ones.

  Returns:
    The standard error in the values' unit; NaN if G = 1.

  Source: Miller, "Adding Error Bars to Evals", arXiv:2411.00640, clusters the
  standard error by question (Liang and Zeger, Biometrika 73 (1986)). The
  jackknife form is CR3 of Bell and McCaffrey, Survey Methodology 28 (2002): it
  keeps its coverage when a few prompts have most of the comparisons.
  """
  return float(np.sqrt(_variance(leave_out(values, clusters, weights))))


def clustered_mean(
  values, clusters, weights=None, level: float = LEVEL
) -> Interval:
  """Weighted mean over comparisons, interval from `clustered_se`.

  Student's t has 1 / sum_g h_g^2 - 1 degrees of freedom, h_g the share of
  prompt g: G - 1 if all weigh the same, fewer if a few weigh most (Kish,
  "Survey Sampling" (1965), effective size).

  Args and source: as `clustered_se`. Returns: Interval with num = G.
  """
  return interval(leave_out(values, clusters, weights), level)


def interval(jack: Jackknife, level: float = LEVEL) -> Interval:
  """The t interval of a mean over prompts, as `clustered_mean`."""
  quantile = _quantile(_effective(jack.shares) - 1, level)
  se = np.sqrt(_variance(jack))
  return _around(jack.mean, se, quantile, _num_prompts(jack.shares))


def wilson(
  share: float, num: float, level: float = LEVEL, df: float = np.inf
) -> tuple:
  """Wilson's score interval of a share of `num` independent trials.

  (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

  Args:
    share: p, successes / trials, in [0, 1].
    num: n > 0; may be fractional, as an effective size is.
    level: confidence level.
    df: z is Student's t with so many degrees of freedom, for an n that was
      estimated; infinite = the normal quantile.

  Returns:
    (low, high), within [0, 1].

  Source: Wilson, J. American Statistical Association 22 (1927), p. 209.
  """
  z = _quantile(df, level)
  centre = share + z**2 / (2 * num)
  half = z * np.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
  scale = 1 + z**2 / num
  low, high = (centre - half) / scale, (centre + half) / scale
  return float(max(low, 0.0)), float(min(high, 1.0))


def clustered_share(
  hits, clusters, weights=None, level: float = LEVEL
) -> Interval:
  """Share of hits with Wilson's interval at the effective sample size.

  With one comparison per prompt and equal weights, n is their number. Else n is
  p (1 - p) / se_clustered^2, at most Kish's size (sum w)^2 / sum w^2. An n
  below that was estimated, so z is Student's t with the degrees of freedom of
  `clustered_mean`.

  Args:
    hits: [N] bool, one per comparison.
    clusters: [N], the prompt of each.
    weights: [N], >= 0, not all 0; None = equal ones.
    level: confidence level.

  Returns:
    Interval with num = number of prompts; se is the clustered one. Ends are NaN
    if there is one prompt with several comparisons.

  Source: Kish, "Survey Sampling" (1965), design effect, for the effective
  size; Dean and Pagano, J. Survey Statistics and Methodology 3 (2015), for
  its use in Wilson's interval; Korn and Graubard, Survey Methodology 24 (1998),
  for t in it.
  """
  hits = np.asarray(hits, np.float64)
  weights = np.ones(len(hits)) if weights is None else np.asarray(weights)
  jack = leave_out(hits, clusters, weights)
  most = float(weights.sum() ** 2 / np.sum(weights**2))
  if _num_prompts(jack.shares) == len(hits) and np.ptp(weights) == 0:
    se = np.sqrt(_variance(jack))
    return Interval(jack.mean, se, *wilson(jack.mean, most, level), len(hits))
  return share_interval(jack, most, level)


def share_interval(
  jack: Jackknife, most: float = np.inf, level: float = LEVEL
) -> Interval:
  """Wilson's interval of a share over prompts, as `clustered_share`.

  Args:
    jack: of a share, of comparisons or of other pairs.
    most: the effective size without any dependence, if it is known.
    level: confidence level.
  """
  share, variance = jack.mean, _variance(jack)
  prompts = _effective(jack.shares)
  if not np.isfinite(variance):
    ends = np.nan, np.nan
  elif min(share, 1 - share) < 1e-12:
    # All hits, or none: the variance is 0 and tells nothing of the dependence.
    # Count the prompts, not their comparisons.
    ends = wilson(round(share), prompts, level)
  elif variance == 0 or share * (1 - share) >= most * variance:
    ends = wilson(share, most, level)
  else:
    ends = wilson(share, share * (1 - share) / variance, level, prompts - 1)
  num = _num_prompts(jack.shares)
  return Interval(share, float(np.sqrt(variance)), *ends, num)


def difference(
  first: Sequence[Jackknife],
  second: Sequence[Jackknife],
  *,
  paired: bool,
  level: float = LEVEL,
) -> Interval:
  """Mean of `first` minus mean of `second`, over the same evaluation data.

  The difference is taken per prompt, so that hard and easy prompts, which both
  policies share, cancel. If both have several seeds, the interval covers other
  seeds and other prompts:

    se^2 = A + max(B - E, 0),

  A from the spread of the seeds' means, B from the prompts (`clustered_se` of
  the seeds' mean), and E the part of B that is the seeds' own on each prompt,
  which A holds already. The quantile is (A t_seeds + (B - E) t_prompts) / se^2,
  after Cochran. With one seed on either side, se^2 = B: the prompts alone.

  Args:
    first: one Jackknife per seed; `mean` may be the value that the run reports.
    second: the baseline, over the same prompts.
    paired: whether the seeds of both are the same, in the same order. If not,
      A is that of Welch's test.
    level: confidence level.

  Returns:
    Interval of the difference, num = number of prompts.

  Source: Miller, arXiv:2411.00640, on paired differences. The components are
  those of the two-way random-effects analysis of variance (Searle, Casella and
  McCulloch, "Variance Components" (1992), section 4.3); the quantile is
  Cochran's, Biometrics 20 (1964), p. 191.
  """
  sides = [np.array([run.moves for run in side]) for side in (first, second)]
  means = [np.array([run.mean for run in side]) for side in (first, second)]
  value = means[0].mean() - means[1].mean()
  shares = np.mean([run.shares for run in (*first, *second)], axis=0)
  num = _num_prompts(shares)
  per_prompt = _quantile(_effective(shares) - 1, level)
  moves = sides[0].mean(0) - sides[1].mean(0)
  prompts = _variance(Jackknife(value, moves, shares))
  if min(len(first), len(second)) == 1:
    return _around(value, np.sqrt(prompts), per_prompt, num)
  if paired:
    sides, means = [sides[0] - sides[1]], [means[0] - means[1]]
  spreads = [side.var(ddof=1) / len(side) for side in means]
  seeds = sum(spreads)
  own = sum(
    _variance(Jackknife(value, side - side.mean(0), shares))
    / (len(side) * (len(side) - 1))
    for side in sides
  )
  rest = max(prompts - own, 0.0)
  variance = seeds + rest
  if not variance > 0:  # no spread at all, or NaN
    return _around(value, np.sqrt(variance), 1.0, num)
  per_seed = 0.0
  if seeds > 0:
    terms = [each**2 / (len(side) - 1) for each, side in zip(spreads, means)]
    per_seed = _quantile(seeds**2 / sum(terms), level)
  quantile = (seeds * per_seed + rest * per_prompt) / variance
  return _around(value, np.sqrt(variance), quantile, num)


def p_value(interval: Interval, level: float = LEVEL) -> float:
  """Two-sided p of the hypothesis that the true value is 0.

  p = 2 P(T > |mean| / se), with T of Student's t distribution whose quantile
  made the interval: its degrees of freedom are read back from half / se. So p <
  1 - level exactly when the interval excludes 0.

  Args:
    interval: symmetric about its mean, as `difference`, `mean_ci_t` and
      `clustered_mean` give; not one of a share.
    level: that of the interval.

  Returns:
    p in [0, 1]. Without spread 1 for a mean of 0, else 0. NaN if the interval
    has no ends.
  """
  mean, se, low, high = interval[:4]
  if not np.isfinite([mean, se, low, high]).all():
    return float('nan')
  excluded = low > 0 or high < 0
  if se == 0:
    return 0.0 if excluded else 1.0
  df = special.stdtridf((1 + level) / 2, (high - low) / 2 / se)
  p = 2 * float(special.stdtr(df, -abs(mean) / se))
  # Rounding must not part p from the interval where 0 is one of its ends.
  alpha = 1 - level
  return min(p, np.nextafter(alpha, 0)) if excluded else max(p, alpha)


def holm(p_values: Sequence[float]) -> list[float]:
  """P-values of a family of tests, adjusted by Holm's step-down method.

  adjusted_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)), p_(1) <= ... <= p_(m).
  Rejecting what is below a leaves the chance of any false rejection below a,
  however the tests depend on each other.

  Args:
    p_values: of all tests of the family, in any order. NaN is a test that could
      not be made: it stays NaN and does not count in m.

  Returns:
    Adjusted p-values, in the order of `p_values`.

  Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
  Scandinavian J. Statistics 6 (1979); adjusted p-values as in Wright,
  Biometrics 48 (1992).
  """
  adjusted = [float('nan')] * len(p_values)
  made = [index for index, p in enumerate(p_values) if not np.isnan(p)]
  largest = 0.0
  for rank, index in enumerate(sorted(made, key=lambda i: p_values[i])):
    largest = max(largest, min(1.0, (len(made) - rank) * p_values[index]))
    adjusted[index] = largest
  return adjusted


def _variance(jack: Jackknife) -> float:
  """The jackknife variance; with rows of moves [S, G], the sum over rows."""
  num = _num_prompts(jack.shares)
  if num == 1:
    return float('nan')
  return float((num - 1) / num * np.sum(jack.moves**2))


def _num_prompts(shares) -> int:
  return int(np.sum(shares > 0))


def _effective(shares) -> float:
  """The number of equal prompts that would tell as much."""
  return float(1 / np.sum(shares**2))


def _quantile(df: float, level: float) -> float:
  """Student's t quantile of a two-sided interval; NaN without freedom."""
  if np.isinf(df):
    return float(special.ndtri((1 + level) / 2))
  return float(special.stdtrit(df, (1 + level) / 2)) if df > 0 else np.nan


def _around(mean, se, quantile, num: int) -> Interval:
  """The interval that is symmetric about the mean."""
  half = se * quantile
  return Interval(
    float(mean), float(se), float(mean - half), float(mean + half), num
  )
