"""text -> tokens: a tokenizer.json, run by the `tokenizers` library.

Comes in: the contents of a tokenizer's files. Goes out: an encoders.Tokenizer.
Touches no disk (tokenizer.py does); the rules are those of encoders.py.

Ids by name come from tokenizer_config.json or special_tokens_map.json, else
config.json, else generation_config.json; so do EOS and padding that the former
leave null. `add_bos_token` of
tokenizer_config.json, where it is written, overrules the post-processor of
tokenizer.json, as in transformers.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tokenizers

from dpo_jax import errors
from dpo_jax.data.text import encoders
from dpo_jax.data.text.encoders import Job
from dpo_jax.data.text.templates import Piece
from dpo_jax.storage import files as storage_files

BOUNDARY_WINDOW = 32  # characters looked at on each side of a boundary


class TokenizerFiles(NamedTuple):
  """The contents of a tokenizer's folder."""

  name: str
  where: str  # path of tokenizer.json, for messages
  tokenizer_json: str
  settings: dict[str, Any]  # tokenizer_config over special_tokens_map
  model: dict[str, Any]  # config.json
  generation: dict[str, Any]  # generation_config.json
  chat_templates: dict[str, str]  # by name


class FileTokenizer(encoders.Tokenizer):
  """A tokenizer.json, run by the `tokenizers` library."""

  def __init__(self, files: TokenizerFiles):
    """Padding, truncation, dropout and post-processor are switched off.

    Raises:
      InputError: the library cannot read the file, or BOS or EOS have names
        that it does not know.
    """
    spec, self._start = _parse(files)
    self._first_only = 'first' in _prepend_schemes(spec)
    begin = _post_processed_begin(self._start)
    self._start.post_processor = None
    names = _special_names(files.settings)
    self.vocab_size = 1 + max(self._start.get_vocab().values(), default=-1)
    self.bos_id, self.eos_id, self.pad_id = (
      self._named_id(files, names, key) for key in ('bos', 'eos', 'pad')
    )
    if files.settings.get('add_bos_token') is False:
      begin = ()
    elif files.settings.get('add_bos_token') and self.bos_id is not None:
      begin = begin or (self.bos_id,)
    self.begin = begin
    if self.bos_id is None and begin:
      self.bos_id = begin[0]
    self.stop_ids = self._stops(files)
    self._make_special(names.values())
    added = self._start.get_added_tokens_decoder()
    self._special = {t.content: t for t in added.values() if t.special}
    super().__init__({t.content: i for i, t in added.items() if t.special})
    self._middle = self._start
    if _drop_prefixes(spec):
      self._middle = tokenizers.Tokenizer.from_str(json.dumps(spec))
      self._middle.add_special_tokens(list(self._special.values()))
    self.name = files.name
    self.chat_templates = files.chat_templates
    self.special_tokens = names
    self.fingerprint = self._hash(files)

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """As the library's decoder writes it.

    Some decoders drop a space at the beginning: the text of a completion is
    what decode(prompt + completion) has after decode(prompt).
    """
    ids = [int(i) for i in ids]
    return self._start.decode(ids, skip_special_tokens=skip_special)

  def merges(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """The joint text, BOUNDARY_WINDOW characters to either side."""
    windows = [
      (left[-BOUNDARY_WINDOW:], right[:BOUNDARY_WINDOW])
      for left, right in pairs
    ]
    unique = list(dict.fromkeys(windows))
    self._middle.encode_special_tokens = False
    encodings = self._middle.encode_batch(
      [left + right for left, right in unique], add_special_tokens=False
    )
    found = {
      (left, right): any(a < len(left) < b for a, b in encoding.offsets)
      for (left, right), encoding in zip(unique, encodings)
    }
    return [found[window] for window in windows]

  def _plan(self, pieces: Sequence[Piece], continues: bool) -> list[Job | int]:
    has_prefix = self._middle is not self._start
    middle = continues and has_prefix
    text = ''.join(piece.text for piece in pieces)
    if all(piece.is_content for piece in pieces):
      return [Job(text, False, middle)]
    if not middle and not any(piece.is_content for piece in pieces):
      return [Job(text, True, False)]
    plan: list[Job | int] = []
    parts = self._split(pieces)
    for i in range(0, len(parts), 2):
      text = parts[i]
      if i and self._special[parts[i - 1]].rstrip:
        text = text.lstrip()
      if i + 1 < len(parts) and self._special[parts[i + 1]].lstrip:
        text = text.rstrip()
      if text:
        inside = has_prefix and self._first_only if i else middle
        plan.append(Job(text, False, inside))
      if i + 1 < len(parts):
        plan.append(self._control_ids[parts[i + 1]])
    return plan

  def _run(self, jobs: list[Job]) -> dict[Job, list[int]]:
    found = {}
    for special in (False, True):
      for middle in (False, True):
        some = [j for j in jobs if (j.special, j.middle) == (special, middle)]
        engine = self._middle if middle else self._start
        engine.encode_special_tokens = not special
        encodings = engine.encode_batch_fast(
          [job.text for job in some], add_special_tokens=False
        )
        found.update(zip(some, (encoding.ids for encoding in encodings)))
    return found

  def _offsets(self, job: Job) -> Sequence[tuple[int, int]]:
    engine = self._middle if job.middle else self._start
    engine.encode_special_tokens = not job.special
    return engine.encode(job.text, add_special_tokens=False).offsets

  def _named_id(
    self, files: TokenizerFiles, names: dict[str, str], key: str
  ) -> int | None:
    if f'{key}_token' in files.settings:
      name = names.get(f'{key}_token')
      found = None if name is None else self._start.token_to_id(name)
      if name is not None and found is None and key != 'pad':
        raise errors.refuse(
          files.where,
          f'has no token {name!r}, which tokenizer_config.json names as '
          f'{key}_token',
          'use the tokenizer_config.json that belongs to this tokenizer.json',
        )
      if found is not None or key == 'bos':
        return found
    for config in (files.model, files.generation):
      for value in _as_list(config.get(f'{key}_token_id')):
        if type(value) is int and 0 <= value < self.vocab_size:
          return value
    return None

  def _stops(self, files: TokenizerFiles) -> frozenset[int]:
    ids = [
      *_as_list(files.model.get('eos_token_id')),
      *_as_list(files.generation.get('eos_token_id')),
      self.eos_id,
    ]
    return frozenset(
      i for i in ids if type(i) is int and 0 <= i < self.vocab_size
    )

  def _make_special(self, names: Iterable[str]) -> None:
    """What the configs call special is special, as in transformers."""
    stops = (self._start.id_to_token(i) for i in self.stop_ids)
    known = self._start.get_added_tokens_decoder().values()
    special = {token.content for token in known if token.special}
    self._start.add_special_tokens(
      [
        tokenizers.AddedToken(name, normalized=False, special=True)
        for name in dict.fromkeys((*names, *stops))
        if name not in special and self._start.token_to_id(name) is not None
      ]
    )

  def _hash(self, files: TokenizerFiles) -> str:
    ids = [self.bos_id, self.eos_id, self.pad_id, *sorted(self.stop_ids)]
    others = dict(self.chat_templates)
    parts = (
      files.tokenizer_json,
      str(others.pop('default', None)),
      repr((ids, self.begin, sorted(self._control_ids))),
    )
    parts += (repr(sorted(others.items())),) if others else ()
    return storage_files.bytes_digest(['\0'.join(parts).encode()])


def _parse(files: TokenizerFiles) -> tuple[dict, tokenizers.Tokenizer]:
  """The JSON without padding, truncation and dropout, and its tokenizer."""
  text = files.tokenizer_json
  try:
    spec = json.loads(text)
    tokenizer = tokenizers.Tokenizer.from_str(text)
    if spec['model'].get('dropout'):
      tokenizer.model.dropout = spec['model']['dropout'] = None
  except Exception as error:  # the library raises bare Exception
    raise errors.refuse(
      files.where,
      f'is not a tokenizer that `tokenizers` {tokenizers.__version__} reads: '
      f'{errors.show(str(error), 200)}',
      'restore the file',
    ) from None
  tokenizer.no_padding()
  tokenizer.no_truncation()
  spec['padding'] = spec['truncation'] = None
  return spec, tokenizer


def _post_processed_begin(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
  """What the post-processor of tokenizer.json puts before a text."""
  whole = tokenizer.encode('a').ids
  text = tokenizer.encode('a', add_special_tokens=False).ids
  for i in range(len(whole) - len(text) + 1):
    if whole[i : i + len(text)] == text:
      return tuple(whole[:i])
  return ()


def _special_names(settings: dict[str, Any]) -> dict[str, str]:
  """'bos_token' -> its string, and so on for every special token."""
  names = {}
  for key, value in settings.items():
    if key.endswith('_token'):
      names[key] = value.get('content') if isinstance(value, dict) else value
  for key in ('additional_special_tokens', 'extra_special_tokens'):
    more = settings.get(key) or ()
    more = more.values() if isinstance(more, dict) else more
    for i, value in enumerate(more):
      content = value.get('content') if isinstance(value, dict) else value
      names[f'{key}_{i}'] = content
  return {key: name for key, name in names.items() if isinstance(name, str)}


def _prepend_schemes(spec: dict) -> set[str]:
  """When each Metaspace of the pre-tokenizer prepends."""
  return {
    part.get('prepend_scheme', 'always')
    for part in _parts(spec.get('pre_tokenizer'), 'pretokenizers')
    if part['type'] == 'Metaspace'
  }


def _drop_prefixes(spec: dict) -> bool:
  """Takes out of the JSON what it puts before a text; whether there was any.

  Also the post-processor, which puts BOS there.
  """
  before = json.dumps([spec.get('normalizer'), spec.get('pre_tokenizer')])
  spec['post_processor'] = None
  for part in _parts(spec.get('normalizer'), 'normalizers'):
    if part['type'] == 'Prepend':
      part.clear()
      part.update(type='Sequence', normalizers=[])
    elif part['type'] == 'Strip':
      part['strip_left'] = False
  for part in _parts(spec.get('pre_tokenizer'), 'pretokenizers'):
    if part['type'] == 'Metaspace':
      part['prepend_scheme'] = 'never'
      part.pop('add_prefix_space', None)
    elif part['type'] == 'ByteLevel':
      part['add_prefix_space'] = False
  after = json.dumps([spec.get('normalizer'), spec.get('pre_tokenizer')])
  return before != after


def _parts(part: dict | None, key: str) -> list[dict]:
  """A normalizer or pre-tokenizer, with all that its sequences hold."""
  if not part:
    return []
  return [part, *(p for q in part.get(key, ()) for p in _parts(q, key))]


def _as_list(value: Any) -> list:
  return value if isinstance(value, list) else [value]
