"""config and devices -> dtype of matmuls, kernel of attention, form of head.

Comes in: a validated config, the shape of the model, the plans of its rows.
Goes out: choices that leave the maths the same, and a line that names them. No
kernel runs unproven: before the first step it is compared with dense attention
on this machine's device, in value and gradient, on a row of the run's shapes.
"""

import os
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.data.batches import pipeline
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.models.kernels import proof, registry

# Variables with flags that change what XLA compiles.
_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'JAX_OPTIMIZATION_LEVEL')
# Without it a GPU adds in the order in which its threads come.
_BITWISE = '--xla_gpu_deterministic_ops'
# Positions of the head that are projected at one time, by kind of device. The
# gradient of the head is read and written once per chunk, so that fast matmuls
# want large ones.
HEAD_CHUNKS = {'cpu': 1024, 'gpu': 4096, 'tpu': 2048}
# Share of a device's memory that a plan may fill with kept logits: the compiler
# takes up to half as much again as the plan says.
_MOST_PLANNED = 0.6


def compute_dtype(config: ConfigDict) -> np.dtype:
  """Returns the dtype of matmuls: 'auto' is float32 on CPU, else bfloat16."""
  name = config.precision.compute
  if name == 'auto':
    name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return jnp.dtype(name)


def head_chunk(config: ConfigDict) -> int:
  """Returns the positions of a chunk of the head; 0 = logits are kept."""
  chunk = config.precision.head_chunk
  if chunk == 'auto':
    return HEAD_CHUNKS.get(jax.default_backend(), HEAD_CHUNKS['gpu'])
  return chunk


def remat(config: ConfigDict, backend: str = '') -> str:
  """Returns what the backward pass recomputes, one of decoder_config.REMAT.

  Without it, residuals of the steps between matmuls are stored: on a GPU three
  to four times the memory, and their way there and back.
  """
  if config.model.remat != 'auto':
    return config.model.remat
  return 'none' if (backend or jax.default_backend()) == 'cpu' else 'dots'


def room_for_logits(config: ConfigDict, is_planned: bool) -> float:
  """Returns the bytes that a plan with kept logits may have on each device.

  0 = none are kept. That needs 'auto', and one process on devices that tell
  their memory: several processes could choose differently and wait forever.
  """
  if config.precision.head_chunk != 'auto' or is_planned:
    return 0.0
  if jax.process_count() > 1:
    return 0.0
  stats = jax.local_devices()[0].memory_stats() or {}
  return _MOST_PLANNED * stats.get('bytes_limit', 0)


def unroll(config: ConfigDict) -> int:
  """Returns the layers per step of the loop over them; 0 = no loop."""
  return config.model.scan_unroll if config.model.scan_layers else 0


def choose_kernel(
  config: ConfigDict,
  model: DecoderConfig,
  plans: Iterable[pipeline.Plan | None],
  is_planned: bool = False,
  backend: str = '',
) -> registry.Choice:
  """Returns what computes attention.

  'auto' takes the first kernel for this backend that fits the model and equals
  dense attention. If there is none it is dense attention; a line says why.

  Args:
    config: model.attention and precision.compute.
    model: shape of the decoder.
    plans: of the rows that the run reads; None for a part that is not read.
    is_planned: whether the devices need not exist: then nothing is proven.
    backend: of planned devices; '' = not known, and 'auto' is dense.

  Raises:
    InputError: a kernel was named that cannot run here, or is wrong here.
  """
  name = config.model.attention
  if name == 'dense' or (name == 'auto' and is_planned and not backend):
    return registry.DENSE
  backend = backend or jax.default_backend()
  plans = [plan for plan in plans if plan is not None]
  branches = max((plan.most_branches for plan in plans), default=1)
  prompts = max((plan.most_prompts for plan in plans), default=1)
  row_length = max((plan.row_length for plan in plans), default=proof.LONGEST)
  dtype = compute_dtype(config)
  names = registry.AUTO.get(backend, ()) if name == 'auto' else (name,)
  for name in names:
    choice = registry.Choice(name)
    is_plain = registry.KERNELS[name].is_plain
    if not is_plain:
      choice = registry.Choice(name, branches, prompts, backend == 'cpu')
    if is_planned and config.model.attention != 'auto':
      return choice
    problem, fix = registry.problem(name, model, dtype, backend)
    if not problem and not is_plain and not is_planned:
      problem = proof.problem(choice, model, dtype, row_length)
    if not problem:
      return choice
    if config.model.attention != 'auto':
      raise errors.refuse(
        'config.model.attention', f'{name!r}: {problem}', f'{fix}use auto'
      )
    logging.warning('attention is not %s: %s', name, problem)
  return registry.DENSE


def describe(
  choice: registry.Choice, chunk: int, config: ConfigDict, is_here: bool = True
) -> str:
  """Returns a line on the forms of attention and head, and on XLA's flags.

  Args:
    choice: as `choose_kernel` returns it.
    chunk: as `head_chunk` returns it.
    config: of the run.
    is_here: whether the devices exist, and the kernel was proven on one.
  """
  name = choice.name
  if choice.interpret:
    name += ' (interpreted on CPU: slow)'
  kernel = registry.KERNELS.get(choice.name)
  if kernel and not kernel.is_plain:
    proven = 'equal to dense attention on a row of this run'
    name += f', {proven if is_here else "to be proven on those devices"}'
  head = f'chunks of {chunk:,} positions'
  if not chunk:
    head = f'{compute_dtype(config)} logits kept for the backward pass'
  flags = [f'{k}={os.environ[k]}' for k in _FLAGS if os.environ.get(k)]
  return (
    f'attention: {name}; head: {head}; {", ".join(flags) or "no XLA flags"}'
    + (_not_bitwise() if is_here else '')
  )


def _not_bitwise() -> str:
  """Words on a GPU whose sums come in any order; '' where bits are kept."""
  is_kept = re.search(
    rf'{_BITWISE}(=true|=1|\s|$)', os.environ.get('XLA_FLAGS', ''), re.I
  )
  if jax.default_backend() != 'gpu' or is_kept:
    return ''
  return (
    f'; not bitwise from run to run (XLA_FLAGS={_BITWISE}=true makes it so)'
  )
