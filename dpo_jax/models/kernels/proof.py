"""A kernel against dense attention, value and gradient, on random numbers.

Comes in: a kernel's choice and the shape of a model. Goes out: errors of the
kernel and of dense attention in the same dtype, both against dense attention in
float32. Runs on the default device; a run calls it before its first step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.models.kernels import registry
from dpo_jax.types import Array, Rows

# Slots of the row on which a run proves its kernel, at most.
LONGEST = 512
# Errors that are always allowed, of values of deviation 1 and their gradients.
_VALUE, _GRADIENT = 1e-5, 1e-4


class Heads(NamedTuple):
  """The attention of one layer."""

  num_heads: int
  num_kv_heads: int
  head_size: int
  scale: float
  window: int | None
  softcap: float | None


class Errors(NamedTuple):
  """Largest absolute errors over all tokens, as shares of the largest value.

  A kernel is right if its errors are at most twice those of dense attention in
  the same dtype, or in float32 at most 1e-5 (value) and 1e-4 (gradient).
  """

  value: float
  gradient: float  # the largest of those of queries, keys and values
  dense_value: float
  dense_gradient: float

  @property
  def are_small(self) -> bool:
    """Whether the kernel is right; NaN is not small."""
    return self.value <= max(_VALUE, 2 * self.dense_value) and (
      self.gradient <= max(_GRADIENT, 2 * self.dense_gradient)
    )


def problem(
  choice: registry.Choice, config: DecoderConfig, dtype: Any, row_length: int
) -> str:
  """Returns how a kernel differs from dense attention; '' if it does not.

  Args:
    choice: the kernel.
    config: its heads, scale, soft cap and each of its windows are used.
    dtype: of queries, keys and values.
    row_length: slots of the run's rows.
  """
  rows = make_rows(min(row_length, LONGEST), choice.branches)
  for window in sorted({*config.layer_windows} or {0}):
    heads = Heads(
      config.num_heads,
      config.num_kv_heads,
      config.head_size,
      (config.query_scalar or config.head_size) ** -0.5,
      window or None,
      config.attention_softcap,
    )
    try:
      errors = compare(choice, heads, rows, dtype)
    except Exception as e:  # of a compiler, of any kind
      return f'{type(e).__name__}: {str(e).splitlines()[0]}'
    if not errors.are_small:
      return (
        f'with window {window or "none"} its value differs from that of dense '
        f'attention by {errors.value:.1e} (dense in {jnp.dtype(dtype)}: '
        f'{errors.dense_value:.1e}) and its gradient by {errors.gradient:.1e} '
        f'({errors.dense_gradient:.1e})'
      )
  return ''


def compare(
  choice: registry.Choice, heads: Heads, rows: Rows, dtype: Any, seed: int = 0
) -> Errors:
  """Returns the errors of a kernel on rows, for random numbers."""
  # numpy's: jax's would be several programs, each compiled.
  rng, shape = np.random.default_rng(seed), rows.branch.shape
  qkv = [
    jnp.asarray(rng.standard_normal((*shape, n, heads.head_size)), dtype)
    for n in (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)
  ]
  out = rng.standard_normal((*shape, heads.num_heads, heads.head_size))
  # Padding has other values in other kernels, and no cotangent.
  real = np.asarray(rows.prompt_id)[..., None, None] > 0
  out = jnp.asarray(np.where(real, out, 0), jnp.float32)
  # Dense attention in one block: each more has matmuls of shapes of its own,
  # of which a GPU times several programs.
  block = shape[1]

  def run(choice, qkv, out):
    options = {'scale': heads.scale, 'softcap': heads.softcap}

    def attend(qkv):
      plan = registry.prepare(choice, rows)
      return registry.attend(
        choice, *qkv, rows, plan, block=block, window=heads.window, **options
      )

    value, pullback = jax.vjp(attend, qkv)
    return jnp.where(real, value, 0), pullback(out.astype(value.dtype))[0]

  def run_jitted(choice, *args):
    jitted = jax.jit(lambda *args: run(choice, *args), **quick_compile())
    got = jitted(*args)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), got)

  with jax.default_matmul_precision('highest'):
    wide = [x.astype(jnp.float32) for x in qkv]
    # The cotangent that both get is the one rounded to the dtype.
    want = run_jitted(registry.DENSE, wide, out.astype(dtype).astype('float32'))
  got, dense = (run_jitted(c, qkv, out) for c in (choice, registry.DENSE))
  return Errors(*_errors(got, want), *_errors(dense, want))


def quick_compile() -> dict[str, Any]:
  """Returns options of jax.jit for what runs once: no timing of matmuls."""
  if jax.default_backend() != 'gpu':
    return {}
  return {'compiler_options': {'xla_gpu_autotune_level': 0}}


def make_rows(length: int, branches: int) -> Rows:
  """Two prompts with branches, then padding, in a row of its own.

  The second prompt has one branch fewer, or one.
  """
  pieces = []  # (prompt, branch, slots)
  unit = max(1, length // (3 * branches + 5))
  for prompt, count in ((1, branches), (2, max(branches - 1, 1))):
    pieces.append((prompt, 0, unit + prompt))
    pieces += [(prompt, k, unit + k % 3) for k in range(1, count + 1)]
  prompts, numbers, positions = (np.zeros(length, np.int32) for _ in range(3))
  start, trunk = 0, 0
  for prompt, branch, slots in pieces:
    stop = min(start + slots, length)
    prompts[start:stop], numbers[start:stop] = prompt, branch
    first = trunk if branch else 0
    positions[start:stop] = first + np.arange(stop - start)
    trunk = trunk if branch else slots
    start = stop
  zeros = np.zeros((1, length), np.int32)
  row = positions[None], prompts[None], numbers[None]
  return Rows(zeros, *row, zeros, zeros - 1)


def error(a: Array, b: Array) -> float:
  """Returns the largest difference as a share of the largest b; NaN if any."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  # max passes over NaN in no place: a NaN makes it NaN.
  return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _errors(got: tuple[Array, list], want: tuple[Array, list]):
  """Largest errors of the value and of the gradients, as shares."""
  gradients = [error(a, b) for a, b in zip(got[1], want[1], strict=True)]
  # Python's max would drop a NaN.
  return error(got[0], want[0]), float(np.max(gradients))
