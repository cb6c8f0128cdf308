"""adapter_config.json -> nothing, or the refusal of an adapter that differs.

Comes in: a PEFT folder and the AdapterSpec that its adapter must have. Goes
out: the parsed file, checked: plain LoRA of one rank and strength. Reads no
tensors.
"""

import math
import os
import re
from typing import Any

from dpo_jax import errors
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.storage import files
from dpo_jax.types import InputError

CONFIG = 'adapter_config.json'
FOLDER = (
  'the folder of a PEFT adapter (a run writes one with --mode=export '
  '--config.adapter.export=peft)'
)
# Keys of adapter_config.json that stand for another method unless empty.
_UNSUPPORTED = (
  'use_dora',
  'modules_to_save',
  'lora_bias',
  'layer_replication',
  'trainable_token_indices',
  'target_parameters',
  'use_qalora',
  'alora_invocation_tokens',
  'megatron_config',
)
# Initialisations that change the base's weights too.
_OTHER_BASE = ('pissa', 'olora', 'corda', 'loftq')
DEFAULT = 8  # PEFT's rank and alpha
_LARGEST = 1e9  # of ranks and alphas
_MOST_WAYS = 1000  # to match a pattern
# Repetitions of a regular expression, and those of a group.
_REPEATS = re.compile(r'[*+?{]')
# Brackets that are letters would hide a group; no module's name has any.
_NESTED = re.compile(r'\)[*+?{]|\\[0-9()]|\[\^?\]?[^\]]*[()]')
_CHOICES = re.compile(r'\(([^()]*)\)')  # a group that holds no other


def read(folder: str | os.PathLike) -> dict[str, Any]:
  """Reads the folder's adapter_config.json, its numbers and patterns checked.

  Raises:
    InputError: no such file, or one of another form; names it.
  """
  path = files.at(folder) / CONFIG
  peft = files.read_json(path, if_missing=f'give {FOLDER}')
  for key, whole in (('r', True), ('lora_alpha', False)):
    _check_number(path, key, peft.get(key, DEFAULT), whole=whole)
  for key in ('rank_pattern', 'alpha_pattern'):
    patterns = peft.get(key) or {}
    if not isinstance(patterns, dict):
      raise _damaged(path, key, patterns, 'an object')
    for pattern, value in patterns.items():
      _check_number(path, key, value, whole=key == 'rank_pattern')
      _check_pattern(path, key, pattern)
  return peft


def check(path: files.AnyPath, peft: dict[str, Any], spec: AdapterSpec) -> None:
  """Raises InputError unless it is plain LoRA of this rank and strength."""
  # Keys that are absent or empty have their plain meaning in PEFT.
  for key, plain in (('peft_type', 'LORA'), ('bias', 'none')):
    if peft.get(key, plain) != plain:
      raise _unsupported(path, key, peft[key])
  for key in _UNSUPPORTED:
    if peft.get(key):
      raise _unsupported(path, key, peft[key])
  first = str(peft.get('init_lora_weights', True)).lower()
  if first.startswith(_OTHER_BASE):
    raise _unsupported(path, 'init_lora_weights', peft['init_lora_weights'])
  for key, ours, value in (
    ('r', 'rank', spec.rank),
    ('lora_alpha', 'alpha', spec.alpha),
    ('use_rslora', 'rslora', spec.rslora),
  ):
    # PEFT's defaults.
    theirs = peft.get(key, DEFAULT if key != 'use_rslora' else False)
    if theirs != value:
      raise errors.refuse(
        f'config.adapter.{ours}',
        f'{value} is not the {key}={theirs} of {path}',
        f'--config.adapter.{ours}={theirs}',
      )


def check_scale(
  path: files.AnyPath,
  peft: dict[str, Any],
  spec: AdapterSpec,
  module: str,
  rank: int,
) -> None:
  """Raises InputError unless a module's own alpha and rank give our scale."""
  alpha = _pattern(
    peft.get('alpha_pattern'), module, peft.get('lora_alpha', DEFAULT)
  )
  said = _pattern(peft.get('rank_pattern'), module, peft.get('r', DEFAULT))
  scale = alpha / (said**0.5 if spec.rslora else said)
  if said != rank or not math.isclose(scale, spec.scale, rel_tol=1e-6):
    raise errors.refuse(
      path,
      f'{module} has rank {rank} and scale {scale:g} of rank {said}, the '
      f'adapter {spec.rank} and {spec.scale:g}',
      'use an adapter of one rank and alpha',
    )


def _unsupported(path, key, value) -> InputError:
  """Returns the refusal of another method than plain LoRA."""
  return errors.refuse(
    path,
    f'{key}={value!r} is not supported, only plain LoRA is',
    'merge that adapter into its base with PEFT and give the merged folder',
  )


def _pattern(patterns, module, default):
  """Looks up as PEFT does: a key is a regular expression that ends the name."""
  for key, value in (patterns or {}).items():
    if re.match(rf'(.*\.)?({key})$', module):
      return value
  return default


def _check_number(path, key: str, value: Any, *, whole: bool) -> None:
  kinds = (int,) if whole else (int, float)
  # An integer of hundreds of digits has no float.
  if type(value) not in kinds or not 0 < value < _LARGEST:
    raise _damaged(path, key, value, 'a number above 0')


def _check_pattern(path, key: str, pattern: str) -> None:
  """Refuses what is no regular expression, or may take for ever to match."""
  try:
    re.compile(pattern)
    # Alternatives one behind another multiply: (a|b)(a|b) has 4 ways.
    ways, inner = 1, pattern
    while inner != (inner := _CHOICES.sub('', last := inner)):
      ways *= math.prod(g.count('|') + 1 for g in _CHOICES.findall(last))
    is_slow = (
      len(_REPEATS.findall(pattern)) > 3
      or _NESTED.search(pattern)
      or ways > _MOST_WAYS
    )
  except (re.error, RecursionError, OverflowError):
    is_slow = True
  if is_slow:
    raise _damaged(path, key, pattern, 'names of modules')


def _damaged(path, key: str, value: Any, wanted: str) -> InputError:
  return errors.refuse(
    path, f'{key} has {errors.show(value)}, not {wanted}', 'copy it again'
  )
