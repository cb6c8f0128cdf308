"""Weights in Hugging Face layout: folders of safetensors, in and out.

Comes in: a folder (config.json, model.safetensors or its sharded index) and
the DecoderConfig. Goes out: float32 parameters, or a folder that transformers
loads. Each device reads only its own slice. Names and shapes are checked in the
headers, before an array is made. Reads no pickles.
"""

import contextlib
import functools
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from dpo_jax import errors, tree
from dpo_jax.models import architectures, families
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.storage import files, hf_companions, hf_files, hf_layout
from dpo_jax.types import Params

MAX_SHARD_BYTES = 5_000_000_000
_ROWS = 8192  # rows of an embedding that are compared at once

# Buffers that older releases stored: config.json determines them.
_BUFFERS = re.compile(r'\.(rotary_emb\.inv_freq|(attn|attention)\.\w*bias)$')


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
  """Reads the folder's config.json; InputError if there is none."""
  return files.read_json(
    files.at(folder) / 'config.json',
    if_missing='give the folder of a Hugging Face checkpoint',
  )


def check(folder: str | os.PathLike, config: DecoderConfig) -> None:
  """Compares the tensors of the headers with the config.

  Raises:
    InputError: tensors are missing, unexpected or misshapen; names them.
  """
  with contextlib.ExitStack() as stack:
    _check(hf_files.Files(files.at(folder), stack), config)


def load_params(
  folder: str | os.PathLike,
  config: DecoderConfig,
  *,
  shardings: Params | None = None,
  more: Collection[str] = (),
) -> Params:
  """Reads the parameters of a decoder, cast to float32.

  Args:
    folder: the folder of model.safetensors, or of its index and shards.
    config: `architectures.from_hf_config(read_config(folder))`.
    shardings: pytree like params; each device reads only its slice. None puts
      everything on the first device.
    more: further tensors that may be there: the head of a classifier.

  Raises:
    InputError: as `check`.
  """
  placed = dict(tree.flatten_with_names(shardings)) if shardings else {}
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with contextlib.ExitStack() as stack:
    stored = hf_files.Files(files.at(folder), stack)
    _check(stored, config, more)
    params = {}
    for name, dims in param_dims(config).items():
      shape = tuple(config.sizes[d] for d in dims)
      params[name] = jax.make_array_from_callback(
        shape,
        placed.get(name, first),
        lambda index, name=name: _read(stored, config, name, index),
        dtype=np.float32,
      )
    jax.block_until_ready(params)
  return tree.unflatten_names(params)


def save(
  folder: str | os.PathLike,
  params: Params,
  config: DecoderConfig,
  *,
  companions: hf_companions.Companions = hf_companions.NONE,
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes a folder that transformers loads, whole or not at all.

  Args:
    folder: the folder to make; an empty one may exist.
    params: parameters of `config`, in any sharding that this process can read.
    config: the model's shape; it becomes config.json.
    companions: tokenizer, stops and chat templates that go along.
    max_shard_bytes: bytes per safetensors file; a larger tensor has a file of
      its own.

  Raises:
    InputError: the folder is taken or cannot be written.
  """
  with files.storage_errors(folder), files.whole_folder(folder) as beside:
    mapping = architectures.to_hf_config(config)
    mapping |= hf_companions.write(beside, companions)
    files.write_json(beside / 'config.json', mapping, sort_keys=True)
    _write_tensors(beside, params, config, max_shard_bytes)


def _check(
  stored: hf_files.Files, config: DecoderConfig, more: Collection[str] = ()
) -> None:
  """Raises InputError as `check`."""
  # Said before the tensors of so many layers are listed.
  if config.num_layers > len(stored.names):
    raise errors.refuse(
      stored.folder,
      f'{len(stored.names)} tensors, and config.json has {config.num_layers} '
      'layers',
      'use the config.json of these weights',
    )
  expected = _expected(stored, config)
  missing = [name for name in expected if name not in stored.names]
  if missing:
    raise errors.refuse(
      stored.folder,
      f'{_some("tensor", missing)} missing, of {len(expected)} that its '
      'config.json asks for',
      'check config.json (layers, biases, tie_word_embeddings), or copy the '
      'weights again',
    )
  _check_tied(stored, config)
  # Unread tensors mean another model than config.json says, unless they are
  # known buffers or the copy of a tied head.
  unexpected = [
    name
    for name in sorted(stored.names - {*expected, *more})
    if not _BUFFERS.search(name) and name != _head_name(config)
  ]
  if unexpected:
    raise errors.refuse(
      stored.folder,
      f'{_some("tensor", unexpected)} unexpected for a {config.family} of '
      'this config.json',
      'check config.json (layers, biases, model_type)',
    )
  for name, shape in expected.items():
    stored_shape, kind = stored.describe(name)
    if stored_shape != shape:
      raise errors.refuse(
        stored.path(name),
        f'{name} has shape {stored_shape}, config.json asks for {shape}',
        'use the config.json of these weights',
      )
    if kind not in hf_files.FLOATS:
      raise errors.refuse(
        stored.path(name),
        f'{name} is {kind}, quantised weights are not read',
        f'use a checkpoint of {", ".join(hf_files.FLOATS)}',
      )


def _check_tied(stored: hf_files.Files, config: DecoderConfig) -> None:
  """Raises InputError if tied embeddings come with another head."""
  head = _head_name(config)
  if not config.tied or head not in stored.names:
    return
  embedding = _names(stored, config)['embed/embedding']
  if not _equal(stored, head, embedding):
    raise errors.refuse(
      stored.path(head),
      f'{head} differs from {embedding}, but config.json says '
      'tie_word_embeddings',
      f'set tie_word_embeddings to false, or remove {head}',
    )


def _equal(stored: hf_files.Files, name: str, other: str) -> bool:
  """Returns whether two tensors are equal, read a few rows at a time."""
  # Embeddings may take gigabytes, so blocks of rows are compared.
  shape, _ = stored.describe(name)
  if stored.describe(other)[0] != shape:
    return False
  rows = range(0, shape[0], _ROWS)
  parts = (slice(i, min(i + _ROWS, shape[0])) for i in rows)
  return all(
    np.array_equal(stored.read(name, (p,)), stored.read(other, (p,)))
    for p in parts
  )


def _head_name(config: DecoderConfig) -> str:
  """Returns the name of the head's tensor."""
  return families.FAMILIES[config.family].tensors['head/kernel'].name


def _expected(
  stored: hf_files.Files, config: DecoderConfig
) -> dict[str, tuple[int, ...]]:
  """Returns {tensor: shape} of all that the files must hold."""
  table, names = _table(stored, config), _names(stored, config)
  return {
    names[name].format(**numbers): shape
    for name, tensor, shape in _tensors(config, table)
    for numbers in hf_layout.copies(tensor, config.sizes)
  }


def _table(stored: hf_files.Files, config: DecoderConfig) -> Mapping[str, Any]:
  """Returns {our name: families.Tensor} in the layout of these files.

  Some releases hold all experts in one tensor, some each in its own.
  """
  family = families.FAMILIES[config.family]
  first = [tensor.name.format(i=0) for tensor in family.joined.values()][:1]
  if set(first) & stored.names:
    return {**family.tensors, **family.joined}
  return family.tensors


def _tensors(
  config: DecoderConfig, table: Mapping[str, Any]
) -> Iterator[tuple[str, Any, tuple]]:
  """Yields (our name, its families.Tensor, shape in the file)."""
  for name in param_dims(config):
    yield name, table[name], hf_layout.shape(table[name], config.sizes)


def _names(stored: hf_files.Files, config: DecoderConfig) -> dict[str, str]:
  """Returns {our name: the tensor's}, without a prefix that no tensor has."""
  prefix = families.FAMILIES[config.family].prefix
  absent = not any(name.startswith(prefix) for name in stored.names)
  drop = prefix if absent else ''
  return {
    name: tensor.name.removeprefix(drop)
    for name, tensor, _ in _tensors(config, _table(stored, config))
  }


def _read(
  stored: hf_files.Files, config: DecoderConfig, name: str, index
) -> np.ndarray:
  """Reads a slice of one parameter, float32."""
  dims, sizes = param_dims(config)[name], config.sizes
  tensor, template = _table(stored, config)[name], _names(stored, config)[name]
  ranges = {
    letter: slice(*part.indices(sizes[letter])[:2])
    for letter, part in zip(dims, index, strict=True)
  }
  stacked, dims = hf_layout.split_dims(tensor, dims)

  def one(tensor_name):
    get = functools.partial(stored.read, tensor_name)
    array = hf_layout.read(tensor, sizes, dims, ranges, get)
    return array.astype(np.float32)

  if not stacked:
    return one(template)
  # One tensor per layer (and expert) in the files, one stacked array here.
  copies = hf_layout.copies(tensor, sizes, ranges)
  pieces = np.stack([one(template.format(**numbers)) for numbers in copies])
  lengths = [ranges[d].stop - ranges[d].start for d in stacked]
  return pieces.reshape(*lengths, *pieces.shape[1:])


def _write_tensors(folder, params, config, max_shard_bytes) -> None:
  """Writes the safetensors files, in order of layers, and their index."""
  leaves = dict(tree.flatten_with_names(params))
  table = families.FAMILIES[config.family].tensors
  parts = [
    (numbers, (name, tensor), shape)
    for name, tensor, shape in _tensors(config, table)
    for numbers in hf_layout.copies(tensor, config.sizes)
  ]
  entries = {}  # tensor -> [(our name, its families.Tensor, index)], shape
  # Sorted by layer: a layer's tensors lie in one shard or in two neighbours.
  for numbers, (name, tensor), shape in sorted(
    parts, key=lambda part: part[0].get('i', 0)
  ):
    entry = entries.setdefault(tensor.name.format(**numbers), ([], shape))
    entry[0].append((name, tensor, tuple(numbers.values())))
  shards, total = [{}], 0
  for tensor_name, (parts, shape) in entries.items():
    size = 4 * int(np.prod(shape))  # float32
    used = sum(4 * int(np.prod(s)) for _, s in shards[-1].values())
    if used and used + size > max_shard_bytes:
      shards.append({})
    shards[-1][tensor_name] = (parts, shape)
    total += size
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    file = hf_files.SINGLE if len(shards) == 1 else file
    arrays = {
      tensor_name: _gather(leaves, config, parts, shape)
      for tensor_name, (parts, shape) in shard.items()
    }
    safetensors.numpy.save_file(arrays, folder / file, {'format': 'pt'})
    weight_map |= dict.fromkeys(shard, file)
  if len(shards) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    files.write_json(folder / hf_files.INDEX, index, sort_keys=True)


def _gather(leaves, config, parts, shape) -> np.ndarray:
  """Returns one tensor of a file."""
  # C-contiguous: safetensors.numpy.save_file writes other arrays wrongly.
  out = np.empty(shape, np.float32)
  for name, tensor, index in parts:
    _, dims = hf_layout.split_dims(tensor, param_dims(config)[name])
    leaf = np.asarray(leaves[name][index])
    hf_layout.write(tensor, config.sizes, dims, leaf, out)
  return out


def _some(noun: str, names: list[str]) -> str:
  """Returns 'tensor x is', or 'tensors x, y, z and 7 more are'."""
  first = ', '.join(names[:3])
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  one = len(names) == 1
  return f'{noun} {first} is' if one else f'{noun}s {first}{more} are'
