"""What a run carries from one step to the next.

Comes in: initial parameters and an optimiser. Goes out: TrainState, the whole
of what a checkpoint must hold. The reference is never part of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dpo_jax.types import Array, Params


class TrainState(NamedTuple):
  """State of training; every leaf is an array."""

  step: Array  # int32, updates done
  params: Params  # trainable parameters, float32
  opt_state: Params  # the optimiser's moments
  loss_state: Params  # running means of losses that keep any
  key: Array  # uint32 [2], PRNG key data; keys of a step derive from it


def init_state(
  params: Params,
  optimizer: optax.GradientTransformation,
  seed: int,
  loss_state: Params | None = None,
) -> TrainState:
  """The state before the first update; `loss_state` is the objective's."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    loss_state={} if loss_state is None else loss_state,
    key=jax.random.key_data(jax.random.key(seed)),
  )
