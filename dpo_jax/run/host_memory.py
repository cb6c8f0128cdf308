"""Freed memory of the host -> memory of the next step: settings of malloc.

On the CPU backend a step's temporary arrays come from malloc. As it is set by
default, glibc gives large blocks back to the kernel when they are freed, and
every step takes them again page by page: a sixth of the CPU time of a small
model's step. Changes no number.
"""

import ctypes
import sys

import jax

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1  # bytes, the largest that mallopt takes


def keep_freed() -> bool:
  """Lets the process keep the memory that it frees; whether it does now.

  Only on Linux with glibc, and only where the CPU computes: a host that feeds
  accelerators gives memory back as before.
  """
  if sys.platform != 'linux' or jax.default_backend() != 'cpu':
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):  # another C library
    return False
  # One arena for all threads: memory that one frees serves the others.
  settings = (_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER)
  return all([mallopt(name, value) for name, value in settings])
