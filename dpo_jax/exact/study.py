"""A study: one axis at a time from a base, every loss, several seeds.

Comes in: `Settings`. Goes out: one `Row` per loss, point and seed, with the
distances of the trained policy to the KL-regularised optimum and to the loss's
own. Draws and writes nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from dpo_jax.exact import cases, optimum, training
from dpo_jax.exact.choices import Choice


class Settings(NamedTuple):
  """What a study compares. The first value of an axis is its base."""

  case: str
  losses: tuple[Choice, ...]
  betas: tuple[float, ...]
  sizes: tuple[float, ...]  # numbers of comparisons; inf = the expectation
  noises: tuple[float, ...]  # chances of a flipped label
  samplings: tuple[str, ...]  # keys of cases.SAMPLINGS
  steps: tuple[int, ...]  # updates
  num_seeds: int


class Point(NamedTuple):
  """A place in the grid: a value of every axis."""

  beta: float
  size: float
  noise: float
  sampling: str
  steps: int


class Row(NamedTuple):
  """A trained policy's distances; means over the prompts of the case."""

  loss: str  # Choice.word
  beta: float
  size: float
  noise: float
  sampling: str
  steps: int
  seed: int
  tv: float  # total variation to the KL-regularised optimum pi*
  kl: float  # KL(pi, pi*), nats
  regret: float  # of E[r] - beta KL(pi, ref): beta times `kl`
  reward: float  # E[r]
  reward_gap: float  # E*[r] - E[r]; negative beyond the optimum
  drift: float  # KL(pi, ref), nats
  best: float  # probability of the completion with the highest reward
  own: float  # total variation to the loss's own optimum; NaN without one


AXES = Point._fields
# Measures of a Row, and their names in tables and figures.
MEASURES = {
  'tv': 'total variation to π*',
  'kl': 'KL(π, π*), nats',
  'regret': 'regret, nats of reward',
  'reward': 'expected reward',
  'reward_gap': 'reward of π* less that of π',
  'drift': 'KL(π, reference), nats',
  'best': 'probability of the best completion',
  'own': "total variation to the loss's own optimum",
}


def points(settings: Settings) -> list[Point]:
  """The base, and every other value of one axis with the base of the rest."""
  axes = values(settings)
  base = Point(**{axis: numbers[0] for axis, numbers in axes.items()})
  listed = [base]
  for axis, numbers in axes.items():
    listed += [base._replace(**{axis: number}) for number in numbers]
  return list(dict.fromkeys(listed))


def values(settings: Settings) -> dict[str, tuple]:
  """{field of Point: its values}, the base first."""
  names = ('betas', 'sizes', 'noises', 'samplings', 'steps')
  return {axis: getattr(settings, name) for axis, name in zip(AXES, names)}


def run(settings: Settings, log: Callable = lambda line: None) -> list[Row]:
  """Trains and measures everything.

  Args:
    settings: the study.
    log: called with the label of each loss before it is trained.

  Returns:
    Rows in the order of losses, points and seeds.
  """
  made = [cases.make(settings.case, seed) for seed in range(settings.num_seeds)]
  cells = [
    (point, seed)
    for point in points(settings)
    for seed in range(settings.num_seeds)
  ]
  weights = [_weights(made[seed], point, seed) for point, seed in cells]
  rows = []
  for choice in settings.losses:
    log(choice.label)
    problems = _problems(choice, cells, made, weights)
    policies = _train(choice.name, problems, cells)
    own = own_optima(choice.name, problems)
    for (point, seed), policy, optimum_XY in zip(cells, policies, own):
      numbers = measure(made[seed], point.beta, policy)
      numbers['own'] = float(total_variation(policy, optimum_XY).mean())
      rows.append(Row(choice.word, *point, seed, **numbers))
  return rows


def measure(case: cases.Case, beta: float, policy: np.ndarray) -> dict:
  """The fields of a Row that follow from case, beta and policy [X, Y]."""
  star = cases.regularised_optimum(case, beta)
  kl = _divergence(policy, star).mean()
  reward = (policy * case.reward_XY).sum(-1).mean()
  top = case.reward_XY.argmax(-1)[:, None]
  numbers = {
    'tv': total_variation(policy, star).mean(),
    'kl': kl,
    'regret': beta * kl,
    'reward': reward,
    'reward_gap': (star * case.reward_XY).sum(-1).mean() - reward,
    'drift': _divergence(policy, case.reference_XY).mean(),
    'best': np.take_along_axis(policy, top, -1).mean(),
  }
  return {key: float(value) for key, value in numbers.items()}


def own_optima(name: str, cells: training.Cells) -> np.ndarray:
  """The loss's own optima [N, X, Y]; NaN where none is known, see optimum."""
  shape = cells.reference_NXY.shape
  num_prompts, num = shape[1:]
  weights = cells.weights_NXYY.reshape(-1, num, num)
  # The loss of a prompt, not of the batch: a prompt without data has none.
  totals = weights.sum((-1, -2), keepdims=True)
  solved = optimum.solve(
    name,
    optimum.Problem(
      cells.reference_NXY.reshape(-1, num),
      cells.reward_NXY.reshape(-1, num),
      weights / np.where(totals > 0, totals, 1),
      {k: np.repeat(v, num_prompts) for k, v in cells.hyper.items()},
    ),
  )
  return np.full(shape, np.nan) if solved is None else solved.reshape(shape)


def total_variation(policy: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Half of the sum of absolute differences, per prompt [X]."""
  return np.abs(policy - other).sum(-1) / 2


def _weights(case: cases.Case, point: Point, seed: int) -> np.ndarray:
  """Weights of the comparisons at a point [X, Y, Y], exact or sampled."""
  exact = cases.pair_weights(case, point.sampling, point.noise, point.beta)
  return cases.sample(exact, point.size, seed)


def _problems(choice: Choice, cells, made, weights) -> training.Cells:
  """The problems of a loss, one per point and seed."""
  hyper = [choice.hyper(point.beta, point.noise) for point, _ in cells]
  return training.Cells(
    reference_NXY=np.array([made[seed].reference_XY for _, seed in cells]),
    reward_NXY=np.array([made[seed].reward_XY for _, seed in cells]),
    weights_NXYY=np.array(weights),
    beta=np.array([point.beta for point, _ in cells]),
    hyper={key: np.array([each[key] for each in hyper]) for key in hyper[0]},
  )


def _train(name: str, problems: training.Cells, cells) -> np.ndarray:
  """Policies [N, X, Y]; cells of equally many updates share a program."""
  steps = np.array([point.steps for point, _ in cells])
  policies = np.empty_like(problems.reference_NXY)
  for num_steps in np.unique(steps):
    rows = steps == num_steps
    part = jax.tree.map(lambda x, rows=rows: x[rows], problems)
    policies[rows] = training.train(name, part, int(num_steps))
  return policies


def _divergence(policy: np.ndarray, other: np.ndarray) -> np.ndarray:
  """KL(policy, other) per prompt [X], nats; 0 log 0 is 0."""
  # A probability of 0 adds nothing, wherever the policy underflowed.
  ratio = np.where(policy > 0, policy, 1) / np.where(policy > 0, other, 1)
  return (policy * np.log(ratio)).sum(-1)
