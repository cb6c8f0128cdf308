"""Named decoder shapes, for random weights and dry runs.

Comes in: a name. Goes out: a DecoderConfig. Holds no weights. A public model
is given by those keys of its config.json that decide its shape.
"""

import dataclasses
from typing import Any

from dpo_jax import errors
from dpo_jax.models import architectures
from dpo_jax.models.decoder_config import DecoderConfig

_OURS = {
  # For byte tokens; learns the quickstart's rule in a minute on two cores.
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
  # The shape of the timings of scripts/benchmark.py.
  'bench-cpu': DecoderConfig(
    vocab_size=8192,
    width=256,
    mlp_width=688,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_size=32,
  ),
}


def _published(model_type: str, shape: tuple[int, ...], **more: Any):
  """Keys of a config.json from a shape.

  Args:
    model_type: family, see families.py.
    shape: vocabulary, width, MLP width, layers, heads, key/value heads.
    **more: further keys.
  """
  keys = (
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
  )
  # Not strict: families without grouped queries have no key/value heads.
  return {'model_type': model_type, **dict(zip(keys, shape)), **more}


def _gpt(model_type: str, width: int, layers: int, heads: int, **more: Any):
  keys = {'n_embd': width, 'n_layer': layers, 'n_head': heads}
  return {'model_type': model_type, **keys, **more}


def _llama3(shape: tuple[int, ...], factor: float, **more: Any):
  scaling = {
    'rope_type': 'llama3',
    'factor': factor,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  }
  return _published(
    'llama',
    shape,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=scaling,
    **more,
  )


def _qwen(model_type: str, shape: tuple[int, ...], **more: Any):
  return _published(
    model_type,
    shape,
    rope_theta=1_000_000.0,
    **({'max_position_embeddings': 32_768} | more),
  )


_TIED = {'tie_word_embeddings': True}
_FINE = {'rms_norm_eps': 1e-5}
_HEAD = {'head_dim': 128, 'max_position_embeddings': 40_960}
_GEMMA2 = {
  'head_dim': 256,
  'max_position_embeddings': 8192,
  'query_pre_attn_scalar': 256,
}
_NEOX = {'max_position_embeddings': 2048}

# Shapes in the order of `_published`.
_PUBLIC = {
  'gpt2-large': _gpt('gpt2', 1280, 36, 20, vocab_size=50_257),
  'gpt-j-6b': _gpt(
    'gptj', 4096, 28, 16, vocab_size=50_400, n_positions=2048, rotary_dim=64
  ),
  'pythia-1.4b': _published('gpt_neox', (50_304, 2048, 8192, 24, 16), **_NEOX),
  'pythia-2.8b': _published(
    'gpt_neox', (50_304, 2560, 10_240, 32, 32), **_NEOX
  ),
  'pythia-6.9b': _published(
    'gpt_neox', (50_432, 4096, 16_384, 32, 32), **_NEOX
  ),
  'llama-3.1-8b': _llama3((128_256, 4096, 14_336, 32, 32, 8), 8.0),
  'llama-3.2-1b': _llama3((128_256, 2048, 8192, 16, 32, 8), 32.0, **_TIED),
  'llama-3.2-3b': _llama3((128_256, 3072, 8192, 28, 24, 8), 32.0, **_TIED),
  'tulu3-8b': _llama3((128_264, 4096, 14_336, 32, 32, 8), 8.0),
  'mistral-7b': _published(
    'mistral',
    (32_000, 4096, 14_336, 32, 32, 8),
    max_position_embeddings=32_768,
    sliding_window=4096,
    **_FINE,
  ),
  'qwen2.5-0.5b': _qwen('qwen2', (151_936, 896, 4864, 24, 14, 2), **_TIED),
  'qwen2.5-1.5b': _qwen('qwen2', (151_936, 1536, 8960, 28, 12, 2), **_TIED),
  'qwen2.5-3b': _qwen('qwen2', (151_936, 2048, 11_008, 36, 16, 2), **_TIED),
  'qwen2.5-7b': _qwen('qwen2', (152_064, 3584, 18_944, 28, 28, 4)),
  'qwen2.5-14b': _qwen('qwen2', (152_064, 5120, 13_824, 48, 40, 8), **_FINE),
  'qwen2.5-32b': _qwen('qwen2', (152_064, 5120, 27_648, 64, 40, 8), **_FINE),
  'qwen2.5-72b': _qwen('qwen2', (152_064, 8192, 29_568, 80, 64, 8), **_FINE),
  'qwen3-0.6b': _qwen(
    'qwen3', (151_936, 1024, 3072, 28, 16, 8), **_HEAD, **_TIED
  ),
  'qwen3-1.7b': _qwen(
    'qwen3', (151_936, 2048, 6144, 28, 16, 8), **_HEAD, **_TIED
  ),
  'qwen3-4b': _qwen(
    'qwen3', (151_936, 2560, 9728, 36, 32, 8), **_HEAD, **_TIED
  ),
  'qwen3-8b': _qwen('qwen3', (151_936, 4096, 12_288, 36, 32, 8), **_HEAD),
  'qwen3-14b': _qwen('qwen3', (151_936, 5120, 17_408, 40, 40, 8), **_HEAD),
  'qwen3-32b': _qwen('qwen3', (151_936, 5120, 25_600, 64, 64, 8), **_HEAD),
  'qwen3-30b-a3b': _qwen(
    'qwen3_moe',
    (151_936, 2048, 6144, 48, 32, 4),
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    **_HEAD,
  ),
  'gemma-2-2b': _published(
    'gemma2', (256_000, 2304, 9216, 26, 8, 4), **_GEMMA2
  ),
  'gemma-2-9b': _published(
    'gemma2', (256_000, 3584, 14_336, 42, 16, 8), **_GEMMA2
  ),
}


def names() -> tuple[str, ...]:
  """Returns the names that `get` takes."""
  return (*_OURS, *_PUBLIC)


def get(name: str, *, vocab_size: int | None = None) -> DecoderConfig:
  """Returns the shape of a preset.

  Args:
    name: one of `names()`.
    vocab_size: replaces the preset's own; None or 0 keeps it.

  Raises:
    InputError: no preset of that name.
  """
  if name in _PUBLIC:
    config = architectures.from_hf_config(_PUBLIC[name], where=name)
  elif name in _OURS:
    config = _OURS[name]
  else:
    raise errors.refuse(
      'config.model.preset',
      f'no preset {name!r}',
      f'{errors.did_you_mean(name, names())}use one of {", ".join(names())}',
    )
  if vocab_size:
    config = dataclasses.replace(config, vocab_size=vocab_size)
  return config
