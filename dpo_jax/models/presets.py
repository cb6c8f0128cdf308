"""Named decoder shapes, for random weights and dry runs.

Comes in: a name. Goes out: a DecoderConfig. Holds no weights.
"""

import dataclasses
import difflib

from dpo_jax.models.decoder_config import DecoderConfig, Rope
from dpo_jax.types import InputError

_PRESETS = {
  # Bytes; learns the quickstart's rule in a minute on two cores.
  'tiny': DecoderConfig(
    vocab_size=320,
    width=64,
    mlp_width=176,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_size=16,
    tied=True,
  ),
  # The shape that scripts/benchmark.py compares trainers on.
  'bench-cpu': DecoderConfig(
    vocab_size=8192,
    width=256,
    mlp_width=688,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_size=32,
  ),
  'llama-3.2-1b': DecoderConfig(
    vocab_size=128_256,
    width=2048,
    mlp_width=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_size=64,
    max_positions=131_072,
    tied=True,
    norm_eps=1e-5,
    ropes=(
      Rope(
        theta=500_000.0,
        scaling='llama3',
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_positions=8192,
      ),
    ),
  ),
}


def names() -> tuple[str, ...]:
  """The names that `get` knows."""
  return tuple(_PRESETS)


def get(name: str, *, vocab_size: int | None = None) -> DecoderConfig:
  """The shape of that name.

  Args:
    name: one of `names()`.
    vocab_size: in place of the preset's own.

  Raises:
    InputError: no preset of that name.
  """
  if name not in _PRESETS:
    near = difflib.get_close_matches(name, _PRESETS, n=1, cutoff=0.3)
    nearest = f', nearest {near[0]!r}' if near else ''
    raise InputError(
      f'config.model.preset: no preset {name!r}; fix: use one of '
      f'{", ".join(_PRESETS)}{nearest}'
    )
  config = _PRESETS[name]
  if vocab_size:
    config = dataclasses.replace(config, vocab_size=vocab_size)
  return config
