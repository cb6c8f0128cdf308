"""How p-values and Holm's method behave where nothing differs, in simulation.

    python -m tests.results.null          half a minute, wide bounds
    python -m tests.results.null --full   some minutes

First the settings of coverage.py whose true value is 0: the p-values should be
uniform. Prints the shares below .05 and .01, and how far the distribution of p
lies above (`up`: too many small ones) and below (`down`: the test is cautious)
that of a uniform number, the two Kolmogorov-Smirnov distances. Then families of
rows against one baseline: how often Holm's method rejects any true hypothesis,
beside the same without it. Exits with 1 if a number is out of its bounds.
"""

import argparse
import re
import sys
from typing import NamedTuple

import numpy as np

from dpo_jax.results import statistics

from . import coverage

LEVEL = 0.05
FULL_DRAWS = 4_000
# Kolmogorov's and Smirnov's distance of n draws is above these / sqrt(n) in one
# of 1,000 simulations: two-sided, one-sided (Kolmogorov 1933; Smirnov 1948).
TWO_SIDED, ONE_SIDED = 1.949, 1.858
# Beyond chance: t with an estimated number of degrees of freedom is no exact
# distribution where prompts have unequal weight or seeds are few.
TOLERANCE = 0.01


class Uniform(NamedTuple):
  """P-values of one setting against a uniform distribution."""

  below: dict[float, float]  # level -> share of p-values below
  up: float  # largest F(p) - p
  down: float  # largest p - F(p)


class Family(NamedTuple):
  """Rows that are compared with one baseline, all on the same prompts."""

  rows: int
  seeds: int
  prompts: int
  kind: str  # of coverage.sizes
  of_seeds: float  # as coverage.seeds
  own: float
  different: int = 0  # of the rows, whose true difference is large

  @property
  def name(self) -> str:
    """The family in words."""
    text = f'{self.rows} rows, {self.different} of them different'
    text += f', {self.seeds} seeds, {self.prompts} prompts of {self.kind}'
    return f'{text}, {self.of_seeds} of the variance of seeds'


def has_null(setting: coverage.Setting) -> bool:
  """Whether the true value of a setting is 0, with a symmetric interval."""
  return not setting.name.startswith('share')


def uniform(setting: coverage.Setting, draws: int) -> Uniform:
  """Compares the p-values of a setting with a uniform distribution."""
  p_values = np.sort(
    [
      statistics.p_value(interval)
      for interval, _ in coverage.intervals(setting, draws)
    ]
  )
  ranks = np.arange(draws + 1) / draws
  return Uniform(
    {level: float(np.mean(p_values < level)) for level in (0.05, 0.01)},
    float(np.max(ranks[1:] - p_values)),
    float(np.max(p_values - ranks[:-1])),
  )


def is_uniform(setting: coverage.Setting, got: Uniform, draws: int) -> bool:
  """Whether p-values are uniform; of seeds x prompts, at least not too small.

  The quantile of seeds x prompts is cautious by design (Cochran).
  """
  if setting.bounds == coverage.SEEDS:
    return got.up <= TOLERANCE + ONE_SIDED / draws**0.5
  return max(got.up, got.down) <= TOLERANCE + TWO_SIDED / draws**0.5


def families(full: bool) -> list[Family]:
  """The families of the suite, or all."""
  if not full:
    return [Family(5, 3, 40, 'one', 0.5, 0.1), Family(5, 1, 40, '1 to 6', 0, 0)]
  return [
    Family(rows, seeds, 60, kind, of_seeds, 0.1, different)
    for rows in (3, 10)
    for seeds, of_seeds in ((1, 0.0), (3, 0.1), (3, 0.9), (5, 0.5))
    for kind in ('one', '1 to 6')
    for different in (0, rows // 2)
  ]


def false_rejections(family: Family, draws: int) -> tuple[float, float]:
  """The share of draws in which a true hypothesis is rejected at .05.

  Returns:
    (with Holm's method, without it).
  """
  rng = np.random.default_rng(0)
  num, rows = family.prompts, family.rows
  prompts = np.repeat(np.arange(num), coverage.sizes(family.kind, num))
  draw_row = coverage.make_row(prompts, family.of_seeds, family.own)
  # Differences of 20 standard errors: rejected whenever they are tested.
  shifts = np.where(np.arange(rows) < family.different, 20.0, 0.0)
  counts = np.zeros(2)
  for _ in range(draws):
    common = 3 * rng.normal(size=family.seeds)
    jacks = []
    for shift in (0.0, *shifts):
      effect = np.sqrt(1 - family.of_seeds) * rng.normal(size=num)
      jacks.append(draw_row(rng, family.seeds, effect, common + shift))
    p_values = [
      statistics.p_value(statistics.difference(row, jacks[0], paired=True))
      for row in jacks[1:]
    ]
    for index, each in enumerate((statistics.holm(p_values), p_values)):
      counts[index] += min(np.array(each)[shifts == 0]) < LEVEL
  return tuple(counts / draws)


def most_rejections(draws: int) -> float:
  """.05 and three standard errors of a share of so many draws."""
  return LEVEL + 3 * (LEVEL * (1 - LEVEL) / draws) ** 0.5


def main(arguments=None) -> int:
  """Prints every setting and family; returns 1 if one is out of bounds."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--full', action='store_true')
  parser.add_argument('--kind', default='', help='pattern of names')
  options = parser.parse_args(arguments)
  wrong = 0

  def say(is_right, text):
    nonlocal wrong
    wrong += not is_right
    print(f'{text}{"" if is_right else "  OUT"}', flush=True)

  for setting in coverage.settings(options.full):
    if has_null(setting) and re.search(options.kind, setting.name):
      draws = FULL_DRAWS if options.full else coverage.QUICK_DRAWS
      got = uniform(setting, draws)
      shares = ', '.join(f'{s:.4f} below {p}' for p, s in got.below.items())
      say(
        is_uniform(setting, got, draws),
        f'{shares}, up {got.up:.4f}, down {got.down:.4f} {setting.name}',
      )
  draws = FULL_DRAWS if options.full else coverage.QUICK_DRAWS
  for family in families(options.full):
    if re.search(options.kind, family.name):
      holm, alone = false_rejections(family, draws)
      say(
        holm <= most_rejections(draws),
        f'{holm:.4f} with Holm, {alone:.4f} without: {family.name}',
      )
  print(f'{wrong} out of bounds')
  return int(wrong > 0)


if __name__ == '__main__':
  sys.exit(main())
