"""The name of a device -> what its maker promises: matmuls and memory.

Comes in: jax's device_kind, or the name by which a device is rented. Goes out:
a Chip. Measures nothing and imports no jax.
"""

from typing import NamedTuple

_GIB = 2**30


class Chip(NamedTuple):
  """The data sheet of one device."""

  words: str  # part of jax's device_kind
  flops: float  # matmuls in bfloat16, dense, operations per second
  memory: float  # bytes
  rented: str = ''  # name of a planned device; '' = it has none
  backend: str = 'gpu'
  # TPU slices: chips at most, axes of the torus, and the units per chip by
  # which a slice is named (v4 and v5p count TensorCores).
  most: int = 0
  axes: int = 0
  units: int = 1


# The first whose words fit is meant. Sources: Google's pages of Cloud TPU
# versions, NVIDIA's data sheets; of v5e the 15.75 GiB that XLA gives a program.
CHIPS = (
  Chip('TPU v6', 918e12, 31.25 * _GIB, 'v6e', 'tpu', 256, 2),
  Chip('TPU v5 lite', 197e12, 15.75 * _GIB, 'v5e', 'tpu', 256, 2),
  Chip('TPU v5e', 197e12, 15.75 * _GIB),
  Chip('TPU v5', 459e12, 95e9, 'v5p', 'tpu', 8960, 3, 2),
  Chip('TPU v4', 275e12, 32e9, 'v4', 'tpu', 4096, 3, 2),
  Chip('H100 PCIe', 756e12, 80e9),
  Chip('H100 NVL', 835e12, 94e9),
  Chip('H100', 989.4e12, 80e9, 'h100'),
  Chip('H200', 989.4e12, 141e9, 'h200'),
  Chip('A100', 312e12, 80e9, 'a100'),
)


def flops(device_kind: str) -> float:
  """Returns a device's matmuls in bfloat16 per second; 0 = unknown."""
  return next((c.flops for c in CHIPS if c.words in device_kind), 0.0)
