"""config.json -> the shape of a decoder, and back.

Comes in: the mapping of a Hugging Face config.json, in the layout of
transformers 5 (`rope_parameters`, `dtype`) or of older releases (`rope_theta`,
`rope_scaling`, `torch_dtype`). Goes out: DecoderConfig. Reads no file. Names no
family: all that differs between families is in families.py.
"""

import typing
from collections.abc import Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.models import families, layer_patterns
from dpo_jax.models.config_source import Source
from dpo_jax.models.decoder_config import DecoderConfig

# Activation in config.json -> activation of DecoderConfig. Several spellings
# mean the tanh approximation.
_ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'relu': 'relu',
}
# The way back. Reversed, so that the first spelling of each is written.
_WORDS = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
_MOST = 10_000  # layers, heads or experts: each of them is listed somewhere
# Key -> value if it is absent, for every family that does not say otherwise.
_ABSENT = {
  'hidden_act': 'silu',
  'initializer_range': 0.02,
  'max_position_embeddings': 2048,
  'n_positions': 1024,
  'rms_norm_eps': 1e-6,
  'layer_norm_eps': 1e-5,
  'layer_norm_epsilon': 1e-5,
  'tie_word_embeddings': False,
  'attention_bias': False,
  'mlp_bias': False,
  'rope_theta': 10_000.0,
  'partial_rotary_factor': 1.0,
  'attn_logit_softcapping': None,
  'final_logit_softcapping': None,
}


def from_hf_config(
  mapping: Mapping[str, Any], *, where: str = 'config.json'
) -> DecoderConfig:
  """Returns the decoder that a config.json describes.

  Args:
    mapping: the parsed file.
    where: path of the file, for errors.

  Raises:
    InputError: an unknown architecture or option, a missing or bad key.
  """
  name = mapping.get('model_type')
  family = _family(name, where)
  source = Source(mapping, {**_ABSENT, **family.absent}, where)
  if mapping.get('quantization_config'):
    source.refuse('quantization_config', 'export the weights unquantised')
  for key, known in family.only.items():
    if mapping.get(key) not in (None, known):
      source.refuse(key, f'only {known!r} is built here')
  fields = {'family': name}
  for field, key in _keys(family).items():
    fields[field] = source.read(key, *_KINDS[field])
  for key in ('num_layers', 'num_heads'):
    if fields[key] > _MOST:
      source.refuse(_keys(family)[key], f'must be at most {_MOST}')
  # Implied values come before those that are derived from them.
  fields |= family.implies
  _derive(fields, source)
  if family.experts:
    fields |= _read_experts(source)
  layers = fields['num_layers']
  windows = layer_patterns.read_windows(source, family.windows, layers)
  fields['layer_windows'] = windows
  if fields.get('learned_positions'):
    fields['ropes'] = ()
  else:
    fields |= layer_patterns.read_ropes(source, fields)
  return DecoderConfig(**fields)


def to_hf_config(config: DecoderConfig) -> dict[str, Any]:
  """Returns a config.json of the family, in both layouts at once.

  `from_hf_config` of it gives `config` again, and transformers reads it. It
  holds no token ids (`bos_token_id`, ...): they belong to the tokenizer.
  """
  family = families.FAMILIES[config.family]
  out = {
    'architectures': [family.hf_class],
    'model_type': config.family,
    'dtype': 'float32',
    'torch_dtype': 'float32',
    'use_cache': True,
  }
  for field, key in _keys(family).items():
    out[key] = getattr(config, field)
  activation = _keys(family)['activation']
  out[activation] = _WORDS[config.activation]
  # Two keys may hold one field: old and new names of the number of experts.
  out |= {key: getattr(config, field) for key, field in family.experts.items()}
  out |= family.writes
  out |= layer_patterns.write_windows(config)
  return out | dict(family.only) | layer_patterns.write_ropes(config)


def _kinds() -> dict[str, tuple[type, bool]]:
  """Returns the type of each field, and whether it may be None."""
  hints = typing.get_type_hints(DecoderConfig)
  inner = {field: typing.get_args(hint) for field, hint in hints.items()}
  return {
    field: (inner[field][0], True)
    if type(None) in inner[field]
    else (hint, False)
    for field, hint in hints.items()
  }


_KINDS = _kinds()


def _family(name: Any, where: str) -> families.Family:
  known = families.FAMILIES
  if isinstance(name, str) and name in known:
    return known[name]
  raise errors.refuse(
    where,
    f'model_type {errors.show(name)} is not an architecture that is built here',
    f'{errors.did_you_mean(name, known)}use one of {", ".join(sorted(known))}',
  )


def _keys(family: families.Family) -> dict[str, str]:
  merged = {**families.KEYS, **family.keys}
  return {field: key for field, key in merged.items() if key}


def _read_experts(source: Source) -> dict[str, Any]:
  """Returns the fields that only models with experts have."""
  step, dense = source.get('decoder_sparse_step'), source.get('mlp_only_layers')
  if step not in (None, 1) or dense:
    raise errors.refuse(
      source.where,
      f'decoder_sparse_step = {step!r} and mlp_only_layers = {dense!r} give '
      'experts to some layers only, which is not built here',
      'use a model of which every layer has experts',
    )
  # transformers 5 writes num_local_experts, older files num_experts.
  count = 'num_experts' if 'num_experts' in source.mapping else None
  fields = {
    'num_experts': source.read(count or 'num_local_experts', int),
    'experts_per_token': source.read('num_experts_per_tok', int),
    'normalise_experts': source.read('norm_topk_prob', bool),
  }
  if fields['num_experts'] > _MOST:
    source.refuse(count or 'num_local_experts', f'must be at most {_MOST}')
  if fields['experts_per_token'] > fields['num_experts']:
    source.refuse(
      'num_experts_per_tok', f'at most the {fields["num_experts"]} experts'
    )
  # Not read by source.read, whose numbers are positive: this one may be 0.
  coefficient = source.get('router_aux_loss_coef') or 0.0
  if type(coefficient) not in (int, float) or not 0 <= coefficient < 1e38:
    source.refuse('router_aux_loss_coef', 'must be a number >= 0')
  return fields | {'router_aux_coef': float(coefficient)}


def _derive(fields: dict[str, Any], source: Source) -> None:
  """Fills in the fields that follow from others, and checks that they agree."""
  heads = fields['num_heads']
  fields['num_kv_heads'] = fields.get('num_kv_heads') or heads
  if heads % fields['num_kv_heads']:
    source.refuse('num_key_value_heads', f'must divide {heads} heads')
  if not fields.get('head_size'):
    fields['head_size'], rest = divmod(fields['width'], heads)
    if rest:
      raise errors.refuse(
        source.where,
        f'{heads} heads do not divide a width of {fields["width"]}',
        'say head_dim',
      )
  # A null n_inner stands for four times the width.
  fields['mlp_width'] = fields['mlp_width'] or 4 * fields['width']
  word = fields['activation']
  if word not in _ACTIVATIONS and word not in _WORDS:
    raise errors.refuse(
      source.where,
      f'activation {word!r} is not built here',
      f'use one of {", ".join(_ACTIVATIONS)}',
    )
  fields['activation'] = _ACTIVATIONS.get(word, word)
