"""Where a model comes from: a Hugging Face folder, or a run of ours.

Comes in: a folder. Goes out: the model's shape, its parameters on the mesh,
its tokenizer's place. A run is recognised by its model.json.
"""

import pathlib

from dpo_jax import errors
from dpo_jax.models import architectures
from dpo_jax.storage import checkpoints, files, hf_checkpoint, run_dir
from dpo_jax.types import Params

_MODEL = 'model.json'  # the shape of a run's model, in Hugging Face's words


def read_config(folder: str) -> architectures.DecoderConfig:
  """The shape of the model in a folder or a run."""
  return architectures.from_hf_config(_hf_config(folder))


def check(folder: str, config: architectures.DecoderConfig) -> None:
  """Refuses weights of other names or shapes, from their headers alone."""
  if _is_run(folder):
    _refuse_adapter(folder)
  else:
    hf_checkpoint.check(folder, config)


def load(folder: str, config, shardings: Params, abstract: Params) -> Params:
  """Parameters, float32, each device reading what it holds.

  Args:
    folder: Hugging Face folder or run directory; a run gives its newest sound
      checkpoint.
    config: the model's DecoderConfig.
    shardings: pytree of NamedShardings.
    abstract: pytree of ShapeDtypeStructs with the shardings.

  Raises:
    InputError: naming what is missing or of another shape.
  """
  if not _is_run(folder):
    return hf_checkpoint.load_params(folder, config, shardings=shardings)
  _refuse_adapter(folder)
  path = pathlib.Path(folder) / 'checkpoints'
  with checkpoints.Checkpoints(path) as saved:
    found = saved.restore_latest({'params': abstract}, partial=True)
  if found is None:
    raise errors.refuse(
      path, 'this run has no checkpoint', 'let it train first'
    )
  return found.items['params']


def tokenizer_of(folder: str) -> str:
  """The folder or name of the tokenizer that a model was trained with."""
  if not _is_run(folder):
    return folder
  config = run_dir.RunDir(folder).config()
  return config['tokenizer'] or tokenizer_of(config['model']['init_from'])


def record(folder: pathlib.Path, config) -> None:
  """Notes the shape of a run's model in the run's folder."""
  files.write_json(folder / _MODEL, architectures.to_hf_config(config))


def _is_run(folder: str) -> bool:
  return (pathlib.Path(folder) / _MODEL).is_file()


def _refuse_adapter(folder: str) -> None:
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
