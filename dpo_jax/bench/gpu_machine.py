"""What a machine is, and the two rates that bound a step on it.

Comes in: nothing. Goes out: device, driver, versions, and the measured rates of
a large matmul and of a large copy, as JSON. Changes no setting of the device.

  python -m dpo_jax.bench.gpu_machine --json=FILE [--tiny]
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.run import peaks
from dpo_jax.storage import environment, files

_PACKAGES = ('jax', 'jaxlib', 'jax-cuda13-plugin', 'flax', 'optax', 'numpy')
_PACKAGES += ('ml-collections', 'grain', 'tokamax', 'fa4-jax', 'torch', 'trl')
_QUERY = 'name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit'


def describe(tiny: bool = False) -> dict[str, Any]:
  """Returns the machine and its rates; `tiny` measures small arrays."""
  device = jax.devices()[0]
  stats = device.memory_stats() or {}
  size = 512 if tiny else 8192
  return {
    'device': device.device_kind,
    'platform': device.platform,
    'memory_gb': stats.get('bytes_limit', 0) / 1e9,
    'nvidia-smi': _nvidia_smi(),
    'cores': os.cpu_count(),
    'python': platform.python_version(),
    'versions': {name: _version(name) for name in _PACKAGES},
    'commit': environment.commit(),
    'sheet_tflops': peaks.flops(device.device_kind) / 1e12,
    'bfloat16_tflops': _matmul(size, jnp.bfloat16) / 1e12,
    'float32_tflops': _matmul(size // 2, jnp.float32) / 1e12,
    'copy_tb_per_second': _copy(2**22 if tiny else 2**31) / 1e12,
  }


def _matmul(size: int, dtype) -> float:
  """Operations per second of a square matmul of random numbers."""
  x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
  x = x.astype(dtype)
  return 2 * size**3 / _seconds(jax.jit(lambda a: a @ a), x)


def _copy(size: int) -> float:
  """Bytes per second, read and written, of a copy of `size` bytes."""
  x = jax.random.bits(jax.random.key(0), (size,), jnp.uint8)
  # A plain copy may be elided; one operation per byte is hidden by the memory.
  return 2 * size / _seconds(jax.jit(lambda a: a ^ jnp.uint8(1)), x)


def _seconds(run, x) -> float:
  jax.block_until_ready(run(x))
  times = []
  for _ in range(10):
    began = time.perf_counter()
    jax.block_until_ready(run(x))
    times.append(time.perf_counter() - began)
  return sorted(times)[len(times) // 2]


def _nvidia_smi() -> str:
  words = ['nvidia-smi', f'--query-gpu={_QUERY}', '--format=csv,noheader']
  try:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
  except (OSError, subprocess.TimeoutExpired):
    return 'none'
  return done.stdout.strip() or 'none'


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'none'


def main(words: list[str]) -> int:
  """Writes the file that --json names."""
  flags = dict(word.removeprefix('--').partition('=')[::2] for word in words)
  files.write_json(flags['json'], describe('tiny' in flags))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
