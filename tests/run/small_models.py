"""Small models with random weights in Hugging Face folders, for byte tokens."""

import dataclasses

import numpy as np

from dpo_jax import tree
from dpo_jax.models import presets
from dpo_jax.models.decoder_config import Rope, param_dims
from dpo_jax.storage import hf_checkpoint

_GPT2 = {
  'family': 'gpt2',
  'num_kv_heads': 4,
  'norm': 'layer',
  'gated_mlp': False,
  'mlp_bias': True,
  'qkv_bias': True,
  'out_bias': True,
  'learned_positions': True,
  'ropes': (),
  'activation': 'gelu_tanh',
  'tied': True,
  'max_positions': 64,
}
KINDS = {
  'gpt2': _GPT2,
  'llama': {'max_positions': 64},
  'dynamic': {
    'max_positions': 64,
    'ropes': (Rope(scaling='dynamic', factor=2.0, original_positions=64),),
  },
}


def write(folder, kind='llama', vocab_size=259, spoil=None, **changes):
  """Writes a model; returns the flags that choose it.

  Args:
    folder: the folder to make.
    kind: of KINDS.
    vocab_size: rows of the embedding.
    spoil: (name of a parameter, value) that its last element gets.
    **changes: further fields of DecoderConfig.
  """
  config = presets.get('tiny', vocab_size=vocab_size)
  config = dataclasses.replace(config, **KINDS[kind] | changes)
  rng = np.random.default_rng(0)
  leaves = {
    name: rng.normal(0, 0.05, [config.sizes[d] for d in dims]).astype('f4')
    for name, dims in param_dims(config).items()
  }
  if spoil:
    name, value = spoil
    leaves[name].flat[-1] = value
  hf_checkpoint.save(folder, tree.unflatten_names(leaves), config)
  return [
    '--config.model.preset=',
    f'--config.model.init_from={folder}',
    '--config.tokenizer=byte',
  ]
