"""Adapters in PEFT's format: adapter_config.json, adapter_model.safetensors.

Comes in: a folder, a DecoderConfig and the AdapterSpec it must fit. Goes out:
an adapter of models/adapters.py on the mesh, or a folder that PEFT loads.
Reads plain LoRA only.

Some families join projections in one tensor (c_attn, qkv_proj). PEFT then has
one pair of factors for all of them, and we have one pair each. Ours become
theirs exactly: the A are stacked, B is block-diagonal, the rank is the sum of
the ranks, the scale stays (rank_pattern, alpha_pattern). A folder whose parts
share one A loads too.
"""

import os
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from dpo_jax import errors, tree
from dpo_jax.models import adapter_spec, adapters, families
from dpo_jax.models.adapter_spec import LINEARS, AdapterSpec
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.storage import (
  files,
  handover,
  hf_companions,
  hf_files,
  hf_layout,
  peft_config,
  scratch,
)
from dpo_jax.types import Params

TENSORS = 'adapter_model.safetensors'
CONFIG = peft_config.CONFIG
_NAME = 'base_model.model.{module}.lora_{factor}.weight'


class _Part(NamedTuple):
  """One of our linear maps within a module of the base."""

  target: str  # of LINEARS
  tensor: families.Tensor  # of its kernel


def check(
  folder: str | os.PathLike, config: DecoderConfig, spec: AdapterSpec
) -> None:
  """Compares a PEFT folder with the adapter that the run's config asks for.

  Raises:
    InputError: another method, rank, strength, targets or shape.
  """
  _read(files.at(folder), config, spec)


def load(
  folder: str | os.PathLike,
  config: DecoderConfig,
  spec: AdapterSpec,
  shardings: Params,
) -> Params:
  """Loads the adapter of a PEFT folder, float32, on the mesh.

  Args:
    folder: the folder of adapter_config.json and adapter_model.safetensors.
    config: the base's shape.
    spec: the adapter that the config asks for.
    shardings: pytree like the adapter.

  Raises:
    InputError: as `check`.
  """
  adapter = _read(files.at(folder), config, spec)
  return handover.put(tree.unflatten_names(adapter), shardings)


def save(
  folder: str | os.PathLike,
  adapter: Params,
  config: DecoderConfig,
  spec: AdapterSpec,
  *,
  base: str = '',
  companions: hf_companions.Companions = hf_companions.NONE,
) -> None:
  """Writes a folder that PEFT loads over the base, whole or not at all.

  Args:
    folder: the folder to make; an empty one may exist.
    adapter: adapter of `config` and `spec`.
    config: the base's shape; its family names the modules.
    spec: rank, scale and targets of the adapter.
    base: folder in which PEFT will find the base; '' = unknown.
    companions: tokenizer, stops and chat templates that go along.

  Raises:
    InputError: the folder is taken or cannot be written.
  """
  leaves = {
    name: np.asarray(jax.device_get(leaf))
    for name, leaf in tree.flatten_with_names(adapter)
  }
  tensors = {}
  for module, parts in modules_of(config, spec.targets).items():
    for i in range(config.num_layers):
      a, b = _join(leaves, config, spec, parts, i)
      name = module.format(i=i)
      tensors[tensor_name(name, 'A')] = a
      tensors[tensor_name(name, 'B')] = b
  with files.storage_errors(folder), files.whole_folder(folder) as beside:
    hf_companions.write(beside, companions)
    files.write_json(beside / CONFIG, _peft_config(config, spec, base))
    safetensors.numpy.save_file(tensors, beside / TENSORS, {'format': 'pt'})


def tensor_name(module: str, factor: str) -> str:
  """Returns the name of a module's factor, 'A' or 'B', in the file."""
  return _NAME.format(module=module, factor=factor)


def modules_of(config: DecoderConfig, targets) -> dict[str, list[_Part]]:
  """Returns {module of the base ({i} = the layer): its parts in targets}."""
  table, out = families.FAMILIES[config.family].tensors, {}
  for target in targets:
    tensor = table[f'layers/{target}/kernel']
    module = tensor.name.removesuffix('.weight')
    out.setdefault(module, []).append(_Part(target, tensor))
  return out


def _is_conv1d(part: _Part) -> bool:
  """Returns whether the file's kernel is [in, out], as GPT-2 stores it."""
  into, _ = LINEARS[part.target]
  return part.tensor.axes.partition(',')[0].replace('1', '') == into


def _axes(part: _Part) -> tuple[families.Tensor, families.Tensor]:
  """Returns the places of A [r, in] and of B [out, r], fused as the kernel."""
  first, _, second = part.tensor.axes.partition(',')
  into, out = (first, second) if _is_conv1d(part) else (second, first)
  a = families.Tensor('', f'r,{into}')
  return a, part.tensor._replace(axes=f'{out},r')


def _join(leaves, config, spec, parts, layer) -> tuple[np.ndarray, np.ndarray]:
  """Returns PEFT's A [R, in] and B [out, R] of a module; R sums the ranks."""
  sizes = {**config.sizes, 'r': spec.rank}
  all_a, all_b = [], []
  for part in parts:
    into, out = LINEARS[part.target]
    a_tensor, b_tensor = _axes(part)
    # B has the rows of the whole module; this part writes its own.
    a = np.zeros(hf_layout.shape(a_tensor, sizes), np.float32)
    b = np.zeros(hf_layout.shape(b_tensor, sizes), np.float32)
    path = f'layers/{part.target}'
    hf_layout.write(a_tensor, sizes, f'{into}r', leaves[f'{path}/a'][layer], a)
    hf_layout.write(b_tensor, sizes, f'r{out}', leaves[f'{path}/b'][layer], b)
    all_a.append(a)
    all_b.append(b)  # 0 outside of this part's rows
  return np.concatenate(all_a), np.ascontiguousarray(np.concatenate(all_b, 1))


def _peft_config(config, spec, base) -> dict[str, Any]:
  """Returns the content of adapter_config.json."""
  modules = modules_of(config, spec.targets)
  ranks, alphas = {}, {}
  for module, parts in modules.items():
    if len(parts) > 1:
      ranks[_suffix(module)] = spec.rank * len(parts)
      # The module's rank is larger; alpha follows, so that the scale stays.
      more = len(parts) ** 0.5 if spec.rslora else len(parts)
      alphas[_suffix(module)] = _whole(spec.alpha * more)
  parts = [part for module in modules.values() for part in module]
  # Entries that follow neither from the spec nor from the base are PEFT's
  # defaults.
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base or None,
    'r': spec.rank,
    'lora_alpha': _whole(spec.alpha),
    'use_rslora': spec.rslora,
    'target_modules': [_suffix(module) for module in modules],
    'rank_pattern': ranks,
    'alpha_pattern': alphas,
    'fan_in_fan_out': any(_is_conv1d(part) for part in parts),
    'bias': 'none',
    'lora_dropout': 0.0,
    'use_dora': False,
    'modules_to_save': None,
    'init_lora_weights': True,
    'inference_mode': True,
  }


def _suffix(module: str) -> str:
  """Returns 'self_attn.q_proj': enough to tell a layer's modules apart."""
  return '.'.join(module.split('.')[-2:])


def _whole(number: float) -> int | float:
  """Returns an int if the number is one: PEFT writes alpha as an int."""
  return int(number) if float(number).is_integer() else number


def _read(folder, config, spec) -> dict[str, np.ndarray]:
  """Reads {our name: float32 array} of a folder that fits."""
  peft = peft_config.read(folder)
  peft_config.check(folder / CONFIG, peft, spec)
  tensors = _read_tensors(folder)
  modules = modules_of(config, spec.targets)
  _check_names(folder / TENSORS, tensors, config, modules)
  leaves = {
    name: np.zeros(shape, np.float32)
    for name, shape in adapters.shapes(config, spec).items()
  }
  for module, parts in modules.items():
    for i in range(config.num_layers):
      name = module.format(i=i)
      a, b = (tensors[tensor_name(name, factor)] for factor in 'AB')
      peft_config.check_scale(folder / CONFIG, peft, spec, name, len(a))
      pairs = _split(folder / TENSORS, config, spec, name, parts, a, b)
      for part, (ours_a, ours_b) in zip(parts, pairs):
        leaves[f'layers/{part.target}/a'][i] = ours_a
        leaves[f'layers/{part.target}/b'][i] = ours_b
  return leaves


def _read_tensors(folder: files.AnyPath) -> dict[str, np.ndarray]:
  """Reads adapter_model.safetensors; InputError if it cannot."""
  files.refuse_unfinished(folder)
  path = folder / TENSORS
  if not path.is_file():
    pickle = folder / 'adapter_model.bin'
    if pickle.is_file():
      raise errors.refuse(
        pickle,
        'pickled weights are not read, a pickle can run code',
        'save it once more with safe_serialization=True',
      )
    raise errors.refuse(path, 'no such file', f'give {peft_config.FOLDER}')
  copy = scratch.copy(path)
  try:
    # By the header: numpy has no name for some kinds, and fails at them.
    with safetensors.safe_open(copy, 'numpy') as file:
      kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    other = next((n for n, k in kinds.items() if k not in hf_files.PLAIN), '')
    if other:
      raise errors.refuse(
        path,
        f'{errors.show(other)} is {kinds[other]}, which is not read',
        f'save the adapter as {", ".join(hf_files.PLAIN)}',
      )
    return safetensors.numpy.load_file(copy)
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.refuse(
      path, f'not a safetensors file ({error})', 'copy it again'
    ) from None


def _check_names(path, tensors, config, modules) -> None:
  """Raises InputError unless the modules are those of adapter.targets."""
  wanted = {
    tensor_name(module.format(i=i), factor)
    for module in modules
    for i in range(config.num_layers)
    for factor in 'AB'
  }
  missing, extra = wanted - tensors.keys(), tensors.keys() - wanted
  if not missing and not extra:
    return
  theirs = [
    part.target
    for module, parts in modules_of(
      config, adapter_spec.linears(config)
    ).items()
    for part in parts
    if tensor_name(module.format(i=0), 'A') in tensors
  ]
  problem = (
    f'{min(missing)} is missing' if missing else f'{min(extra)} is extra'
  )
  fix = (
    f'--config.adapter.targets={",".join(theirs)}'
    if theirs and {*theirs} != {p.target for m in modules.values() for p in m}
    else 'use an adapter of this base'
  )
  raise errors.refuse(
    path, f'does not fit config.adapter.targets and the base: {problem}', fix
  )


def _split(path, config, spec, module, parts, a, b):
  """Returns our [(a, b)] of a module's factors; InputError if they don't fit.

  The module's rank R is the sum of the parts' ranks (one block of B per part)
  or the rank of one part (all share A).
  """
  sizes = {**config.sizes, 'r': spec.rank}
  a_tensor, b_tensor = _axes(parts[0])
  width = hf_layout.shape(a_tensor, sizes)[1]
  height = hf_layout.shape(b_tensor, sizes)[0]
  own = spec.rank * len(parts)
  rank = a.shape[0] if a.shape[:1] in ((own,), (spec.rank,)) else own
  if a.shape != (rank, width) or b.shape != (height, rank):
    raise errors.refuse(
      path,
      f'the factors of {module} are {a.shape} and {b.shape}, a rank of '
      f'{spec.rank} on this base takes {(own, width)} and {(height, own)}',
      'use an adapter of this base, or its rank',
    )
  # What of B no part has read: must be 0 in the end.
  rest, out = b.astype(np.float32), []
  for number, part in enumerate(parts):
    into, outof = LINEARS[part.target]
    a_tensor, b_tensor = _axes(part)
    # This part's block of columns, or all of the shared ones.
    start = number * spec.rank if rank == own else 0
    columns = slice(start, start + spec.rank)

    def get(source):
      return lambda where: source[where]

    ours_a = hf_layout.read(a_tensor, sizes, f'{into}r', {}, get(a[columns]))
    block = b[:, columns]
    ours_b = hf_layout.read(b_tensor, sizes, f'r{outof}', {}, get(block))
    out.append((ours_a.astype(np.float32), ours_b.astype(np.float32)))
    used = np.zeros_like(rest[:, columns])
    ones = np.ones(ours_b.shape, np.float32)
    hf_layout.write(b_tensor, sizes, f'r{outof}', ones, used)
    rest[:, columns] *= 1 - used
  if rest.any():
    raise errors.refuse(
      path,
      f'lora_B of {module} reaches rows that config.adapter.targets leaves out',
      'choose all projections that the module joins',
    )
  return out
