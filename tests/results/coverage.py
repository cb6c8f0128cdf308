"""How often the intervals of statistics.py hold the truth, in simulation.

    python -m tests.results.coverage          a minute, wide bounds
    python -m tests.results.coverage --full   a quarter of an hour

Prints a line per setting and exits with 1 if a coverage of the 95 % intervals
lies outside its bounds: .94 to .96 over prompts and for shares, .93 to .98 over
seeds and prompts. Every draw calls the functions that the tables call.
"""

import argparse
import functools
import math
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dpo_jax.results import labelled, statistics

PROMPTS, SHARES, SEEDS = (0.94, 0.96), (0.94, 0.96), (0.93, 0.98)
QUICK_DRAWS = 1_000
# Three standard errors of a share of .95 of so many draws.
QUICK_SLACK = 3 * (0.95 * 0.05 / QUICK_DRAWS) ** 0.5


class Setting(NamedTuple):
  """One simulated evaluation."""

  name: str
  bounds: tuple[float, float]  # that the coverage must keep
  # an interval, and the true value
  draw: Callable[[np.random.Generator], tuple[statistics.Interval, float]]


def sizes(kind: str, num: int) -> np.ndarray:
  """Comparisons of each of `num` prompts [num].

  `tail`: as in stories_lexicon, where one of 446 prompts has 22 comparisons of
  512, and most have one.
  """
  if kind == 'one':
    return np.ones(num, int)
  if kind == '1 to 6':
    return np.arange(num) % 6 + 1
  if kind == 'tail':
    many = [max(2, num // 20), *[4] * (num // 20)]
    return np.array(many + [1] * (num - len(many)))
  return np.full(num, int(kind))


def over_prompts(num, kind, correlation, weighted=False, by_record=False):
  """A mean of normal values; `by_record` repeats the defect of old tables."""
  prompts = np.repeat(np.arange(num), sizes(kind, num))
  clusters = np.arange(len(prompts)) if by_record else prompts

  def draw(rng):
    values = _dependent(rng, prompts, correlation)
    got = statistics.clustered_mean(
      values, clusters, _weights(rng, len(prompts), weighted)
    )
    return got, 0.0

  name = f'{num} prompts of {kind}, correlation {correlation}'
  name += ', weights 4 and .25' if weighted else ''
  return Setting(f'mean: {name}', PROMPTS, draw)


def shares(num, kind, copied, weighted=False, share=None):
  """A share of hits, of which `copied` are their prompt's.

  The share is drawn anew from .5 to .95 unless given: hits are whole numbers,
  so the coverage of one share jumps by several per cent from one number of
  prompts to the next, for Wilson's interval of independent trials too (Brown,
  Cai and DasGupta, Statistical Science 16 (2001)).
  """
  prompts = np.repeat(np.arange(num), sizes(kind, num))

  def draw(rng):
    truth = rng.uniform(0.5, 0.95) if share is None else share
    own, common = (rng.random(n) < truth for n in (len(prompts), num))
    hits = np.where(rng.random(len(prompts)) < copied, common[prompts], own)
    got = statistics.clustered_share(
      hits, prompts, _weights(rng, len(prompts), weighted)
    )
    return got, truth

  name = f'{num} prompts of {kind}, {copied} copied'
  name += ', weights 4 and .25' if weighted else ''
  name += '' if share is None else f', share {share}'
  return Setting(f'share: {name}', SHARES, draw)


def in_order(num, kind, gain, correlation=0.0):
  """The share of labelled pairs in order; desirable rewards gain `gain`."""
  prompts = np.repeat(np.arange(num), sizes(kind, num))
  # Two normal values of variance 1 differ by one of variance 2.
  truth = 0.5 * (1 + math.erf(gain / 2))

  def draw(rng):
    label = rng.random(len(prompts)) < 0.5
    reward = gain * label + _dependent(rng, prompts, correlation)
    arrays = {'desirable': label, 'reward': reward}
    jack = labelled.jackknife('rewards/accuracies', arrays, prompts)
    got = statistics.share_interval(jack)
    return got, truth

  name = f'labels in order, {num} prompts of {kind}, gain {gain}'
  return Setting(f'share: {name}, correlation {correlation}', SHARES, draw)


def seeds(counts, num, kind, of_seeds, own, paired=True, binary=False):
  """A difference of two rows that have `counts` seeds.

  Args:
    counts: seeds of either row.
    num: prompts.
    kind: of `sizes`.
    of_seeds: share of the seeds in the variance of the difference, the rest is
      that of the prompts.
    own: variance of the seeds' own part on each prompt, in the same unit.
    paired: whether the rows have the same seeds, which then share a part.
    binary: wins in place of normal values.
  """
  prompts = np.repeat(np.arange(num), sizes(kind, num))
  row = make_row(prompts, of_seeds, own, binary)
  first, second = counts

  def draw(rng):
    effects = np.sqrt(1 - of_seeds) * rng.normal(size=(2, num))
    common = rng.normal(size=max(counts)) * (3 if paired else 0)
    got = statistics.difference(
      row(rng, first, effects[0], common),
      row(rng, second, effects[1], common),
      paired=paired,
    )
    return got, 0.0

  name = f'{first} and {second} seeds, {num} prompts of {kind}, '
  name += f'{of_seeds} of the variance of seeds, {own} of their own'
  name += ', paired' if paired else ''
  name += ', wins' if binary else ''
  return Setting(f'seeds x prompts: {name}', SEEDS, draw)


def make_row(prompts, of_seeds, own, binary=False):
  """A function that draws one Jackknife per seed; arguments as `seeds`."""
  num = prompts.max() + 1

  def row(rng, count, effect, common) -> list[statistics.Jackknife]:
    jacks = []
    for seed in range(count):
      moved = np.sqrt(of_seeds * count) * rng.normal() + common[seed]
      each = np.sqrt(own * count * num) * rng.normal(size=num)[prompts]
      values = moved + np.sqrt(num) * effect[prompts] + each
      if binary:
        # The seeds' parts move the chance to win.
        chance = 1 / (1 + np.exp(-np.clip(values / np.sqrt(num), -9, 9)))
        values = rng.random(len(prompts)) < chance
      jacks.append(statistics.leave_out(values, prompts))
    return jacks

  return row


@functools.cache
def settings(full: bool) -> list[Setting]:
  """The settings of the suite, or all."""
  if not full:
    return [
      over_prompts(64, '8', 0.3),
      over_prompts(100, 'tail', 0.6),
      over_prompts(100, 'one', 0, weighted=True),
      shares(40, '1 to 6', 1),
      shares(100, 'tail', 0.6),
      in_order(100, 'one', 1.0),
      seeds((3, 3), 40, 'one', 0.6, 0.1),
      seeds((4, 4), 40, '2', 0.0, 0.3),
      seeds((3, 5), 40, 'one', 0.9, 0.1, paired=False),
    ]
  found = [
    over_prompts(num, kind, correlation, weighted)
    for num in (64, 100, 200, 446)
    for kind in ('one', '2', '8', '1 to 6', 'tail')
    for correlation in ((0,) if kind == 'one' else (0, 0.3, 0.9))
    for weighted in (False, True)
  ]
  # Fewer than about 50 effective prompts: up to .967, too wide, as Wilson's
  # interval of so few independent trials (.957 at 64).
  found += [
    shares(num, kind, copied, weighted)
    for num, weighted in ((100, False), (200, True), (446, False))
    for kind in ('one', '4', '1 to 6', 'tail')
    for copied in ((0,) if kind == 'one' else (0, 0.5, 1))
  ]
  found += [shares(num, '1 to 6', 1) for num in (20, 40)]
  found += [
    in_order(100, kind, gain, correlation)
    for kind, correlation in (('one', 0), ('2', 0.5))
    for gain in (0.5, 1.0, 2.0)
  ]
  found += [
    seeds((count, count), 40, 'one', of_seeds, own)
    for count in (3, 4, 5, 7, 10)
    for of_seeds in (0.0, 0.5, 1.0)
    for own in (0.03, 0.5)
  ]
  found += [
    seeds(counts, 60, '1 to 6', of_seeds, 0.2, paired=False, binary=binary)
    for counts in ((3, 3), (3, 5), (3, 10))
    for of_seeds in (0.1, 0.5, 0.9)
    for binary in (False, True)
  ]
  return found


@functools.lru_cache(maxsize=16)
def intervals(setting: Setting, draws: int) -> list[tuple]:
  """`draws` intervals with their true values, from one seed."""
  rng = np.random.default_rng(0)
  return [setting.draw(rng) for _ in range(draws)]


def coverage(setting: Setting, draws: int) -> float:
  """The share of `draws` whose interval holds the truth."""
  held = [i.low <= truth <= i.high for i, truth in intervals(setting, draws)]
  return float(np.mean(held))


def _dependent(rng, prompts, correlation) -> np.ndarray:
  """Normal values of variance 1, correlated within a prompt."""
  common = rng.normal(size=prompts.max() + 1)[prompts]
  each = rng.normal(size=len(prompts))
  return np.sqrt(correlation) * common + np.sqrt(1 - correlation) * each


def _weights(rng, num: int, weighted: bool) -> np.ndarray | None:
  return np.where(rng.random(num) < 0.25, 4.0, 0.25) if weighted else None


def main(arguments=None) -> int:
  """Prints every coverage; returns 1 if one is out of bounds."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--full', action='store_true')
  parser.add_argument('--kind', default='', help='pattern of names')
  options = parser.parse_args(arguments)
  wrong = 0
  for setting in settings(options.full):
    if not re.search(options.kind, setting.name):
      continue
    if options.full:  # the bounds as they are; se .0015, .0034 where wide
      draws, slack = 4_000 if setting.bounds == SEEDS else 20_000, 0.0
    else:
      draws, slack = QUICK_DRAWS, QUICK_SLACK
    share = coverage(setting, draws)
    low, high = setting.bounds
    right = low - slack <= share <= high + slack
    wrong += not right
    print(f'{share:.4f} {setting.name}{"" if right else "  OUT"}', flush=True)
  print(f'{wrong} out of bounds')
  return int(wrong > 0)


if __name__ == '__main__':
  sys.exit(main())
