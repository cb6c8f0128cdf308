"""peaks: the data sheet of a device, by its name."""

import pytest

from dpo_jax.run import peaks


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('NVIDIA H100 80GB HBM3', 989.4e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('cpu', 0),
  ],
)
def test_peaks_are_of_the_device(kind, peak):
  assert peaks.flops(kind) == peak
