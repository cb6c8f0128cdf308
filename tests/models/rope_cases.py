"""Models with scaled rotary positions: config.json, weights, tokens.

rope_golden.json has the logits of transformers 5.24 (torch 2.13, float32, CPU,
one text at a time) for the folders that `write` makes of them.
"""

import json
import pathlib

import numpy as np

from dpo_jax import tree
from dpo_jax.models import architectures
from dpo_jax.models.decoder_config import param_dims
from dpo_jax.storage import hf_checkpoint

GOLDEN = pathlib.Path(__file__).with_name('rope_golden.json')
_BASE = {
  'model_type': 'llama',
  'vocab_size': 40,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'rms_norm_eps': 1e-6,
  'max_position_embeddings': 128,
  'tie_word_embeddings': False,
}
_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 32,
}
_LONG = {
  'short_factor': [1.0, 1.1, 1.3, 1.7],
  'long_factor': [1.5, 2.5, 4.0, 8.0],
}
_PHI3 = _BASE | {
  'model_type': 'phi3',
  'pad_token_id': 0,
  'original_max_position_embeddings': 32,
}
_DYNAMIC = _BASE | {'max_position_embeddings': 32}
_NEW = {**_YARN, 'rope_theta': 5e5, 'truncate': False, 'beta_fast': 16}
# Name -> config.json, as published files and transformers 5 write them.
CONFIGS = {
  'yarn': _BASE | {'rope_scaling': _YARN, 'rope_theta': 1e6},
  'yarn_old_type': _BASE
  | {
    'model_type': 'qwen2',
    'rope_scaling': {'type': 'yarn', **_YARN},
  },
  'yarn_new_layout': _BASE | {'rope_parameters': _NEW},
  'yarn_mscale': _BASE
  | {'rope_scaling': {**_YARN, 'mscale': 1.0, 'mscale_all_dim': 0.5}},
  'yarn_attention_factor': _BASE
  | {'rope_scaling': {**_YARN, 'attention_factor': 0.7, 'beta_slow': 2}},
  'longrope': _PHI3 | {'rope_scaling': {'type': 'longrope', **_LONG}},
  'longrope_su': _PHI3
  | {
    'partial_rotary_factor': 0.5,
    'rope_scaling': {
      'type': 'su',
      'original_max_position_embeddings': 32,
      'short_factor': [1.0, 1.2],
      'long_factor': [2.0, 6.0],
    },
  },
  'longrope_llama': _BASE
  | {
    'rope_scaling': {
      'rope_type': 'longrope',
      'factor': 8.0,
      'original_max_position_embeddings': 32,
      **_LONG,
    }
  },
  'dynamic': _DYNAMIC | {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}},
  'dynamic_mistral': _DYNAMIC
  | {
    'model_type': 'mistral',
    'rope_parameters': {
      'rope_type': 'dynamic',
      'factor': 4.0,
      'rope_theta': 1e5,
    },
  },
}
# Tokens: within the original length, at it, one above it, far above it.
LENGTHS = (20, 32, 33, 90)
KEPT = slice(-3, None)  # positions of a text whose logits are kept


def decoder_config(name):
  """The decoder of a config.json."""
  return architectures.from_hf_config(CONFIGS[name])


def params(name):
  """Weights large enough that a wrong angle shows in the logits."""
  config, rng = decoder_config(name), np.random.default_rng(7)
  leaves = {
    key: (
      1 + 0.1 * rng.normal(size=[config.sizes[d] for d in dims])
      if key.endswith('scale')
      else 0.35 * rng.normal(size=[config.sizes[d] for d in dims])
    ).astype(np.float32)
    for key, dims in param_dims(config).items()
  }
  return tree.unflatten_names(leaves)


def tokens(length):
  """A text of random tokens, int32 [length]."""
  return np.random.default_rng(length).integers(1, 40, length).astype(np.int32)


def write(folder, name):
  """Writes the folder that transformers read."""
  hf_checkpoint.save(folder, params(name), decoder_config(name))
  (pathlib.Path(folder) / 'config.json').write_text(json.dumps(CONFIGS[name]))
