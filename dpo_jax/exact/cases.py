"""Cases: prompts with few completions, a known reward, and judgements of it.

Comes in: the name of a case, a seed, and how comparisons are drawn. Goes out:
a `Case`, and the weight of every ordered pair of completions, either in
expectation or as counts of a sample. With so few completions the counts say
all that a data set says. Trains nothing.

Dimension key of this folder: N cells, X prompts, Y completions of a prompt.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dpo_jax import errors

_NUM_PROMPTS, _NUM_COMPLETIONS = 4, 5  # of the random cases


class Case(NamedTuple):
  """Prompts whose completions, reward and preferences are known."""

  reference_XY: np.ndarray  # probabilities; rows sum to 1
  reward_XY: np.ndarray  # nats
  prefers_XYY: np.ndarray  # chance that completion i is preferred to j


def bradley_terry(seed: int) -> Case:
  """Random rewards, judged as Bradley and Terry: p = s(r_i - r_j).

  Rewards and the logits of the reference are standard normal. Source:
  Biometrika 39 (1952).
  """
  rng = np.random.default_rng((seed, 0))
  reward, logits = rng.normal(size=(2, _NUM_PROMPTS, _NUM_COMPLETIONS))
  gap = reward[..., :, None] - reward[..., None, :]
  return Case(softmax(logits), reward, 1 / (1 + np.exp(-gap)))


def deterministic(seed: int) -> Case:
  """The same rewards and reference; the higher reward always wins."""
  case = bradley_terry(seed)
  return case._replace(prefers_XYY=_always(case.reward_XY))


def three_actions(seed: int) -> Case:
  """IPO's bandit: three actions in a total order, a uniform reference.

  Every pair is judged, and the better action always wins. Source:
  arXiv:2310.12036, section 5.4. The seed changes nothing.
  """
  del seed
  reward = np.array([[1.0, 0.0, -1.0]])
  return Case(np.full((1, 3), 1 / 3), reward, _always(reward))


def near_optimum(case: Case, beta: float) -> np.ndarray:
  """Distribution [X, Y] of pairs from the KL-regularised optimum."""
  return regularised_optimum(case, beta)


def uniform(case: Case, beta: float) -> np.ndarray:
  """Distribution [X, Y] of pairs with equal chances."""
  del beta
  return np.full_like(case.reference_XY, 1 / case.reference_XY.shape[-1])


def reference(case: Case, beta: float) -> np.ndarray:
  """Distribution [X, Y] of pairs from the reference."""
  del beta
  return case.reference_XY


CASES: dict[str, Callable[[int], Case]] = {
  'bradley_terry': bradley_terry,
  'deterministic': deterministic,
  'three_actions': three_actions,
}
# Distributions that both completions of a pair are drawn from. The optimum
# stands for data of a policy that has been trained already.
SAMPLINGS: dict[str, Callable[[Case, float], np.ndarray]] = {
  'uniform': uniform,
  'reference': reference,
  'optimum': near_optimum,
}


def make(name: str, seed: int) -> Case:
  """The case of that name; InputError with the nearest match otherwise."""
  if name not in CASES:
    raise errors.refuse(
      '--case',
      f'{name!r} is not known',
      f'{errors.did_you_mean(name, CASES)}use one of {", ".join(CASES)}',
    )
  return CASES[name](seed)


def regularised_optimum(case: Case, beta: float) -> np.ndarray:
  """The policy [X, Y] that maximises E[r] - beta KL(pi, ref).

  `pi* = ref exp(r / beta) / Z`.

  Source: arXiv:2305.18290, eq. 4.
  """
  return softmax(np.log(case.reference_XY) + case.reward_XY / beta)


def pair_weights(
  case: Case, sampling: str, noise: float, beta: float
) -> np.ndarray:
  """The chance of every comparison, winner i over loser j.

  Args:
    case: its preferences are judged by.
    sampling: key of SAMPLINGS; both completions are drawn from it, until they
      differ.
    noise: chance in [0, 0.5) that a label is flipped.
    beta: of the optimum, for sampling='optimum'.

  Returns:
    Weights [X, Y, Y] that sum to 1, each prompt to 1 / X; 0 where i = j.
  """
  draws = SAMPLINGS[sampling](case, beta)
  both = draws[..., :, None] * draws[..., None, :]
  both = both * (1 - np.eye(draws.shape[-1]))
  both = both / both.sum((-1, -2), keepdims=True) / len(draws)
  wins = case.prefers_XYY
  # Ordered pairs (i, j) and (j, i) show the same two completions.
  return 2 * both * ((1 - noise) * wins + noise * np.swapaxes(wins, -1, -2))


def sample(weights_XYY: np.ndarray, size: float, seed: int) -> np.ndarray:
  """The shares of comparisons in a sample of `size`; inf = the expectation."""
  if math.isinf(size):
    return weights_XYY
  rng = np.random.default_rng((seed, 1))
  chances = weights_XYY.ravel() / weights_XYY.sum()
  counts = rng.multinomial(int(size), chances)
  return counts.reshape(weights_XYY.shape) / size


def softmax(logits: np.ndarray) -> np.ndarray:
  """Softmax over the last axis."""
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def _always(reward: np.ndarray) -> np.ndarray:
  """Chances of a judge who never errs; 1/2 between equal rewards."""
  return (np.sign(reward[..., :, None] - reward[..., None, :]) + 1) / 2
