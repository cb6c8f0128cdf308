"""What lies beside the weights of an exported model: tokenizer, stops, chat.

Comes in: a tokenizer's folder, the ids that training ended texts with, the chat
templates in use. Goes out: the files from which transformers encodes, renders
and stops as training did. Writes no weights and no config.json: it returns the
token ids that belong there.
"""

import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

from dpo_jax.storage import files, scratch

_TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'chat_template.jinja',
  'generation_config.json',
)
_TEMPLATE = 'chat_template.jinja'
_MORE_TEMPLATES = 'additional_chat_templates'  # a folder
_SETTINGS = 'tokenizer_config.json'
_GENERATION = 'generation_config.json'
_TOKEN_IDS = ('bos_token_id', 'eos_token_id', 'pad_token_id')


class Companions(NamedTuple):
  """The files beside the weights."""

  source: files.AnyPath | None = None  # folder of the tokenizer's files
  # Token ids by key of config.json; None = those of the source's config.json.
  ids: Mapping[str, Any] | None = None
  # Jinja by name ('default', 'tool_use'), all of them; None = the source's.
  templates: Mapping[str, str] | None = None


NONE = Companions()  # nothing beside the weights


def token_ids(
  bos: int | None, eos: int | None, stops: list[int], pad: int | None
) -> dict[str, Any]:
  """Returns the token ids of config.json and generation_config.json.

  Args:
    bos: the token that texts begin with, if any.
    eos: the token that training ends answers with; the first one written.
    stops: all tokens at which sampling stops.
    pad: the padding token, if any.
  """
  ends = [eos] if eos is not None else []
  ends += [token for token in stops if token not in ends]
  return {
    'bos_token_id': bos,
    'eos_token_id': ends[0] if len(ends) == 1 else ends or None,
    'pad_token_id': pad,
  }


def write(folder: files.AnyPath, companions: Companions) -> dict[str, Any]:
  """Writes the files; returns the token ids that config.json is to hold."""
  source, ids = companions.source, companions.ids
  if source is not None:
    _copy(source, folder)
  if companions.templates is not None:
    _write_templates(folder, companions.templates)
  if ids is None:
    if source is None or not (source / 'config.json').is_file():
      return {}
    known = files.read_json(source / 'config.json')
    return {key: known[key] for key in _TOKEN_IDS if key in known}
  settings = files.read_json_or_none(folder / _GENERATION) or {}
  # transformers' generate reads its stops here; absent and null are the same.
  settings = {k: v for k, v in settings.items() if k not in _TOKEN_IDS}
  settings |= {key: value for key, value in ids.items() if value is not None}
  files.write_json(folder / _GENERATION, settings, sort_keys=True)
  return dict(ids)


def _copy(source: files.AnyPath, folder: files.AnyPath) -> None:
  for name in _TOKENIZER_FILES:
    if (source / name).is_file():
      shutil.copyfile(scratch.copy(source / name), folder / name)
  for file in (source / _MORE_TEMPLATES).glob('*.jinja'):
    (folder / _MORE_TEMPLATES).mkdir(exist_ok=True)
    shutil.copyfile(scratch.copy(file), folder / _MORE_TEMPLATES / file.name)


def _write_templates(
  folder: files.AnyPath, templates: Mapping[str, str]
) -> None:
  """Replaces all chat templates of the folder."""
  shutil.rmtree(folder / _MORE_TEMPLATES, ignore_errors=True)
  (folder / _TEMPLATE).unlink(missing_ok=True)
  settings = files.read_json_or_none(folder / _SETTINGS)
  if settings and settings.pop('chat_template', None) is not None:
    files.write_json(folder / _SETTINGS, settings)
  for name, text in templates.items():
    path = folder / _TEMPLATE
    if name != 'default':
      path = folder / _MORE_TEMPLATES / f'{name}.jinja'
      path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
