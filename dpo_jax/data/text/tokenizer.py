"""folder -> Tokenizer: reads tokenizer files in Hugging Face layout.

Comes in: 'byte', a folder with tokenizer.json, or the path of a tokenizer.json.
The files beside it are read too, if they exist: tokenizer_config.json,
special_tokens_map.json, config.json, generation_config.json,
chat_template.jinja, additional_chat_templates/NAME.jinja. Goes out: a
Tokenizer, or a types.InputError. Encodes nothing.
"""

import json
import pathlib
from typing import Any

from dpo_jax import errors
from dpo_jax.data.text import encoders, hf_tokenizer
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.hf_tokenizer import TokenizerFiles
from dpo_jax.types import InputError

_FIX_FOLDER = (
  "give a folder with tokenizer.json, the path of a tokenizer.json, or 'byte'"
)


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
  path = pathlib.Path(name).expanduser()
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


def _read_folder(path: pathlib.Path, name: str) -> TokenizerFiles:
  config = _read_json(path.with_name('tokenizer_config.json'))
  special_map = _read_json(path.with_name('special_tokens_map.json'))
  return TokenizerFiles(
    name=name,
    where=str(path),
    tokenizer_json=_read_text(path),
    settings={**special_map, **config},
    model=_read_json(path.with_name('config.json')),
    generation=_read_json(path.with_name('generation_config.json')),
    chat_templates=_template_files(path) or _listed_templates(path, config),
  )


def _template_files(path: pathlib.Path) -> dict[str, str]:
  """Templates in .jinja files. If any exist, transformers reads no others."""
  others = path.with_name('additional_chat_templates').glob('*.jinja')
  files = {file.stem: file for file in sorted(others)}
  default = path.with_name('chat_template.jinja')
  files |= {'default': default} if default.is_file() else {}
  return {name: _read_text(file) for name, file in files.items()}


def _listed_templates(path: pathlib.Path, config: dict) -> dict[str, str]:
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


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object; {} where there is no file."""
  if not path.is_file():
    return {}
  try:
    value = json.loads(_read_text(path))
  except (ValueError, RecursionError) as error:
    raise errors.refuse(
      str(path), f'is not JSON: {error}', 'restore the file'
    ) from None
  if not isinstance(value, dict):
    raise errors.refuse(
      str(path), f'is {errors.show(value)}, not an object', 'restore the file'
    )
  return value


def _read_text(path: pathlib.Path) -> str:
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise _unreadable(path, error) from None
  if text.startswith('version https://git-lfs'):
    raise errors.refuse(
      str(path), 'is a git-lfs pointer, not the file', 'run `git lfs pull`'
    )
  return text


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
  return errors.refuse(
    str(path), f'cannot be read: {error}', 'restore the file'
  )
