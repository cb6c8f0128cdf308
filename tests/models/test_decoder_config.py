"""decoder_config: rotary frequencies, dimensions of parameters.

The modules' own parameters are compared with param_dims in test_decoder.py.
"""

import numpy as np

from dpo_jax.models.decoder_config import AXES, DecoderConfig, Rope, param_dims


def test_rope_scalings():
  # transformers 5.23, _compute_llama3_parameters for theta 500000, factor 8,
  # low 1, high 4, original 64, head of 16 (the golden llama3_rope_tied).
  rope = Rope(
    theta=5e5,
    scaling='llama3',
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_positions=64,
  )
  want = [1.0, 0.07940301, 0.004700754, 0.0009115831]
  want += [0.0001767767, 3.428102e-05, 6.64787e-06, 1.289173e-06]
  np.testing.assert_allclose(rope.frequencies(16), want, rtol=1e-6)
  linear = Rope(scaling='linear', factor=4.0).frequencies(4)
  np.testing.assert_allclose(linear, [1 / 4, 1e-2 / 4])  # theta^(-2i/n) / 4
  assert Rope(scaling='none').frequencies(4) == [0.0, 0.0]


def test_parameters_of_a_decoder_with_every_part_by_hand():
  config = DecoderConfig(
    vocab_size=11,
    width=4,
    mlp_width=6,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_size=2,
    max_positions=5,
    norm='layer',
    post_norm=True,
    learned_positions=True,
    query_key_norm='all',
    qkv_bias=True,
    head_bias=True,
    gated_mlp=False,
  )
  dims = param_dims(config)
  assert set(''.join(dims.values())) <= set(AXES) == set(config.sizes)
  counts = {
    name: np.prod([config.sizes[d] for d in letters])
    for name, letters in dims.items()
  }
  # Query 16 + 4, key and value 8 + 2 each, out 16; norms of 4 and 2 for query
  # and key; MLP 24 twice; four layer norms of scale and bias.
  layer = 20 + 2 * 10 + 16 + 4 + 2 + 2 * 24 + 4 * 8
  # Embedding, positions, last norm, head and its bias.
  assert sum(counts.values()) == 3 * layer + 44 + 20 + 8 + 44 + 11
