"""config.optim -> the optimizer of a run and its schedule.

Comes in: a validated config. Goes out: what optim.py makes of it. Knows no
parameters.
"""

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import optim


def make_optimizer(config: ConfigDict):
  """The optimizer of a config; unset options keep the defaults of optim."""
  return optim.make_optimizer(
    config.optim.name,
    weight_decay=config.optim.weight_decay,
    clip_norm=config.optim.clip_norm,
    **config_lib.optimizer_options(config),
  )


def make_schedule(config: ConfigDict, num_steps: int):
  """The schedule of a config: step -> multiplier of the learning rate."""
  return optim.make_schedule(
    config.optim.schedule,
    num_steps=num_steps,
    warmup_steps=warmup_steps(config, num_steps),
    **config_lib.schedule_options(config),
  )


def warmup_steps(config: ConfigDict, num_steps: int) -> int:
  """Updates of the warm-up, in a run of `num_steps`."""
  if config.optim.warmup_fraction:
    return round(config.optim.warmup_fraction * num_steps)
  return config.optim.warmup_steps
