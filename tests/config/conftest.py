"""Configs of the quickstart: its two stages with a few overrides."""

import pathlib

import pytest

from dpo_jax import config
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def quickstart():
  """The argument of --config for a stage, 'dpo' or 'sft'."""
  return lambda stage: (
    f'{ROOT}/experiments/quickstart.py:stage={stage},runlocal'
  )


@pytest.fixture
def load(quickstart):
  """load(stage, 'KEY=VALUE KEY=VALUE'): a validated config."""

  def read(stage, overrides):
    pairs = [part.split('=', 1) for part in overrides.split()]
    loaded = config.load(quickstart(stage), pairs)
    config.validate(loaded)
    return loaded

  return read


@pytest.fixture
def refusal(load):
  """refusal(stage, overrides): the one line of what refuses them."""

  def read(stage, overrides):
    with pytest.raises(InputError) as error:
      load(stage, overrides)
    message = str(error.value)
    assert '; fix: ' in message and '\n' not in message
    return message

  return read
