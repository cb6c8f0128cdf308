"""Which attention a decoder runs, by name.

Comes in: the name of a kernel and the shape of a model; then queries, keys,
values and Rows. Goes out: why a kernel cannot run here, or the attended values.
models/attention.py is the oracle: every kernel gives what it gives.
"""

import functools
import importlib
import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dpo_jax.models import attention
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.models.kernels import documents, intervals
from dpo_jax.types import ROW_AXES, Array, Rows


class Choice(NamedTuple):
  """A kernel, and the constants that it needs besides the rows."""

  name: str = 'dense'  # of decoder_config.ATTENTION, except 'auto'
  branches: int = 1  # documents: most branches of a prompt
  prompts: int = 1  # cudnn: most prompts of a row
  interpret: bool = False  # whether a TPU kernel runs on CPU, for proofs
  is_planned: bool = False  # whether only its shapes are asked for


class Kernel(NamedTuple):
  """How a kernel is called; its module is imported when it is used."""

  backends: tuple[str, ...]  # of jax.default_backend()
  on_documents: bool  # else on shared rows, with intervals
  package: str = 'jax'  # which has it
  has_softcap: bool = False
  has_float32: bool = False
  names_output: bool = False  # 'attention', so that remat policies keep it
  head_sizes: tuple[int, ...] = ()  # that it has; () = all
  options: tuple[str, ...] = ()  # fields of Choice that it takes
  is_plain: bool = False  # XLA alone, no device's own code: tests prove it


DENSE = Choice()
KERNELS = {
  'blocks': Kernel(
    ('cpu', 'gpu', 'tpu'),
    False,
    has_softcap=True,
    has_float32=True,
    names_output=True,
    is_plain=True,
  ),
  # On CPU it is interpreted: slow, for proofs.
  'splash': Kernel(
    ('tpu', 'cpu'),
    True,
    has_softcap=True,
    has_float32=True,
    options=('interpret',),
  ),
  'triton': Kernel(
    ('gpu', 'cpu'),
    False,
    has_softcap=True,
    has_float32=True,
    names_output=True,
    head_sizes=(16, 32, 64, 128, 256),
    options=('interpret',),
  ),
  'cudnn': Kernel(('gpu',), True, options=('prompts',)),
  'fa4': Kernel(('gpu',), False, package='fa4_jax'),
  'tokamax': Kernel(('gpu',), True, package='tokamax', has_softcap=True),
}
# Primitives of kernels that name no residuals themselves: what they return is
# what their backward pass reads, and a remat policy may keep it.
PRIMITIVES = ('dot_product_attention_fwd_wrapper',)
# What 'auto' tries, by backend; dense is the last resort everywhere.
AUTO = {'cpu': ('blocks',), 'tpu': ('splash',), 'gpu': ('triton', 'cudnn')}


def problem(
  name: str, config: DecoderConfig, dtype: Any, backend: str
) -> tuple[str, str]:
  """Returns why a kernel cannot run a model here, and the fix; '' if it can.

  Args:
    name: of `KERNELS`.
    config: shape of the decoder.
    dtype: of queries, keys and values.
    backend: of jax.default_backend().
  """
  kernel = KERNELS[name]
  if backend not in kernel.backends:
    return f'it runs on {" or ".join(kernel.backends)}, this is {backend}', ''
  if importlib.util.find_spec(kernel.package) is None:
    return (
      f'the package {kernel.package} is not there',
      f'pip install {kernel.package.replace("_", "-")}, or ',
    )
  if config.attention_softcap and not kernel.has_softcap:
    return 'it has no soft cap, which the model needs', ''
  sizes = kernel.head_sizes
  if sizes and config.head_size not in sizes:
    return f'it has no heads of {config.head_size}, only of {list(sizes)}', ''
  if jnp.dtype(dtype) == jnp.float32 and not kernel.has_float32:
    return 'it has no float32', 'precision.compute=bfloat16, or '
  return '', ''


def planned(choice: Choice) -> Choice:
  """Returns the kernel in a form whose shapes can be traced on this machine.

  A kernel of a GPU asks for the GPU, or for a package, when it is traced.
  """
  backends = KERNELS[choice.name].backends if choice.name in KERNELS else ()
  is_away = backends == ('gpu',) and jax.default_backend() != 'gpu'
  return choice._replace(is_planned=is_away)


def names_output(choice: Choice) -> bool:
  """Returns whether the kernel itself names its output 'attention'.

  Named twice, it would be kept twice.
  """
  is_there = choice.name in KERNELS and not choice.is_planned
  return is_there and KERNELS[choice.name].names_output


def prepare(choice: Choice, rows: Rows) -> Any:
  """Returns what a kernel needs of rows, the same for all layers."""
  if choice.name == 'dense':
    return None
  if not KERNELS[choice.name].on_documents:
    return intervals.make_intervals(rows)
  length = rows.branch.shape[1]
  slots = documents.num_slots(length)
  if choice.branches == 1 and slots == length:
    return rows.prompt_id  # rows are documents already
  return documents.make_documents(rows, choice.branches, slots)


def attend(
  choice: Choice,
  q_RLHK: Array,
  k_RLGK: Array,
  v_RLGK: Array,
  rows: Rows,
  plan: Any,
  *,
  block: int,
  scale: float,
  window: Array | int | None,
  softcap: float | None,
  mesh: Mesh | None = None,
) -> Array:
  """Attention under the branch rule by the chosen kernel.

  Arguments and result are those of `attention.branch_attention`, except that
  padding is 0 where a kernel runs on documents.

  Args:
    choice: the kernel.
    q_RLHK: queries.
    k_RLGK: keys.
    v_RLGK: values.
    rows: prompts and branches.
    plan: of `prepare`.
    block: queries per block, dense only.
    scale: factor on the dot products.
    window: a constant for all but dense.
    softcap: as there.
    mesh: whose ROW_AXES split rows and whose 'tensor' splits heads; None = one
      device.
  """
  if choice.name == 'dense':
    return attention.branch_attention(
      q_RLHK,
      k_RLGK,
      v_RLGK,
      rows,
      block=block,
      scale=scale,
      window=window,
      softcap=softcap,
    )
  name = 'stand_in' if choice.is_planned else choice.name
  module = importlib.import_module(f'{__package__}.{name}')
  constants = {k: getattr(choice, k) for k in KERNELS[choice.name].options}
  kernel = functools.partial(
    module.attend, scale=scale, window=window, softcap=softcap, **constants
  )

  def run(q_RLHK, k_RLGK, v_RLGK, positions_RL, plan):
    if isinstance(plan, documents.Documents):
      return documents.attend(kernel, q_RLHK, k_RLGK, v_RLGK, plan)
    if not KERNELS[choice.name].on_documents:
      return kernel(q_RLHK, k_RLGK, v_RLGK, plan, positions_RL)
    return kernel(q_RLHK, k_RLGK, v_RLGK, plan)

  if mesh is not None:
    run = _on_mesh(run, mesh, q_RLHK.shape, k_RLGK.shape)
  return run(q_RLHK, k_RLGK, v_RLGK, rows.positions, plan)


def _on_mesh(run, mesh: Mesh, q_shape, k_shape):
  """Each device runs the kernel on its own rows and heads.

  The compiler cannot split a kernel: without this it would gather all rows.
  """
  parts = [q_shape[2] % mesh.shape['tensor'], k_shape[2] % mesh.shape['tensor']]
  heads = None if any(parts) else 'tensor'
  rows = PartitionSpec(ROW_AXES)
  states = PartitionSpec(ROW_AXES, None, heads, None)
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(states, states, states, rows, rows),
    out_specs=states,
    check_vma=False,
  )
