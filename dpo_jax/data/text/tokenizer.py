"""folder -> Tokenizer: reads tokenizer files in Hugging Face layout.

Comes in: 'byte', a folder with tokenizer.json, or the path of a tokenizer.json.
The files beside it are read too, if they exist: tokenizer_config.json,
special_tokens_map.json, config.json, generation_config.json,
chat_template.jinja, additional_chat_templates/NAME.jinja. Goes out: a
Tokenizer, or a types.InputError. Encodes nothing.
"""

from typing import Any

from dpo_jax import errors
from dpo_jax.data.text import checks, encoders, hf_tokenizer
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.hf_tokenizer import TokenizerFiles
from dpo_jax.storage import files

_FIX_FOLDER = (
  "give a folder with tokenizer.json, the path of a tokenizer.json, or 'byte'"
)
_RESTORE = 'restore the file'


def load(name_or_path: str) -> Tokenizer:
  """Loads a tokenizer.

  Args:
    name_or_path: 'byte' (the built-in one), a folder, or a tokenizer.json.

  Returns:
    The tokenizer. Its `name` is the argument.

  Raises:
    InputError: no tokenizer exists there, its files cannot be read, or they
      contradict each other.
  """
  name = str(name_or_path)
  if name == 'byte':
    return encoders.ByteTokenizer()
  path = files.at(name).expanduser()
  # A folder of an older layout is left to transformers to convert.
  if path.is_dir():
    path = path / 'tokenizer.json'
    if not path.is_file() and (path.parent / 'tokenizer_config.json').is_file():
      raise errors.refuse(
        name,
        'has tokenizer_config.json and no tokenizer.json',
        "write one with transformers' AutoTokenizer(...).save_pretrained",
      )
  if not path.is_file():
    raise errors.refuse(
      name,
      'no tokenizer is there',
      errors.did_you_mean(name, ['byte']) + _FIX_FOLDER,
    )
  return hf_tokenizer.FileTokenizer(_read_folder(path, name))


def _read_folder(path: files.AnyPath, name: str) -> TokenizerFiles:
  config = _json(path.with_name('tokenizer_config.json'))
  special_map = _json(path.with_name('special_tokens_map.json'))
  _check(special_map, path.with_name('special_tokens_map.json'))
  _check(config, path.with_name('tokenizer_config.json'))
  return TokenizerFiles(
    name=name,
    where=str(path),
    tokenizer_json=_text(path),
    # tokenizer_config.json overrides special_tokens_map.json.
    settings={**special_map, **config},
    model=_json(path.with_name('config.json')),
    generation=_json(path.with_name('generation_config.json')),
    chat_templates=_template_files(path) or _listed_templates(path, config),
  )


def _check(settings: dict[str, Any], path: files.AnyPath) -> None:
  """Refuses names of tokens that are no text, as no tokenizer takes them."""
  where = str(path)
  checks.writable(settings, 'settings', where)
  for key in ('additional_special_tokens', 'extra_special_tokens'):
    value = settings.get(key)
    if value and not isinstance(value, (list, dict)):
      raise errors.wrong_type(key, value, 'a list of tokens', where)


def _template_files(path: files.AnyPath) -> dict[str, str]:
  """Templates in .jinja files. If any exist, transformers reads no others."""
  others = path.with_name('additional_chat_templates').glob('*.jinja')
  paths = {file.stem: file for file in sorted(others)}
  default = path.with_name('chat_template.jinja')
  paths |= {'default': default} if default.is_file() else {}
  return {name: _text(file) for name, file in paths.items()}


def _listed_templates(path: files.AnyPath, config: dict) -> dict[str, str]:
  """Templates in tokenizer_config.json: a single one, or several by name."""
  given = config.get('chat_template')
  if given is None:
    return {}
  if isinstance(given, list):  # [{'name': 'default', 'template': ...}, ...]
    given = {
      entry.get('name'): entry.get('template')
      for entry in given
      if isinstance(entry, dict)
    }
  named = given if isinstance(given, dict) else {'default': given}
  for name, source in named.items():
    if not isinstance(name, str) or not isinstance(source, str):
      raise errors.refuse(
        str(path.with_name('tokenizer_config.json')),
        f"'chat_template' has {errors.show(source)} under {name!r}, not a "
        'string under a name',
        'make it a Jinja template, or remove it',
      )
  return named


def _json(path: files.AnyPath) -> dict[str, Any]:
  """Reads a JSON object; {} if there is no such file."""
  return files.read_json_or_none(path, fix=_RESTORE) or {}


def _text(path: files.AnyPath) -> str:
  return files.read_text(path, fix=_RESTORE)
