"""Settings of the allocators of a process: malloc, and jax's on a GPU.

On the CPU backend a step's temporary arrays come from malloc. As it is set by
default, glibc gives large blocks back to the kernel when they are freed, and
every step takes them again page by page: a fifth of the CPU time of a small
model's step, and half of an evaluation's.

On a GPU jax takes three quarters of the memory at its start, and a step that
needs more ends the run.

Changes no number.
"""

import ctypes
import glob
import os
import sys
from collections.abc import Mapping

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1  # bytes, the largest that mallopt takes
_SMALLER = (
  'a smaller train.batch_size or more train.microbatches, a smaller '
  'data.max_length, eval.batch_size, sample.batch_size, or a larger mesh.fsdp; '
  '--mode=plan estimates the need'
)
GPU_SHARE = 'XLA_CLIENT_MEM_FRACTION'
# Variables of a user who chose what jax takes of a GPU.
_GPU_CHOICES = (
  *(GPU_SHARE, 'XLA_PYTHON_CLIENT_MEM_FRACTION'),
  *('XLA_PYTHON_CLIENT_PREALLOCATE', 'XLA_PYTHON_CLIENT_ALLOCATOR'),
)
# Files of GPUs (CUDA, ROCm) and of TPUs.
_ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/kfd', '/dev/accel*', '/dev/vfio/*')


def keep_freed(environ: Mapping[str, str] = os.environ) -> bool:
  """Lets the process keep the memory that it frees; whether it does now.

  Only on Linux with glibc, and only where the CPU computes: a host that feeds
  accelerators gives memory back as before. Has its full effect before jax
  starts its threads, so it asks the machine for devices and not jax.

  Args:
    environ: the variables of the process; JAX_PLATFORMS is read.
  """
  if sys.platform != 'linux' or not _computes(environ):
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):  # another C library
    return False
  # One arena for all threads: memory that one frees serves the others.
  settings = (_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER)
  return all([mallopt(name, value) for name, value in settings])


def gpu_settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
  """Variables by which jax takes most of a GPU's memory; no other device reads.

  What is left is for the libraries: every measurement of docs/gpu_check.md had
  this share. {} if the user chose one, or none.
  """
  if any(name in environ for name in _GPU_CHOICES):
    return {}
  return {GPU_SHARE: '.92'}


def line_of(error: Exception) -> str:
  """Returns the line of an error for want of memory; '' of any other error."""
  # By name: jax may not be imported.
  is_jax = type(error).__name__ in ('JaxRuntimeError', 'XlaRuntimeError')
  words = ('RESOURCE_EXHAUSTED', 'Out of memory')
  is_full = is_jax and any(word in str(error) for word in words)
  if not is_full and not isinstance(error, MemoryError):
    return ''
  reason = (str(error).splitlines() or ['of the host'])[0]
  return f'out of memory ({reason:.200}); fix: {_SMALLER}'


def _computes(environ: Mapping[str, str]) -> bool:
  """Whether jax will compute on the CPU of this host."""
  platforms = environ.get('JAX_PLATFORMS', '')
  if platforms:
    return platforms == 'cpu'
  return not any(glob.glob(pattern) for pattern in _ACCELERATORS)
