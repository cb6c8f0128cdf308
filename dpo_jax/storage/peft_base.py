"""PEFT folder -> its base and the adapter that it describes.

Comes in: a folder with adapter_config.json. Goes out: the folder of its base,
and the AdapterSpec with which peft_checkpoint.py reads it. Reads no weights.
"""

import os

import safetensors

from dpo_jax import errors
from dpo_jax.models import adapter_spec
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.storage import (
  files,
  hf_files,
  peft_checkpoint,
  peft_config,
  places,
  scratch,
)

_DEPTH = 8  # adapters on adapters; more is a circle


def is_adapter(folder: str | os.PathLike) -> bool:
  """Returns whether a folder holds a PEFT adapter and no whole model."""
  folder = files.at(folder)
  has_model = any(
    (folder / name).is_file() for name in (hf_files.SINGLE, hf_files.INDEX)
  )
  return (folder / peft_config.CONFIG).is_file() and not has_model


def find(folder: str | os.PathLike) -> str:
  """Returns the folder of an adapter's base.

  Raises:
    InputError: the adapter names none, or one that is not here; says which keys
      take an adapter and its base.
  """
  name = _base_name(folder)
  place = name
  for _ in range(_DEPTH):
    if not is_adapter(place):
      return name
    place = _base_name(place)
  raise _refused(folder, f'its base {name!r} is an adapter on itself')


def read_spec(folder: str | os.PathLike, config: DecoderConfig) -> AdapterSpec:
  """Reads rank, strength and targets, and compares all with the base.

  Raises:
    InputError: not plain LoRA of one rank, or not of this base.
  """
  folder = files.at(folder)
  peft = peft_config.read(folder)
  spec = AdapterSpec(
    rank=peft.get('r', peft_config.DEFAULT),
    alpha=float(peft.get('lora_alpha', peft_config.DEFAULT)),
    targets=_targets(folder, config),
    rslora=peft.get('use_rslora') is True,
  )
  peft_checkpoint.check(folder, config, spec)
  return spec


def _base_name(folder: str | os.PathLike) -> str:
  peft = peft_config.read(folder)
  name = peft.get('base_model_name_or_path')
  if not name or not isinstance(name, str):
    raise _refused(folder, 'it names no base')
  # From where it was written, or beside the adapter.
  for place in (name, os.path.join(os.path.dirname(str(folder)), name)):
    if places.is_folder(place):
      return place
  raise _refused(folder, f'its base {name!r} is no folder here')


def _refused(folder, problem: str) -> Exception:
  return errors.refuse(
    folder,
    f'an adapter (PEFT), not a model, and {problem}',
    f'give its base as model.init_from and --config.adapter.init_from={folder} '
    'with its rank and alpha',
  )


def _targets(folder: files.AnyPath, config: DecoderConfig) -> tuple[str, ...]:
  """Returns our names of the linear maps that have factors in the file."""
  path = folder / peft_checkpoint.TENSORS
  if not path.is_file():  # peft_checkpoint has the line for every case
    return adapter_spec.linears(config)
  try:
    with safetensors.safe_open(scratch.copy(path), 'numpy') as file:
      names = set(file.keys())
  except (safetensors.SafetensorError, OSError):
    return adapter_spec.linears(config)
  found = [
    target
    for target in adapter_spec.linears(config)
    for module in peft_checkpoint.modules_of(config, (target,))
    if peft_checkpoint.tensor_name(module.format(i=0), 'A') in names
  ]
  return tuple(found) or adapter_spec.linears(config)
