"""Registry of rewards: name, label, unit, and the function text -> score.

Comes in: plain functions under `@reward(...)`, and names. Goes out: Rewards,
each a function of many answers. `classifier:FOLDER` makes one of a model.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import errors

FLAG = '--rewards'
_MODULES = ('words',)  # files of this folder with functions under `@reward`
_CLASSIFIER = 'classifier'  # needs a folder: classifier:FOLDER


class Answer(NamedTuple):
  """An answer to score."""

  prompt: str
  completion: str
  text: str  # both, as the tokenizer joins them
  num_tokens: int  # of the completion, the stop token included


class Reward(NamedTuple):
  """A reward: what it is called, and its function."""

  name: str
  label: str  # for tables and figures
  unit: str
  score: Callable[[Sequence[Answer]], np.ndarray]  # -> float64 [S]


_REWARDS: dict[str, Reward] = {}


def reward(*, label: str, unit: str) -> Callable:
  """Registers the decorated function `Answer -> number` under its own name."""

  def decorate(fn: Callable[[Answer], float]) -> Callable:
    def score(answers: Sequence[Answer]) -> np.ndarray:
      return np.array([fn(answer) for answer in answers], np.float64)

    _REWARDS[fn.__name__] = Reward(fn.__name__, label, unit, score)
    return fn

  return decorate


def names() -> tuple[str, ...]:
  """Names of all rewards; that of a classifier is followed by its folder."""
  _import_modules()
  return *sorted(_REWARDS), f'{_CLASSIFIER}:FOLDER'


def get(name: str) -> Reward:
  """The reward of a name.

  Raises:
    InputError: there is none, or the folder of a classifier is no classifier.
  """
  _import_modules()
  if name in _REWARDS:
    return _REWARDS[name]
  kind, _, folder = name.partition(':')
  if kind == _CLASSIFIER and folder:
    # Imports jax; words are counted without.
    module = importlib.import_module('dpo_jax.rewards.classifier')
    return module.load(name, folder)
  raise errors.refuse(
    FLAG,
    f'{name!r} is not a reward',
    f'{errors.did_you_mean(name, names())}use one of {", ".join(names())}',
  )


@functools.cache
def _import_modules() -> None:
  for module in _MODULES:
    importlib.import_module(f'dpo_jax.rewards.{module}')
