"""Initial weights of a model: from a Hugging Face folder or from a run.

Comes in: a folder. Goes out: the model's shape, its parameters on the mesh, and
the folder of its tokenizer. A folder with model.json is a run directory. Makes
no random weights.
"""

import pathlib

from dpo_jax import errors
from dpo_jax.models import architectures
from dpo_jax.storage import (
  checkpoints,
  files,
  hf_checkpoint,
  run_dir,
  state_items,
)
from dpo_jax.types import Params

_MODEL = 'model.json'  # shape of a run's model, in Hugging Face's keys


def read_config(folder: str) -> architectures.DecoderConfig:
  """Reads the shape of the model in a folder or a run."""
  return architectures.from_hf_config(_hf_config(folder))


def recorded(folder: pathlib.Path) -> architectures.DecoderConfig | None:
  """Reads the shape of a run's model; None if none is recorded yet."""
  path = pathlib.Path(folder) / _MODEL
  values = files.read_json_or_none(path)
  return None if values is None else architectures.from_hf_config(values)


def check(folder: str, config: architectures.DecoderConfig) -> None:
  """Raises InputError unless the headers have this model's names and shapes.

  Reads no weights. Of a run, only checks that it holds a whole model.
  """
  if _is_run(folder):
    _refuse_adapter(folder)
  else:
    hf_checkpoint.check(folder, config)


def load(folder: str, config, shardings: Params, abstract: Params) -> Params:
  """Loads parameters, float32; each device reads only its own slice.

  Args:
    folder: Hugging Face folder, or run directory: its newest sound checkpoint.
    config: the model's DecoderConfig.
    shardings: pytree of NamedShardings.
    abstract: pytree of ShapeDtypeStructs with the shardings.

  Raises:
    InputError: a parameter is missing or has another shape; names it.
  """
  if not _is_run(folder):
    return hf_checkpoint.load_params(folder, config, shardings=shardings)
  _refuse_adapter(folder)
  path = pathlib.Path(folder) / 'checkpoints'
  with checkpoints.Checkpoints(path) as saved:
    wanted = {state_items.POLICY: abstract}
    restored = saved.restore_latest(wanted, partial=True)
  if restored is None:
    raise errors.refuse(
      path, 'this run has no checkpoint', 'let it train first'
    )
  return restored.items[state_items.POLICY]


def tokenizer_of(folder: str) -> str:
  """Returns the folder or name of the tokenizer that a model was trained on."""
  if not _is_run(folder):
    return folder
  # A run without a tokenizer of its own took that of the model it began with,
  # which may be a run again.
  config = run_dir.RunDir(folder).config()
  return config['tokenizer'] or tokenizer_of(config['model']['init_from'])


def record(folder: pathlib.Path, config) -> None:
  """Writes model.json, the shape of a run's model, into the run's folder."""
  files.write_json(folder / _MODEL, architectures.to_hf_config(config))


def _is_run(folder: str) -> bool:
  return (pathlib.Path(folder) / _MODEL).is_file()


def _refuse_adapter(folder: str) -> None:
  # Older runs have no adapter section.
  config = run_dir.RunDir(folder).config()
  if config.get('adapter', {}).get('rank'):
    raise errors.refuse(
      folder,
      'this run trained an adapter and holds no whole weights',
      'write them with --mode=export and give that folder',
    )


def _hf_config(folder: str) -> dict:
  if _is_run(folder):
    return files.read_json(pathlib.Path(folder) / _MODEL)
  return hf_checkpoint.read_config(folder)
