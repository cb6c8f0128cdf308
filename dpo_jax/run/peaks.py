"""The name of a device -> the fastest matmuls that its maker promises.

Comes in: jax's device_kind. Goes out: operations per second, which MFU refers
to. Measures nothing and imports no jax.
"""

# Matmuls in bfloat16, dense, in operations per second of one device, by words
# of jax's device_kind; the first that fits. Sources: Google's pages of Cloud
# TPU versions, NVIDIA's data sheets.
_FLOPS = {
  'TPU v6': 918e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v4': 275e12,
  'H100 PCIe': 756e12,
  'H100 NVL': 835e12,
  'H100': 989.4e12,
  'H200': 989.4e12,
  'A100': 312e12,
}


def flops(device_kind: str) -> float:
  """Returns a device's matmuls in bfloat16 per second; 0 = unknown."""
  return next((v for k, v in _FLOPS.items() if k in device_kind), 0.0)
