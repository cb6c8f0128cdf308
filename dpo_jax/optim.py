"""gradients -> update: optimisers at unit learning rate, and schedules.

Comes in: plain arguments. Goes out: optax transformations and functions of
the step. The learning rate itself is not here: the train step multiplies by
it, so that a sweep over it shares one compile.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dpo_jax import errors
from dpo_jax.types import Array, Params

OPTIMIZERS = ('adamw', 'rmsprop', 'lion', 'adafactor')
SCHEDULES = ('constant', 'linear', 'cosine')


def make_optimizer(
  name: str,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """An optimiser whose updates are to be scaled by minus the learning rate.

  Args:
    name: 'adamw' (arXiv:1711.05101), 'rmsprop' (b2 is its decay; the DPO
      paper's, torch's defaults are b2=0.99, eps=1e-8), 'lion'
      (arXiv:2302.06675) or 'adafactor' (arXiv:1804.04235; no momentum).
    b1: decay of the first moment (adamw, lion).
    b2: decay of the second moment (adamw, rmsprop; lion's second beta).
    eps: added to the root of the second moment (adamw, rmsprop).
    weight_decay: decoupled, times the learning rate; norms and biases are
      not decayed.
    clip_norm: global norm that gradients are clipped to; 0 = no clipping.

  Returns:
    An optax transformation. Moments take the parameters' dtype (float32).
  """
  scale = {
    'adamw': lambda: optax.scale_by_adam(b1, b2, eps),
    # torch's RMSprop: root first, then eps, moments from zero.
    'rmsprop': lambda: optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False),
    'lion': lambda: optax.scale_by_lion(b1, b2),
    'adafactor': lambda: optax.chain(
      optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    ),
  }
  if name not in scale:
    raise errors.refuse(
      'config.optim.name',
      f'{name!r} is not known',
      f'use one of {", ".join(OPTIMIZERS)}',
    )
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm > 0 else []
  steps.append(scale[name]())
  if weight_decay > 0:
    steps.append(optax.add_decayed_weights(weight_decay, decay_mask))
  return optax.chain(*steps)


def decay_mask(params: Params) -> Params:
  """True where weight decay applies: neither norms nor biases."""

  def decays(path, _):
    name = jax.tree_util.keystr(path).lower()
    return 'norm' not in name and 'bias' not in name

  return jax.tree_util.tree_map_with_path(decays, params)


def make_schedule(
  name: str,
  *,
  num_steps: int,
  warmup_steps: int = 0,
  final_fraction: float = 0.0,
) -> Callable[[Array], Array]:
  """Multiplier of the learning rate at a step, in [0, 1].

  Warm-up is linear: step t of the warm-up (from 0) runs at
  (t + 1) / (warmup_steps + 1) of the learning rate.

  Args:
    name: 'constant', 'linear' or 'cosine' after the warm-up.
    num_steps: steps of the run; the decay ends there.
    warmup_steps: steps before the full rate.
    final_fraction: where linear and cosine end.

  Returns:
    A function of an int32 step, giving a float32 scalar.
  """
  decay_steps = max(num_steps - warmup_steps, 1)
  after = {
    'constant': lambda: optax.constant_schedule(1.0),
    'linear': lambda: optax.linear_schedule(1.0, final_fraction, decay_steps),
    'cosine': lambda: optax.cosine_decay_schedule(
      1.0, decay_steps, final_fraction
    ),
  }
  if name not in after:
    raise errors.refuse(
      'config.optim.schedule',
      f'{name!r} is not known',
      f'use one of {", ".join(SCHEDULES)}',
    )
  decay = after[name]()

  def schedule(step):
    warm = (step + 1) / (warmup_steps + 1)
    late = decay(jnp.maximum(step - warmup_steps, 0))
    return jnp.where(step < warmup_steps, warm, late).astype(jnp.float32)

  return schedule
