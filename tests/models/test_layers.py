"""layers: a norm reads its weights in float32, however they are held."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from dpo_jax.models import layers, presets


def test_a_norm_adds_to_its_scale_in_float32():
  # gemma's norms multiply by 1 + scale; bfloat16 spaces numbers near 1 by 2^-7.
  config = dataclasses.replace(presets.get('tiny'), width=2, norm_offset=1.0)
  scale = jnp.array([2**-10, 3 * 2**-10])
  params = {'params': {'scale': scale.astype(jnp.bfloat16)}}
  x = jnp.array([[[3.0, 3.0]]])
  # Without jit: XLA may keep more bits than it was asked for.
  got = layers.Norm(config, 'D').apply(params, x)
  np.testing.assert_allclose(got[0, 0], 1 + scale, rtol=1e-6)
