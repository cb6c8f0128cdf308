"""The parts of a layer that act on each position by itself.

Comes in: a DecoderConfig and dimension letters; then states [R, L, ...]. Goes
out: flax modules and the shapes of their parameters. Mixes no positions
(attention.py) and knows no rows. The modules read their variables and never
create them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax.models import placement, quantized
from dpo_jax.models.decoder_config import DecoderConfig

ACTIVATIONS = {
  'silu': nn.silu,
  'gelu': functools.partial(nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
  'relu': nn.relu,
}


class Mlp(nn.Module):
  """down(act(gate x) * up x), or down(act(up x))."""

  config: DecoderConfig
  dtype: Any

  @nn.compact
  def __call__(self, x_RLD):
    """Returns the output [R, L, D]."""
    linear = functools.partial(Linear, self.dtype)
    act, bias = ACTIVATIONS[self.config.activation], self.config.mlp_bias
    h_RLF = linear('D', 'F', bias, name='up')(x_RLD)
    if self.config.gated_mlp:
      h_RLF = act(linear('D', 'F', bias, name='gate')(x_RLD)) * h_RLF
    else:
      h_RLF = act(h_RLF)
    return linear('F', 'D', bias, name='down')(h_RLF)


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last len(dims) axes, in float32."""

  config: DecoderConfig
  dims: str

  @nn.compact
  def __call__(self, x):
    """Returns x normalised, in its dtype."""
    config, axes = self.config, tuple(range(-len(self.dims), 0))
    scale = self._param('scale')
    y = x.astype(jnp.float32)
    if config.norm == 'layer':
      y -= y.mean(axes, keepdims=True)
    y *= jax.lax.rsqrt((y * y).mean(axes, keepdims=True) + config.norm_eps)
    y *= scale + config.norm_offset
    if config.norm == 'layer':
      y += self._param('bias')
    return y.astype(x.dtype)

  def _param(self, name):
    sizes = shape(self.config, self.dims)
    value = self.param(name, nn.initializers.zeros, sizes, jnp.float32)
    # A frozen model may be held in bfloat16.
    return value.astype(jnp.float32)


class Linear(nn.Module):
  """A linear map from dimensions `into` to `out`, plus an adapter's A B."""

  dtype: Any
  into: str
  out: str
  use_bias: bool

  @nn.compact
  def __call__(self, x):
    """Returns [R, L, ...] with the sizes of `out` in place of `into`."""

    # Not self.param, whose check of shapes does not know QArrays.
    def weight(name, collection='params'):
      return self.get_variable(collection, name)

    dot = functools.partial(quantized.dot, dtype=self.dtype)
    y = dot(x, weight('kernel'), len(self.into))
    if self.use_bias:
      y += weight('bias').astype(self.dtype)
    # x A, then B: never A B, which is as large as the kernel. B comes scaled.
    if self.has_variable('adapter', 'a'):
      within = dot(x, weight('a', 'adapter'), len(self.into))
      y += dot(within, weight('b', 'adapter'), 1)
    return y


class Embed(nn.Module):
  """A table [ids, D] as a map from ids to states."""

  dtype: Any
  mesh: Mesh | None  # on which rows are split

  @nn.compact
  def __call__(self, ids_RL):
    """Returns the states [R, L, D]."""
    table = self.get_variable('params', 'embedding')
    return placement.look_up(table, ids_RL, self.dtype, self.mesh)


def shape(config: DecoderConfig, dims: str) -> tuple[int, ...]:
  """Returns the sizes of dimension letters, such as 'HK'."""
  return tuple(config.sizes[d] for d in dims)
