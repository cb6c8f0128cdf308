"""config and devices -> dtype of matmuls, and the form of the output head.

Comes in: a validated config. Goes out: what its 'auto' means on these devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections.config_dict import ConfigDict

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


def describe_head(chunk: int, dtype: np.dtype) -> str:
  """Returns a line on the form of the head.

  Args:
    chunk: as `head_chunk` returns it.
    dtype: of matmuls.
  """
  if chunk:
    return (
      f'head: chunks of {chunk:,} positions, logits computed again in the '
      'backward pass'
    )
  return f'head: {dtype} logits of all predicted tokens kept for the backward'
