"""text -> tokens: a tokenizer.json, run by the `tokenizers` library.

Comes in: the contents of a tokenizer's files. Goes out: an encoders.Tokenizer,
which follows the rules of encoders.py. Touches no disk: tokenizer.py does.

BOS, EOS and padding are those that tokenizer_config.json or
special_tokens_map.json names, else those of config.json, else those of
generation_config.json. An EOS or padding token that is null in the first two
is looked up in the others. A BOS that is null there does not exist. If
tokenizer_config.json has `add_bos_token`, it overrides the post-processor of
tokenizer.json, as in transformers.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tokenizers

from dpo_jax import errors
from dpo_jax.data.text import encoders, patience
from dpo_jax.data.text.encoders import TextPart
from dpo_jax.data.text.templates import Piece
from dpo_jax.storage import files as storage_files

_RESTORE = 'restore the file'
# What any tokenizer needs much less than: seconds, and characters per second.
_SECONDS, _CHARACTERS = 5, 50_000
BOUNDARY_WINDOW = 32  # characters read on each side of a boundary
MAX_ID = 2**24  # far above the ids of any vocabulary; a model has a row per id


class TokenizerFiles(NamedTuple):
  """Contents of a tokenizer's folder."""

  name: str
  where: str  # path of tokenizer.json, for messages
  tokenizer_json: str
  settings: dict[str, Any]  # tokenizer_config over special_tokens_map
  model: dict[str, Any]  # config.json
  generation: dict[str, Any]  # generation_config.json
  chat_templates: dict[str, str]  # by name


class FileTokenizer(encoders.Tokenizer):
  """A tokenizer.json, run by the `tokenizers` library.

  Two engines encode: `_start` for a text that begins, and `_middle` for one
  that continues another. They are the same object if the tokenizer adds
  nothing before a text.
  """

  def __init__(self, files: TokenizerFiles):
    """Switches padding, truncation, dropout and the post-processor off.

    Raises:
      InputError: the library cannot read the file, or does not know the name
        of BOS or EOS.
    """
    self._where = files.where
    spec, self._start = _parse(files)
    self._first_only = 'first' in _prepend_schemes(spec)
    begin = _post_processed_begin(self._start)
    self._start.post_processor = None
    names = _special_names(files.settings)
    self.known_ids = frozenset(self._start.get_vocab().values())
    self.vocab_size = 1 + max(self.known_ids, default=-1)
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
    if max(begin, default=0) >= self.vocab_size:
      raise errors.refuse(
        files.where,
        f'its post_processor puts id {max(begin)} before every text, and the '
        f'vocabulary has {self.vocab_size} ids',
        _RESTORE,
      )
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
    """Returns the text as the library's decoder writes it.

    Some decoders drop a space at the beginning. The text of a completion is
    therefore decode(prompt + completion) without its beginning decode(prompt).
    """
    ids = [int(i) for i in ids]
    return self._start.decode(ids, skip_special_tokens=skip_special)

  def merges(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Encodes each joint text, BOUNDARY_WINDOW characters on either side."""
    windows = [
      (left[-BOUNDARY_WINDOW:], right[:BOUNDARY_WINDOW])
      for left, right in pairs
    ]
    # Equal windows, as of one prompt's answers, are encoded once.
    unique = list(dict.fromkeys(windows))
    self._middle.encode_special_tokens = False
    encodings = self._middle.encode_batch(
      [left + right for left, right in unique], add_special_tokens=False
    )
    is_merged = {
      (left, right): any(a < len(left) < b for a, b in encoding.offsets)
      for (left, right), encoding in zip(unique, encodings)
    }
    return [is_merged[window] for window in windows]

  def _plan(
    self, pieces: Sequence[Piece], continues: bool
  ) -> list[TextPart | int]:
    has_prefix = self._middle is not self._start
    middle = continues and has_prefix
    text = ''.join(piece.text for piece in pieces)
    # Text of one kind is one part: the library finds its control tokens, or
    # none of them.
    if all(piece.is_content for piece in pieces):
      return [TextPart(text, False, middle)]
    if not middle and not any(piece.is_content for piece in pieces):
      return [TextPart(text, True, False)]
    plan: list[TextPart | int] = []
    # Text (even places) and control tokens (odd places) in turn.
    parts = self._split(pieces)
    for i in range(0, len(parts), 2):
      text = parts[i]
      # A token with rstrip swallows the white space to its right, one with
      # lstrip that to its left.
      if i and self._special[parts[i - 1]].rstrip:
        text = text.lstrip()
      if i + 1 < len(parts) and self._special[parts[i + 1]].lstrip:
        text = text.rstrip()
      if text:
        # After a control token, 'first' schemes add no prefix; others do.
        inside = has_prefix and self._first_only if i else middle
        plan.append(TextPart(text, False, inside))
      if i + 1 < len(parts):
        plan.append(self._control_ids[parts[i + 1]])
    return plan

  def _encode_parts(self, parts: list[TextPart]) -> dict[TextPart, list[int]]:
    ids_of = {}
    for special in (False, True):
      for middle in (False, True):
        alike = [p for p in parts if (p.special, p.middle) == (special, middle)]
        engine = self._middle if middle else self._start
        # The library's switch means: encode special tokens as plain text.
        engine.encode_special_tokens = not special
        texts = [part.text for part in alike]
        if not texts:
          continue
        encodings = self._in_time(engine.encode_batch_fast, texts)
        ids_of.update(zip(alike, (encoding.ids for encoding in encodings)))
    return ids_of

  def _offsets(self, part: TextPart) -> Sequence[tuple[int, int]]:
    engine = self._middle if part.middle else self._start
    engine.encode_special_tokens = not part.special
    return self._in_time(engine.encode_batch, [part.text])[0].offsets

  def _in_time(self, encode: Callable, texts: list[str]) -> list:
    """Returns what the library makes of texts, unless a regex takes too long.

    Args:
      encode: a method for several texts, as those let other threads run.
      texts: of the data.
    """
    size = sum(map(len, texts))
    with _refused(
      self._where,
      f'cannot encode one of {len(texts)} texts of {size:,} characters',
      'use the tokenizer that came with the model: a pattern of this one takes '
      'too long, or a text is too long for it',
    ):
      return patience.call(
        lambda: encode(texts, add_special_tokens=False),
        _SECONDS + size / _CHARACTERS,
      )

  def _named_id(
    self, files: TokenizerFiles, names: dict[str, str], key: str
  ) -> int | None:
    if f'{key}_token' in files.settings:
      name = names.get(f'{key}_token')
      token = None if name is None else self._start.token_to_id(name)
      if name is not None and token is None and key != 'pad':
        raise errors.refuse(
          files.where,
          f'has no token {name!r}, which tokenizer_config.json names as '
          f'{key}_token',
          'use the tokenizer_config.json that belongs to this tokenizer.json',
        )
      if token is not None or key == 'bos':
        return token
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
    # An id in a gap of the vocabulary is no token: nothing writes it.
    return frozenset(i for i in ids if type(i) is int and i in self.known_ids)

  def _make_special(self, names: Iterable[str]) -> None:
    """Makes the tokens that the configs name special, as in transformers."""
    # An ordinary added token would be found in content too.
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
    # Everything that decides ids. It is part of the token cache's key.
    parts = (
      files.tokenizer_json,
      str(others.pop('default', None)),
      repr((ids, self.begin, sorted(self._control_ids))),
    )
    parts += (repr(sorted(others.items())),) if others else ()
    return storage_files.bytes_digest(['\0'.join(parts).encode()])


def _parse(files: TokenizerFiles) -> tuple[dict, tokenizers.Tokenizer]:
  """Returns tokenizer.json without padding, truncation, dropout; its engine."""
  text = files.tokenizer_json
  reads = f'is not a tokenizer that `tokenizers` {tokenizers.__version__} reads'
  with _refused(files.where, reads, _RESTORE):
    spec = json.loads(text)
    tokenizer = tokenizers.Tokenizer.from_str(text)
    # BPE dropout would give other ids on every call.
    if spec['model'].get('dropout'):
      tokenizer.model.dropout = spec['model']['dropout'] = None
    _check_template(spec.get('post_processor'))
    # Some files can be read and encode nothing.
    tokenizer.encode('a')
  largest = max(tokenizer.get_vocab().values(), default=0)
  if largest > MAX_ID:
    raise errors.refuse(
      files.where,
      f'has the token id {largest}, above {MAX_ID}',
      _RESTORE,
    )
  tokenizer.no_padding()
  tokenizer.no_truncation()
  spec['padding'] = spec['truncation'] = None
  return spec, tokenizer


@contextlib.contextmanager
def _refused(where: str, problem: str, fix: str) -> Iterator[None]:
  """Context in which whatever the library raises is a refusal of one line."""
  try:
    yield
  except BaseException as error:
    # The library raises bare Exception, and panics are no Exception.
    is_panic = type(error).__name__ == 'PanicException'
    if not isinstance(error, Exception) and not is_panic:
      raise
    words = errors.show(str(error), 200)
    raise errors.refuse(where, f'{problem}: {words}', fix) from None


def _check_template(processor: Any) -> None:
  """Raises ValueError for a template with an undefined token.

  The library's own failure there is a panic, which it writes to stderr.
  """
  for part in _parts(processor, 'processors'):
    if part['type'] != 'TemplateProcessing':
      continue
    for piece in (*part['single'], *part['pair']):
      name = piece.get('SpecialToken', {}).get('id')
      if name is not None and name not in part['special_tokens']:
        raise ValueError(f'its post_processor does not define {name!r}')


def _post_processed_begin(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
  """The ids that the post-processor of tokenizer.json puts before a text."""
  processed = tokenizer.encode('a').ids
  text = tokenizer.encode('a', add_special_tokens=False).ids
  for i in range(len(processed) - len(text) + 1):
    if processed[i : i + len(text)] == text:
      return tuple(processed[:i])
  return ()


def _special_names(settings: dict[str, Any]) -> dict[str, str]:
  """'bos_token' -> its string, and so for every special token."""
  names = {}
  for key, value in settings.items():
    if key.endswith('_token'):
      names[key] = value.get('content') if isinstance(value, dict) else value
  for key in ('additional_special_tokens', 'extra_special_tokens'):
    more = settings.get(key) or ()
    more = list(more.values()) if isinstance(more, dict) else more
    for i, value in enumerate(more):
      content = value.get('content') if isinstance(value, dict) else value
      names[f'{key}_{i}'] = content
  return {key: name for key, name in names.items() if isinstance(name, str)}


def _prepend_schemes(spec: dict) -> set[str]:
  """The prepend_scheme of each Metaspace of the pre-tokenizer."""
  return {
    part.get('prepend_scheme', 'always')
    for part in _parts(spec.get('pre_tokenizer'), 'pretokenizers')
    if part.get('type') == 'Metaspace'
  }


def _drop_prefixes(spec: dict) -> bool:
  """Removes from tokenizer.json everything that is added before a text.

  The post-processor, which adds BOS, is removed too.

  Returns:
    Whether the normalizer or the pre-tokenizer changed.
  """
  before = json.dumps([spec.get('normalizer'), spec.get('pre_tokenizer')])
  spec['post_processor'] = None
  for part in _parts(spec.get('normalizer'), 'normalizers'):
    if part.get('type') == 'Prepend':
      part.clear()
      part.update(type='Sequence', normalizers=[])
    elif part.get('type') == 'Strip':
      part['strip_left'] = False
  for part in _parts(spec.get('pre_tokenizer'), 'pretokenizers'):
    if part.get('type') == 'Metaspace':
      part['prepend_scheme'] = 'never'
      part.pop('add_prefix_space', None)
    elif part.get('type') == 'ByteLevel':
      part['add_prefix_space'] = False
  after = json.dumps([spec.get('normalizer'), spec.get('pre_tokenizer')])
  return before != after


def _parts(part: dict | None, key: str) -> list[dict]:
  """A normalizer or pre-tokenizer, and the parts of its sequences."""
  if not part:
    return []
  return [part, *(p for q in part.get(key, ()) for p in _parts(q, key))]


def _as_list(value: Any) -> list:
  return value if isinstance(value, list) else [value]
