"""Initial weights of a model: from a Hugging Face folder, a run, an adapter.

Comes in: a folder. Goes out: the model's shape, its parameters on the mesh, and
the folder of its tokenizer. A folder with model.json is a run directory, one
with adapter_config.json and no weights is a PEFT adapter; a run that trained an
adapter and a PEFT adapter are read as merged weights. Makes no random weights,
except those that a run's adapter was trained on.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax import errors, sharding, tree
from dpo_jax.models import (
  adapter_spec,
  adapters,
  architectures,
  decoder,
  families,
  quantized,
)
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.storage import (
  checkpoints,
  files,
  hf_checkpoint,
  peft_base,
  peft_checkpoint,
  run_dir,
  state_items,
)
from dpo_jax.types import Adapted, Array, Params

_MODEL = 'model.json'  # shape of a run's model, in Hugging Face's keys


def read_config(folder: str) -> DecoderConfig:
  """Reads the shape of the model in a folder or a run."""
  if _is_run(folder):
    path = files.at(folder) / _MODEL
    return architectures.from_hf_config(files.read_json(path), where=str(path))
  if peft_base.is_adapter(folder):
    return read_config(peft_base.find(folder))
  return architectures.from_hf_config(
    hf_checkpoint.read_config(folder),
    where=str(files.at(folder) / 'config.json'),
  )


def recorded(folder: files.AnyPath) -> DecoderConfig | None:
  """Reads the shape of a run's model; None if none is recorded yet."""
  path = files.at(folder) / _MODEL
  values = files.read_json_or_none(path)
  if values is None:
    return None
  return architectures.from_hf_config(values, where=str(path))


def check(folder: str, config: DecoderConfig) -> None:
  """Raises InputError unless the headers have this model's names and shapes.

  Reads no weights. Of a run, only checks that what it was trained on is there.
  """
  if _is_run(folder):
    base = _run_config(folder)['model']['init_from']
    if _adapter_of(folder) and base:
      check(base, read_config(base))
  elif peft_base.is_adapter(folder):
    check(peft_base.find(folder), config)
    peft_base.read_spec(folder, config)
  else:
    hf_checkpoint.check(folder, config)


def load(
  folder: str,
  config: DecoderConfig,
  shardings: Params,
  abstract: Params,
  *,
  add_rows: bool = False,
) -> Params:
  """Loads parameters, float32; each device reads only its own slice.

  Args:
    folder: Hugging Face folder; run directory: its newest sound checkpoint,
      merged if it holds an adapter; or PEFT folder, merged into its base.
    config: the model's DecoderConfig.
    shardings: pytree of NamedShardings.
    abstract: pytree of ShapeDtypeStructs with the shardings.
    add_rows: whether a folder with a smaller vocabulary gets more rows, each
      the mean of its table.

  Raises:
    InputError: a parameter is missing, has another shape or is not finite;
      names it.
  """
  own = read_config(folder)
  if add_rows and own.vocab_size < config.vocab_size:
    placed = _place_smaller(own, shardings)
    params = _load(folder, own, *placed)
    extend = functools.partial(_with_rows, own, config)
    params = jax.jit(extend, out_shardings=shardings)(params)
  else:
    params = _load(folder, config, shardings, abstract)
  check_finite(params, config, folder)
  return params


def check_finite(params: Params, config: DecoderConfig, where: str) -> None:
  """Raises InputError if a parameter that was given is NaN or infinite."""
  where_to = jax.tree.map(lambda leaf: leaf.sharding, params)
  # Replicated, so that any process can read them. The function is one for all
  # calls: the runs of a sweep compile it once.
  are_finite = jax.jit(_are_finite, out_shardings=_replicated(where_to))
  for name, is_finite in jax.device_get(are_finite(params)).items():
    if is_finite.all():
      continue
    tensor = families.FAMILIES[config.family].tensors.get(name)
    place = name if tensor is None else tensor.name
    layer = str(int(is_finite.argmin()))
    place = place.replace('{i}', layer)
    raise errors.refuse(
      where,
      f'{place} holds numbers that are not finite: the weights that were given '
      'are damaged, or overflowed where they were made',
      'copy them again, or use others',
    )


def _are_finite(params: Params) -> dict[str, Array]:
  """Bool [N] per parameter, by layer, so that a line can name the tensor."""
  return {
    name: jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1)
    for name, leaf in tree.flatten_with_names(params)
  }


def tokenizer_of(folder: str) -> str:
  """Returns the folder or name of the tokenizer that a model was trained on."""
  if peft_base.is_adapter(folder) and not _is_run(folder):
    if (files.at(folder) / 'tokenizer.json').is_file():
      return folder
    return tokenizer_of(peft_base.find(folder))
  if not _is_run(folder):
    return folder
  # A run without a tokenizer of its own took that of the model it began with,
  # which may be a run again.
  config = _run_config(folder)
  return config['tokenizer'] or tokenizer_of(config['model']['init_from'])


def record(folder: files.AnyPath, config) -> None:
  """Writes model.json, the shape of a run's model, into the run's folder."""
  files.write_json(folder / _MODEL, architectures.to_hf_config(config))


def _is_run(folder: str) -> bool:
  return (files.at(folder) / _MODEL).is_file()


def _run_config(folder: str) -> dict[str, Any]:
  """The config of a run; InputError if it lacks what is read here."""
  run = run_dir.RunDir(folder)
  values = run.config()
  model, adapter = values.get('model'), values.get('adapter', {})
  if not (
    isinstance(model, Mapping)
    and isinstance(model.get('init_from'), str)
    and isinstance(values.get('tokenizer'), str)
    and type(values.get('seed')) is int
    and isinstance(adapter, Mapping)
    and type(adapter.get('rank', 0)) is int
  ):
    raise errors.refuse(
      run.path / 'config.json',
      'not the config of a run: model.init_from, tokenizer, seed or '
      'adapter.rank is missing or of another type',
      'put back a copy',
    )
  return values


def _adapter_of(folder: str) -> Mapping[str, Any] | None:
  """The choices of a run's adapter; None if it trained all weights."""
  # Older runs have no adapter section.
  adapter = _run_config(folder).get('adapter', {})
  return adapter if adapter.get('rank') else None


def _load(folder, config, shardings, abstract) -> Params:
  """Loads a model of exactly this shape."""
  if _is_run(folder):
    choices = _adapter_of(folder)
    if choices is None:
      return _newest(folder, abstract)
    spec = adapter_spec.from_choices(choices, config)
    adapter = _newest(folder, _abstract_adapter(config, spec, shardings))
    base = _base_of_run(folder, config, shardings, abstract)
    if choices.get('base', 'float32') != 'float32':
      kind = choices['base']
      base = jax.jit(functools.partial(quantized.quantize, kind=kind))(base)
    return _merge(base, adapter, spec, shardings)
  if peft_base.is_adapter(folder):
    spec = peft_base.read_spec(folder, config)
    placed = jax.tree.map(
      lambda leaf: leaf.sharding, _abstract_adapter(config, spec, shardings)
    )
    adapter = peft_checkpoint.load(folder, config, spec, placed)
    base = load(peft_base.find(folder), config, shardings, abstract)
    return _merge(base, adapter, spec, shardings)
  return hf_checkpoint.load_params(folder, config, shardings=shardings)


def _newest(folder: str, abstract: Params) -> Params:
  """What a run trained, from its newest sound checkpoint."""
  path = files.at(folder) / 'checkpoints'
  with checkpoints.Checkpoints(path) as saved:
    wanted = {state_items.POLICY: abstract}
    restored = saved.restore_latest(wanted, partial=True)
  if restored is None:
    raise errors.refuse(
      path, 'this run has no checkpoint', 'let it train first'
    )
  return restored.items[state_items.POLICY]


def _base_of_run(folder, config, shardings, abstract) -> Params:
  """The frozen weights under a run's adapter, as the run made them."""
  choices = _run_config(folder)
  source = choices['model']['init_from']
  if source:
    return load(source, config, shardings, abstract, add_rows=True)
  init = jax.jit(decoder.make_model(config).init, out_shardings=shardings)
  return init(jax.random.key(choices['seed']))


def _merge(base, adapter, spec: AdapterSpec, shardings) -> Params:
  merge = jax.jit(adapters.merge, out_shardings=shardings)
  return merge(Adapted(base, adapter, jnp.float32(spec.scale)))


def _abstract_adapter(config, spec: AdapterSpec, shardings) -> Params:
  """ShapeDtypeStructs of an adapter, on every device."""
  place = _replicated(shardings)
  return tree.unflatten_names(
    {
      name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
      for name, shape in adapters.shapes(config, spec).items()
    }
  )


def _replicated(shardings: Params) -> jax.sharding.Sharding:
  first = jax.tree.leaves(shardings)[0]
  mesh = getattr(first, 'mesh', None)
  return first if mesh is None else sharding.replicated(mesh)


def _place_smaller(config, shardings) -> tuple[Params, Params]:
  """Shardings and ShapeDtypeStructs of a model with fewer rows."""
  placed, whole = {}, _replicated(shardings)
  for name, own in tree.flatten_with_names(shardings):
    # So many rows may not be divisible by the mesh.
    placed[name] = whole if 'V' in param_dims(config)[name] else own
  abstract = {
    name: jax.ShapeDtypeStruct(
      tuple(config.sizes[d] for d in param_dims(config)[name]),
      jnp.float32,
      sharding=place,
    )
    for name, place in placed.items()
  }
  return tree.unflatten_names(placed), tree.unflatten_names(abstract)


def _with_rows(old: DecoderConfig, new: DecoderConfig, params) -> Params:
  """Parameters with the rows of `new`, the added ones the mean of the others.

  Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
  Models": of all choices the mean bounds the change of the model's predictions.
  """
  extended = {}
  for name, leaf in tree.flatten_with_names(params):
    dims = param_dims(old)[name]
    if 'V' in dims:
      axis = dims.index('V')
      count = new.vocab_size - old.vocab_size
      mean = leaf.mean(axis, keepdims=True)
      leaf = jnp.concatenate([leaf, jnp.repeat(mean, count, axis)], axis)
    extended[name] = leaf
  return tree.unflatten_names(extended)
