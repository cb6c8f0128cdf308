"""text -> tokens: the tokenizer interface and the byte tokenizer.

Comes in: Pieces (templates.py). Goes out: token ids; also ids back to text.
hf_tokenizer.py implements the interface for tokenizer.json files. Touches no
disk and adds neither BOS nor EOS: ends.py does, from `begin` and `stop_ids`.

Rules of every tokenizer:
  Control tokens are made from template text only (Piece.is_content False).
    Content is encoded with special tokens switched off.
  A text without content goes to the tokenizer in one part, so its ids are
    those of `transformers`.
  A text that continues another (a completion) is encoded as the middle of a
    text, without what a tokenizer adds at the beginning (Llama's '▁', a
    prefix space).
  Masks and lengths never come from comparing ids.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.data.text.control_tokens import ControlTokens, Piece
from dpo_jax.storage import files

_BYTE_NAMES = ('<|bos|>', '<|eos|>', '<|pad|>')


class TextPart(NamedTuple):
  """A part of a text that the tokenizer encodes by itself."""

  text: str
  special: bool  # control tokens in the text become their special ids
  middle: bool  # the part is not the beginning of a text


class Tokenizer:
  """Interface of a tokenizer."""

  name: str
  fingerprint: str  # sha256 of everything that decides token ids
  vocab_size: int  # one more than the largest id
  known_ids: frozenset[int]  # ids below vocab_size that are tokens
  bos_id: int | None
  eos_id: int | None
  pad_id: int | None
  begin: tuple[int, ...]  # ids that every text begins with; () = none
  stop_ids: frozenset[int]  # EOS and the other tokens that end the model's turn
  # Jinja by name: 'default', 'tool_use' (for conversations with tools), others.
  chat_templates: dict[str, str]
  special_tokens: dict[str, str]  # 'bos_token' -> string, for templates

  def __init__(self, control_ids: dict[str, int]):
    """Takes the special tokens as string -> id."""
    self._control_ids = control_ids
    self.control_tokens = ControlTokens(control_ids)

  def encode(self, text: str, allow_special: bool = False) -> list[int]:
    """Returns the token ids of a text, without BOS and EOS."""
    return self.encode_pieces((Piece(text, not allow_special),))

  def encode_pieces(
    self, pieces: Sequence[Piece], *, continues: bool = False
  ) -> list[int]:
    """Returns the token ids of one rendered text.

    Args:
      pieces: their texts joined are the text.
      continues: the text continues another one, as a completion does.
    """
    return self.encode_batch([pieces], continues=continues)[0]

  def encode_batch(
    self, texts: Sequence[Sequence[Piece]], *, continues: bool = False
  ) -> list[list[int]]:
    """Returns encode_pieces of many texts; equal parts are encoded once."""
    # Prompts often repeat: dict.fromkeys keeps one of each part, in order.
    plans = [self._plan(pieces, continues) for pieces in texts]
    parts = dict.fromkeys(
      part for plan in plans for part in plan if isinstance(part, TextPart)
    )
    ids_of = self._encode_parts(list(parts))
    return [
      ids_of[plan[0]]
      if len(plan) == 1 and isinstance(plan[0], TextPart)
      else _joined(plan, ids_of)
      for plan in plans
    ]

  def ends_turn(self, piece: Piece) -> bool:
    """Whether a piece is template text that ends with a stop token."""
    return not piece.is_content and any(
      piece.text.endswith(text)
      for text, token in self._control_ids.items()
      if token in self.stop_ids
    )

  def first_stop(self, piece: Piece) -> int:
    """Returns where the first stop token ends, in characters; 0 = none."""
    for match in self.control_tokens.pattern.finditer(piece.text):
      if self._control_ids[match.group()] in self.stop_ids:
        return match.end()
    return 0

  def masks(
    self,
    texts: Sequence[Sequence[Piece]],
    spans: Sequence[Sequence[tuple[int, int]]],
  ) -> list[np.ndarray]:
    """Returns the tokens that have a character in a span, bool [n] per text.

    Args:
      texts: as for encode_batch(..., continues=True).
      spans: for each text, ranges [start, stop) of characters of its joined
        pieces.
    """
    return [
      self._mask(pieces, spans_of_one)
      for pieces, spans_of_one in zip(texts, spans, strict=True)
    ]

  def _mask(self, pieces, spans) -> np.ndarray:
    text = ''.join(piece.text for piece in pieces)
    names = {token: name for name, token in self._control_ids.items()}
    where_N2, at = [], 0  # characters [start, stop) of each token
    for part in self._plan(pieces, True):
      is_text = isinstance(part, TextPart)
      name = part.text if is_text else names[part]
      # Not `at` itself: the plan may leave out white space beside a token.
      at = text.index(name, at)
      offsets = self._offsets(part) if is_text else ((0, len(name)),)
      where_N2 += [(at + start, at + stop) for start, stop in offsets]
      at += len(name)
    where_N2 = np.array(where_N2, np.int64).reshape(-1, 2)
    mask = np.zeros(len(where_N2), bool)
    # A token counts if any of its characters is in the span.
    for start, stop in spans:
      mask |= (where_N2[:, 0] < stop) & (where_N2[:, 1] > start)
    return mask

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """Returns the text of ids; special tokens are left out or spelt out."""
    raise NotImplementedError

  def merges(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Returns, for each (left, right), whether a token spans the boundary.

    Only a few dozen characters on either side are read.
    """
    raise NotImplementedError

  def _plan(
    self, pieces: Sequence[Piece], continues: bool
  ) -> list[TextPart | int]:
    """The parts of a text to encode, and the ids of its control tokens."""
    raise NotImplementedError

  def _encode_parts(self, parts: list[TextPart]) -> dict[TextPart, list[int]]:
    """The token ids of each part."""
    raise NotImplementedError

  def _offsets(self, part: TextPart) -> Sequence[tuple[int, int]]:
    """Characters [start, stop) of each token of a part."""
    raise NotImplementedError

  def _split(self, pieces: Sequence[Piece]) -> list[str]:
    """Splits a text into text, control token, text, control token, ..., text.

    A control token lies in template text entirely: one that is partly content
    is text.
    """
    parts = ['']
    for is_content, text in _stretches(pieces):
      done = 0
      if not is_content:
        for match in self.control_tokens.pattern.finditer(text):
          parts[-1] += text[done : match.start()]
          parts += [match.group(), '']
          done = match.end()
      parts[-1] += text[done:]
    return parts


class ByteTokenizer(Tokenizer):
  """UTF-8 bytes 0 to 255, then BOS 256, EOS 257 and padding 258."""

  name = 'byte'
  fingerprint = files.bytes_digest([b'byte tokenizer 1'])
  vocab_size = 259
  known_ids = frozenset(range(259))
  bos_id, eos_id, pad_id = 256, 257, 258
  begin = (256,)
  stop_ids = frozenset([257])
  chat_templates: dict[str, str] = {}

  def __init__(self):
    """Needs no files."""
    super().__init__(dict(zip(_BYTE_NAMES, (256, 257, 258))))
    keys = ('bos_token', 'eos_token', 'pad_token')
    self.special_tokens = dict(zip(keys, _BYTE_NAMES))

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """Returns the text of ids; bytes that are not UTF-8 become U+FFFD."""
    names = ('', '', '') if skip_special else _BYTE_NAMES
    parts = (
      names[i - 256].encode() if i >= 256 else bytes((i,))
      for i in map(int, ids)
    )
    return b''.join(parts).decode('utf-8', errors='replace')

  def merges(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Returns False for every pair: a byte never spans a boundary."""
    return [False] * len(pairs)

  def _plan(
    self, pieces: Sequence[Piece], continues: bool
  ) -> list[TextPart | int]:
    # _split alternates text (even) and control tokens (odd).
    return [
      self._control_ids[part] if i % 2 else TextPart(part, False, False)
      for i, part in enumerate(self._split(pieces))
    ]

  def _encode_parts(self, parts: list[TextPart]) -> dict[TextPart, list[int]]:
    return {part: list(part.text.encode('utf-8')) for part in parts}

  def _offsets(self, part: TextPart) -> Sequence[tuple[int, int]]:
    # Each byte of a character has the character's span.
    chars = enumerate(part.text)
    return [(i, i + 1) for i, char in chars for _ in char.encode('utf-8')]


def _stretches(pieces: Sequence[Piece]) -> list[tuple[bool, str]]:
  """The pieces as (is_content, text), with neighbours of one kind joined."""
  stretches: list[tuple[bool, str]] = []
  for piece in pieces:
    if stretches and stretches[-1][0] == piece.is_content:
      stretches[-1] = (piece.is_content, stretches[-1][1] + piece.text)
    else:
      stretches.append((piece.is_content, piece.text))
  return stretches


def _joined(
  plan: list[TextPart | int], ids_of: dict[TextPart, list[int]]
) -> list[int]:
  ids: list[int] = []
  for part in plan:
    ids.extend(ids_of[part] if isinstance(part, TextPart) else (part,))
  return ids
