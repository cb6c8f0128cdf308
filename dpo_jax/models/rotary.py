"""Rotary positions: tables of cosines and sines, and their rotation.

Comes in: a DecoderConfig and Rows, then queries or keys. Goes out: tables
[kinds, R, L, n], then rotated queries or keys. The constants of a kind of
scaling are decoder_config.Rope's.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.types import Array, Rows


def make_tables(config: DecoderConfig, rows: Rows, is_cached: bool) -> Any:
  """Returns cosines and sines [kinds, R, L, n] of all kinds of rotation.

  Args:
    config: its `ropes`; without any the result is None.
    rows: positions and, where the length of a text counts, prompts.
    is_cached: whether `rows` follow tokens in a cache.
  """
  if not config.ropes:
    return None
  size = config.rotary_size or config.head_size
  tables = []
  for rope in config.ropes:
    frequencies = _frequencies(rope, size, rows, is_cached)
    table = rope_tables(rows.positions, frequencies)
    if rope.attention_factor != 1:
      table = tuple(rope.attention_factor * part for part in table)
    tables.append(table)
  return tuple(jnp.stack(table) for table in zip(*tables))


def rope_tables(positions_RL: Array, frequencies: Array) -> tuple[Array, Array]:
  """Returns cosine and sine of position times frequency, float32.

  Args:
    positions_RL: positions of tokens in their texts.
    frequencies: [n] or [R, L, n], radians per position.

  Returns:
    Two arrays [R, L, n].
  """
  angles = positions_RL[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def text_lengths(rows: Rows) -> Array:
  """Returns, per token, the tokens of the longest text of its prompt, [R, L].

  The prompt of a row's branches is one trunk, so its rotation is one: that of
  the longest answer, as where the answers are one padded batch.
  """
  # A branch's last token is predicted and not among its inputs.
  ends_RL = rows.positions + 1 + (rows.branch > 0)
  num_prompts = rows.prompt_id.shape[1] + 1

  def longest(ends_L, prompt_L):
    return jax.ops.segment_max(ends_L, prompt_L, num_prompts)[prompt_L]

  return jax.vmap(longest)(ends_RL, rows.prompt_id)


def dynamic_frequencies(rope, rotary_size: int, lengths_RL: Array) -> Array:
  """Returns radians per position under 'dynamic' scaling, [R, L, n].

  With N tokens of a text, L original positions and factor s the base is
  theta (s N / L - (s - 1))^(n / (n - 2)) where N > L: "dynamic NTK", as
  transformers' `_compute_dynamic_ntk_parameters` has it.

  Args:
    rope: a decoder_config.Rope.
    rotary_size: n, rotated channels of a head.
    lengths_RL: tokens of the text of each token.
  """
  share_RL = jnp.maximum(lengths_RL / rope.original_positions, 1.0)
  growth_RL = rope.factor * share_RL - (rope.factor - 1)
  power = rotary_size / (rotary_size - 2)
  log_base_RL = math.log(rope.theta) + power * jnp.log(growth_RL)
  channels = jnp.arange(0, rotary_size, 2) / rotary_size
  return jnp.exp(-log_base_RL[..., None] * channels)


def rotate(
  x_RLHK: Array, cos_RLN: Array, sin_RLN: Array, interleaved: bool
) -> Array:
  """Rotary positions (Su et al. 2021, arXiv:2104.09864, equation 34).

  The first 2n channels of a head are rotated in pairs, the others are kept.

  Args:
    x_RLHK: queries or keys.
    cos_RLN: cosines of `rope_tables`.
    sin_RLN: sines.
    interleaved: pairs are channels (2i, 2i + 1), else (i, i + n).

  Returns:
    [R, L, H, K] in the dtype of `x_RLHK`.
  """
  n = cos_RLN.shape[-1]
  rotated, kept = jnp.split(x_RLHK, [2 * n], axis=-1)
  cos, sin = cos_RLN[:, :, None], sin_RLN[:, :, None]
  if interleaved:
    x, y = rotated[..., 0::2], rotated[..., 1::2]
    # Stacked last and flattened, the pairs are interleaved again.
    out = jnp.stack([x * cos - y * sin, y * cos + x * sin], axis=-1)
    out = out.reshape(rotated.shape)
  else:
    x, y = rotated[..., :n], rotated[..., n:]
    out = jnp.concatenate([x * cos - y * sin, y * cos + x * sin], axis=-1)
  return jnp.concatenate([out.astype(x_RLHK.dtype), kept], axis=-1)


def _frequencies(rope, size: int, rows: Rows, is_cached: bool) -> Array:
  """Radians per position, [n], or [R, L, n] where texts may be long."""
  plain = jnp.asarray(rope.frequencies(size))
  # Of a text that is still being sampled the length is not known: prompts that
  # could become long are refused by run/sample.py.
  fits = rows.positions.shape[1] < rope.original_positions
  if not rope.by_length or is_cached or fits:
    return plain
  lengths_RL = text_lengths(rows)
  if rope.scaling == 'dynamic':
    return dynamic_frequencies(rope, size, lengths_RL)
  is_long_RL = lengths_RL > rope.original_positions
  long = jnp.asarray(rope.frequencies(size, is_long=True))
  return jnp.where(is_long_RL[..., None], long, plain)
