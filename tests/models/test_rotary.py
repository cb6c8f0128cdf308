"""Rotation against complex multiplication."""

import numpy as np
import pytest

from dpo_jax.models import rotary


@pytest.mark.parametrize('interleaved', [False, True])
def test_rotation_is_complex_multiplication(interleaved):
  rng = np.random.default_rng(1)
  x = rng.normal(size=(1, 5, 2, 8)).astype(np.float32)
  positions = np.array([[0, 1, 2, 7, 100]])
  frequencies = np.array([1.0, 0.1, 0.01], np.float32)  # 6 of 8 channels
  tables = rotary.rope_tables(positions, frequencies)
  got = rotary.rotate(x, *tables, interleaved)
  first, second = (
    (slice(0, 6, 2), slice(1, 6, 2))
    if interleaved
    else (slice(0, 3), slice(3, 6))
  )
  turned = (x[..., first] + 1j * x[..., second]) * np.exp(
    1j * positions[0, :, None, None] * frequencies
  )
  np.testing.assert_allclose(got[..., first], turned.real, atol=1e-5)
  np.testing.assert_allclose(got[..., second], turned.imag, atol=1e-5)
  np.testing.assert_array_equal(got[..., 6:], x[..., 6:])
