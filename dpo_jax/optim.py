"""gradients -> update: optimizers at unit learning rate, and schedules.

Comes in: plain arguments. Goes out: optax transformations and functions of
the step. The learning rate is not here: the train step multiplies by it, so a
sweep over it shares one compile.

A function under `@optimizer` or `@schedule` can be named in a config; no other
file is edited. Its keyword-only arguments, with literal defaults, are the
config keys that it uses: config reads them from this source, without importing
jax, and refuses the others.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from dpo_jax import errors
from dpo_jax.types import Array, InputError, Params

# Names of optax's fields that hold second moments.
_SECOND = frozenset({'nu', 'v', 'v_row', 'v_col'})

# A second moment from here on is of no gradient that anything learns from.
MOST_MOMENT = 1e24
# A loss from here on is of no number that a model or a record gave.
MOST_LOSS = 1e24

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {}
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {}


def optimizer(make: Callable) -> Callable:
  """Registers `make(**moments) -> transformation` under the function's name."""
  OPTIMIZERS[make.__name__] = make
  return make


def schedule(make: Callable) -> Callable:
  """Registers `make(decay_steps, **options) -> f(step)` under its name."""
  SCHEDULES[make.__name__] = make
  return make


@optimizer
def adamw(
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  moments_dtype: str = 'float32',
):
  """AdamW, Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2."""
  # The second moment stays float32: bfloat16 has 8 bits, so that what .999
  # times a number leaves is that number again.
  return _held_in(moments_dtype, optax.scale_by_adam(b1, b2, eps), 'b1', b1)


@optimizer
def rmsprop(*, b2: float = 0.99, eps: float = 1e-8):
  """RMSprop as in torch, with its defaults (the DPO paper's code has them)."""
  # As in torch, eps is added after the root and moments start at zero.
  return optax.scale_by_rms(decay=b2, eps=eps, eps_in_sqrt=False)


@optimizer
def lion(*, b1: float = 0.9, b2: float = 0.99, moments_dtype: str = 'float32'):
  """Lion, Chen et al. 2023, arXiv:2302.06675, algorithm 2."""
  return _held_in(moments_dtype, optax.scale_by_lion(b1, b2), 'b2', b2)


@optimizer
def adafactor():
  """Adafactor without momentum, Shazeer and Stern 2018, arXiv:1804.04235."""
  # The clip is the paper's section 6: the root mean square of an update per
  # parameter array is at most 1.
  return optax.chain(
    optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
  )


def _held_in(
  dtype: str, inner: optax.GradientTransformation, key: str, decay: float
) -> optax.GradientTransformation:
  """`inner` with its first moment `mu` in `dtype` between two updates.

  An update itself is float32 arithmetic. optax's own mu_dtype is not used: it
  rounds the decay too, .999 to 1, and the moment grows without bound.

  Args:
    dtype: 'float32' gives `inner` itself.
    inner: has `mu` in its state.
    key: of the keyword that `mu` decays by.
    decay: its value.

  Raises:
    InputError: an update changes `mu` by less than `dtype` resolves.
  """
  if dtype == 'float32':
    return inner
  if 1 - decay < float(jnp.finfo(dtype).eps):
    raise errors.refuse(
      'config.optim.moments_dtype',
      f'{dtype!r} does not resolve what an update changes of the first moment '
      f'with {key}={decay:g}',
      f"use 'float32', or an optim.{key} of at most 0.99",
    )

  def cast(state, to):
    return state._replace(mu=optax.tree.cast(state.mu, to))

  def update(grads, state, params=None):
    updates, state = inner.update(grads, cast(state, jnp.float32), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(
    lambda params: cast(inner.init(params), dtype), update
  )


@schedule
def constant(decay_steps: int):
  """The full rate until the end."""
  del decay_steps
  return optax.constant_schedule(1.0)


@schedule
def linear(decay_steps: int, *, final_fraction: float = 0.0):
  """A straight line from 1 to final_fraction."""
  return optax.linear_schedule(1.0, final_fraction, decay_steps)


@schedule
def cosine(decay_steps: int, *, final_fraction: float = 0.0):
  """Half a cosine from 1 to final_fraction, as in arXiv:1608.03983, eq. 5."""
  return optax.cosine_decay_schedule(1.0, decay_steps, final_fraction)


def make_optimizer(
  name: str,
  *,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  **moments: float | str,
) -> optax.GradientTransformation:
  """Returns an optimizer; its updates are to be scaled by -learning_rate.

  Args:
    name: of a function under `@optimizer`.
    weight_decay: decoupled, scaled by the learning rate too; norms and biases
      are not decayed.
    clip_norm: largest global norm of the gradients; 0 = no clipping.
    **moments: keywords of that function; the others keep their defaults.

  Returns:
    An optax transformation. Moments take the parameters' dtype (float32),
    except a first moment of another `moments_dtype`.

  Raises:
    InputError: no optimizer of that name.
  """
  if name not in OPTIMIZERS:
    raise _unknown('config.optim.name', name, OPTIMIZERS)
  # Gradients are clipped before the moments see them. Decay comes last, so that
  # no moment scales it (decoupled).
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm > 0 else []
  steps.append(OPTIMIZERS[name](**moments))
  if weight_decay > 0:
    steps.append(optax.add_decayed_weights(weight_decay, decay_mask))
  return optax.chain(*steps)


def largest_moment(opt_state: Params) -> Array:
  """Returns the largest second moment, float32 []; 0 if there is none.

  Gradients of 1e15 are finite, and so is what they leave here: but for
  thousands of updates nothing would be learned any more.
  """
  leaves = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)
    if _SECOND & {getattr(key, 'name', '') for key in path}
  ]
  # maximum and max hand NaN on.
  each = [jnp.max(leaf).astype(jnp.float32) for leaf in leaves if leaf.size]
  return functools.reduce(jnp.maximum, each, jnp.zeros((), jnp.float32))


def decay_mask(params: Params) -> Params:
  """Returns True per leaf with weight decay: all but norms and biases."""

  def decays(path, _):
    name = jax.tree_util.keystr(path).lower()
    return 'norm' not in name and 'bias' not in name

  return jax.tree_util.tree_map_with_path(decays, params)


def make_schedule(
  name: str, *, num_steps: int, warmup_steps: int = 0, **options: float
) -> Callable[[Array], Array]:
  """Returns the multiplier of the learning rate by step, in [0, 1].

  The warm-up is linear: step t, from 0, has the multiplier
  (t + 1) / (warmup_steps + 1), so the first update is not lost to a rate of 0.

  Args:
    name: of a function under `@schedule`, used after the warm-up.
    num_steps: steps of the run; the decay ends there.
    warmup_steps: steps before the full rate.
    **options: keywords of that function; the others keep their defaults.

  Returns:
    A function from an int32 step to a float32 scalar.

  Raises:
    InputError: no schedule of that name.
  """
  if name not in SCHEDULES:
    raise _unknown('config.optim.schedule', name, SCHEDULES)
  decay = SCHEDULES[name](max(num_steps - warmup_steps, 1), **options)

  def multiplier(step):
    # `step` is traced: both values are computed and one is chosen.
    warm = (step + 1) / (warmup_steps + 1)
    late = decay(jnp.maximum(step - warmup_steps, 0))
    return jnp.where(step < warmup_steps, warm, late).astype(jnp.float32)

  return multiplier


def same_start(
  name: str,
  num_steps: int,
  longer: int,
  *,
  warmups: Sequence[int],
  **options: float,
) -> bool:
  """Whether a longer run has the learning rates of a shorter one, bit by bit.

  Args:
    name: of the schedule.
    num_steps: steps of the shorter run.
    longer: steps of the longer run.
    warmups: warm-up steps of the two.
    **options: keywords of the schedule.
  """
  steps = jnp.arange(num_steps, dtype=jnp.int32)
  rates = [
    make_schedule(name, num_steps=n, warmup_steps=w, **options)(steps)
    for n, w in zip((num_steps, longer), warmups)
  ]
  return bool(jnp.all(rates[0] == rates[1]))


def _unknown(key: str, name: str, known: Mapping[str, Callable]) -> InputError:
  return errors.refuse(
    key,
    f'{name!r} is not known',
    f'{errors.did_you_mean(name, known)}use one of {", ".join(known)}',
  )
