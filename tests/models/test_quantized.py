"""quantized: kernels near the floats and small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.models import adapters, architectures, quantized
from dpo_jax.storage import hf_checkpoint


def test_int8_holds_the_integers_of_a_channel_exactly():
  # qwix divides the largest value of a channel by 127.5, so one of 127.5 units
  # gives a scale of one unit (and is itself stored as 127).
  rng = np.random.default_rng(0)
  integers = rng.integers(-127, 128, (2, 5, 3)).astype(np.float32)
  integers[:, 0] = 127.5
  units = np.float32([0.5, 2.0, 8.0])
  params = {'layers': {'mlp': {'up': {'kernel': jnp.array(integers * units)}}}}
  stored = quantized.quantize(params, 'int8')['layers']['mlp']['up']['kernel']
  integers[:, 0] = 127
  np.testing.assert_array_equal(stored.qvalue, integers)
  np.testing.assert_allclose(stored.scale, np.broadcast_to(units, (2, 1, 3)))
  x_RD = rng.normal(size=(4, 5)).astype(np.float32)
  layer = jax.tree.map(lambda leaf: leaf[1], stored)
  got = quantized.dot(x_RD, layer, 1, dtype=jnp.float32)
  want = np.float64(x_RD) @ (integers[1] * units)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
  ('base', 'bits', 'largest'), [('int8', 8.5, 0.01), ('nf4', 5.1, 0.2)]
)
def test_quantised_kernels_are_near_and_small(
  golden_models, base, bits, largest
):
  folder = golden_models / 'llama'
  config = architectures.from_hf_config(hf_checkpoint.read_config(folder))
  params = hf_checkpoint.load_params(folder, config)
  stored = quantized.leaves(quantized.quantize(params, base))
  num_bits, num_weights = 0.0, 0
  for name, leaf in quantized.leaves(params).items():
    if not quantized.is_quantized(stored[name]):
      assert stored[name] is leaf  # norms, embedding, head: the same arrays
      continue
    again = quantized.dense(stored[name], jnp.float32)
    error = np.linalg.norm(again - leaf) / np.linalg.norm(leaf)
    assert 1e-4 < error < largest, name
    parts = (stored[name].qvalue, stored[name].scale)
    widths = [
      4 if x.dtype == jnp.uint4 else 8 * x.dtype.itemsize for x in parts
    ]
    num_bits += sum(w * x.size for w, x in zip(widths, parts))
    num_weights += leaf.size
  # 8 or 4 bits, and a float32 scale per channel or per block of 64 inputs.
  assert num_weights and num_bits / num_weights < bits
  again = adapters.merge(types.Adapted(quantized.quantize(params, base), None))
  kernel = 'layers/mlp/up/kernel'
  np.testing.assert_array_equal(
    again['layers']['mlp']['up']['kernel'],
    quantized.dense(stored[kernel], jnp.float32),
  )
