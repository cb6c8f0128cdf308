"""Patterns over layers: attention windows and rotary positions.

Comes in: the keys of a config.json in either layout. Goes out: the fields of
DecoderConfig that hold one value per layer, and the keys again. The rules are
those of the configuration classes in transformers. Reads no file.
"""

import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.models import families
from dpo_jax.models.config_source import Source
from dpo_jax.models.decoder_config import DecoderConfig, Rope

_SLIDING, _FULL = 'sliding_attention', 'full_attention'


def read_windows(source: Source, rule: str, num_layers: int) -> tuple[int, ...]:
  """Returns one window per layer; () if every layer sees all.

  Args:
    source: keys of config.json.
    rule: Family.windows, the rule for files without `layer_types`.
    num_layers: number of layers.
  """
  # qwen2 and others write a sliding_window and turn it off by another key.
  off = rule == 'upper' and not source.get('use_sliding_window')
  if rule == 'none' or off or source.get('sliding_window') is None:
    return ()
  window = source.read('sliding_window', int)
  kinds = source.get('layer_types')
  if kinds is None:
    has_window = _rule(source, rule)
    kinds = [_SLIDING if has_window(i) else _FULL for i in range(num_layers)]
  known = (_SLIDING, _FULL)
  if (
    not isinstance(kinds, list)
    or len(kinds) != num_layers
    or any(kind not in known for kind in kinds)
  ):
    source.refuse('layer_types', f'one of {known} for each layer')
  windows = tuple(window if kind == _SLIDING else 0 for kind in kinds)
  return windows if any(windows) else ()


def write_windows(config: DecoderConfig) -> dict[str, Any]:
  """Returns the keys from which `read_windows` reads the same windows."""
  rule = families.FAMILIES[config.family].windows
  if rule == 'none':
    return {}
  windows = config.layer_windows or (0,) * config.num_layers
  out = {'sliding_window': max(windows) or None}
  if rule == 'upper':
    out['use_sliding_window'] = any(windows)
  if rule != 'all':
    out['layer_types'] = [_SLIDING if w else _FULL for w in windows]
  return out


def read_ropes(source: Source, fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields `ropes`, `layer_ropes` and `rotary_size`.

  Args:
    source: keys of config.json.
    fields: fields of DecoderConfig: head_size, num_layers, layer_windows.
  """
  # The keys of transformers 5 win over those of older releases. Its
  # rope_parameters may be one object, or one object per kind of layer.
  nested = source.objects('rope_parameters')
  for kind in (_FULL, _SLIDING):
    Source(nested, {}, source.where).objects(kind)
  old = {
    'rope_theta': source.get('rotary_emb_base') or source.get('rope_theta'),
    'partial_rotary_factor': source.get('rotary_pct')
    or source.get('partial_rotary_factor'),
  }
  flat = {**old, **source.objects('rope_scaling'), **nested.get(_FULL, nested)}
  # Phi-3 has its original length beside the object, where it wins.
  for key in ('original_max_position_embeddings', 'max_position_embeddings'):
    if source.get(key) is not None:
      flat[key] = source.get(key)
  inner = Source(flat, {}, source.where)
  size = source.get('rotary_dim')
  if size is None:
    share = inner.read('partial_rotary_factor', float)
    size = int(fields['head_size'] * share)
  out = {'ropes': (_read_rope(inner, size),)}
  out['rotary_size'] = 0 if size == fields['head_size'] else size
  layers = range(fields['num_layers'])
  # Layers with a window have frequencies of their own (gemma 3).
  if local := source.get('rope_local_base_freq'):
    sliding = {'rope_theta': local, **nested.get(_SLIDING, {})}
    sliding['max_position_embeddings'] = source.get('max_position_embeddings')
    sliding = Source(sliding, {}, source.where)
    out['ropes'] += (_read_rope(sliding, size),)
    windows = fields['layer_windows'] or (0,) * len(layers)
    out['layer_ropes'] = tuple(int(w > 0) for w in windows)
  # Every period-th layer has no rotary positions (smollm3).
  if source.get('no_rope_layer_interval'):
    period = source.read('no_rope_layer_interval', int)
    # In spite of its name, the list holds 1 for layers *with* rotation.
    rotates = source.get('no_rope_layers')
    if not isinstance(rotates or [], list):
      source.refuse('no_rope_layers', 'must be a list of 0 and 1')
    rotates = rotates or [(i + 1) % period != 0 for i in layers]
    out['ropes'] += (Rope(scaling='none'),)
    out['layer_ropes'] = tuple(0 if rotate else 1 for rotate in rotates)
  return out


def write_ropes(config: DecoderConfig) -> dict[str, Any]:
  """Returns the keys from which `read_ropes` reads the same ropes."""
  if not config.ropes:
    return {}
  first, *others = config.ropes
  rotary_size = config.rotary_size or config.head_size
  if families.FAMILIES[config.family].rope == 'rotary_dim':
    return {'rotary_dim': rotary_size}
  parameters = _write_rope(first)
  out = {'rope_theta': first.theta, 'rope_parameters': parameters}
  if first.scaling != 'default':
    out['rope_scaling'] = dict(parameters)
  if first.scaling == 'longrope':
    key = 'original_max_position_embeddings'
    out[key] = first.original_positions
  if rotary_size != config.head_size:
    share = rotary_size / config.head_size
    parameters['partial_rotary_factor'] = share
    out |= {'partial_rotary_factor': share, 'rotary_pct': share}
    out['rotary_emb_base'] = first.theta
  for other in others:
    if other.scaling == 'none':
      out['no_rope_layers'] = [1 - index for index in config.layer_ropes]
    else:
      local = _write_rope(other)
      out['rope_parameters'] = {_FULL: parameters, _SLIDING: local}
      out['rope_local_base_freq'] = other.theta
  return out


def _rule(source: Source, rule: str) -> Callable[[int], bool]:
  """Returns whether a layer has a window, for files without `layer_types`."""
  first = source.get('max_window_layers') or 0
  period = source.get('sliding_window_pattern')
  period = period or source.get('_sliding_window_pattern') or 6
  return {
    'all': lambda i: True,
    'even': lambda i: i % 2 == 0,
    'upper': lambda i: i >= first,
    'pattern': lambda i: (i + 1) % period != 0,
  }[rule]


# Field of Rope -> key, for each kind of scaling that is built.
_LINEAR = {'theta': 'rope_theta', 'factor': 'factor'}
_ORIGINAL = {'original_positions': 'original_max_position_embeddings'}
_ATTENTION = {'attention_factor': 'attention_factor'}
_KEYS = {
  'default': {'theta': 'rope_theta'},
  'linear': _LINEAR,
  'llama3': {
    **_LINEAR,
    'low_freq_factor': 'low_freq_factor',
    'high_freq_factor': 'high_freq_factor',
    **_ORIGINAL,
  },
  'yarn': {
    **_LINEAR,
    **_ORIGINAL,
    **_ATTENTION,
    'beta_fast': 'beta_fast',
    'beta_slow': 'beta_slow',
    'truncate': 'truncate',
  },
  'longrope': {
    'theta': 'rope_theta',
    **_ORIGINAL,
    **_ATTENTION,
    'short_factors': 'short_factor',
    'long_factors': 'long_factor',
  },
  # Its original length is max_position_embeddings.
  'dynamic': _LINEAR,
}
# Old names. Phi-3's first files call longrope 'su' or 'yarn'.
_OLD_KINDS = {'su': 'longrope'}


def _read_rope(source: Source, rotary_size: int) -> Rope:
  kind = source.get('rope_type') or source.get('type') or 'default'
  kind = _OLD_KINDS.get(kind, kind) if isinstance(kind, str) else kind
  if kind == 'yarn' and source.get('short_factor'):
    kind = 'longrope'
  if not isinstance(kind, str) or kind not in _KEYS:
    raise errors.refuse(
      source.where,
      f'rope_type {kind!r} is not built here',
      f'use weights with one of {", ".join(_KEYS)}',
    )
  implied = _implied(source, kind)
  source = Source(source.mapping, source.absent | implied, source.where)
  kinds = typing.get_type_hints(Rope)
  values = {
    field: _read_factors(source, key, rotary_size // 2)
    if field.endswith('_factors')
    else source.read(key, kinds[field])
    for field, key in _KEYS[kind].items()
  }
  if kind == 'dynamic':
    if rotary_size < 4:
      raise errors.refuse(
        source.where,
        f'rope_type {kind!r} of {rotary_size} rotated channels has no base',
        'use 4 or more',
      )
    values['original_positions'] = source.read('max_position_embeddings', int)
  return Rope(scaling=kind, **values)


def _implied(source: Source, kind: str) -> dict[str, Any]:
  """Returns {key: value if it is absent or null} of a kind, from other keys."""
  if kind not in ('yarn', 'longrope'):
    return {}
  positions = source.read('max_position_embeddings', int)
  implied = {'original_max_position_embeddings': positions}
  inner = Source(source.mapping, source.absent | implied, source.where)
  original = inner.read('original_max_position_embeddings', int)
  # Both kinds divide by a logarithm.
  if original < 2:
    inner.refuse('original_max_position_embeddings', 'must be 2 or more')
  if source.read('rope_theta', float) <= 1:
    source.refuse('rope_theta', 'must be above 1')
  # A yarn that names neither a factor nor a length says nothing: refused.
  said = source.get('original_max_position_embeddings') is not None
  if said or kind == 'longrope':
    implied['factor'] = positions / original
  inner = Source(source.mapping, source.absent | implied, source.where)
  factor = inner.read('factor', float)
  if kind == 'longrope':
    scale = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original))
  else:
    implied |= {'beta_fast': 32.0, 'beta_slow': 1.0, 'truncate': True}
    scale = _mscale(factor, 1.0)
    if inner.get('mscale') and inner.get('mscale_all_dim'):
      both = ('mscale', 'mscale_all_dim')
      over, under = (_mscale(factor, inner.read(k, float)) for k in both)
      scale = over / under
  return implied | {'attention_factor': scale}


def _mscale(factor: float, share: float) -> float:
  """Peng et al. 2023, arXiv:2309.00071, equation 22: 0.1 ln(s) + 1."""
  return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_factors(source: Source, key: str, count: int) -> tuple[float, ...]:
  """Returns a list of positive numbers, one per pair of rotated channels."""
  values = source.get(key)
  if not isinstance(values, list | tuple) or len(values) != count:
    source.refuse(key, f'a list of {count} numbers')
  if any(type(v) not in (int, float) or not 0 < v < 1e30 for v in values):
    source.refuse(key, 'numbers above 0')
  return tuple(map(float, values))


def _write_rope(rope: Rope) -> dict[str, Any]:
  keys = _KEYS[rope.scaling].items()
  values = {key: getattr(rope, field) for field, key in keys}
  lists = {k: list(v) for k, v in values.items() if isinstance(v, tuple)}
  return {'rope_type': rope.scaling, **values, **lists}
