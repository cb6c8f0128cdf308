"""text -> tokens: pieces of text become token ids, and ids text.

Comes in: Pieces (templates.py). Goes out: token ids. Holds the interface and
the byte tokenizer; hf_tokenizer.py runs files. Touches no disk, adds no BOS
and no EOS: encode.py does, by `begin` and `stop_ids`.

Rules of every tokenizer:
  Control tokens come of template text only (Piece.is_content False); content
  is encoded with special tokens off. A text that is template text throughout
  goes to the tokenizer whole: its ids are those that `transformers` gives.
  A text that continues another (a completion) is encoded as the middle of a
  text: what a tokenizer puts before the beginning of a text (Llama's '▁', a
  prefix space) is left out.
  Masks and lengths never come of comparing ids.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.data.text.templates import ControlTokens, Piece
from dpo_jax.storage import files

_BYTE_NAMES = ('<|bos|>', '<|eos|>', '<|pad|>')


class Job(NamedTuple):
  """A text for the library."""

  text: str
  special: bool  # control tokens in it are control tokens
  middle: bool  # it is not the beginning of a text


class Tokenizer:
  """What encoding needs of a tokenizer."""

  name: str
  fingerprint: str  # sha256 of everything that decides token ids
  vocab_size: int  # one more than the largest id
  bos_id: int | None
  eos_id: int | None
  pad_id: int | None
  begin: tuple[int, ...]  # ids that every text begins with; () = none
  stop_ids: frozenset[int]  # EOS, and what else ends the model's turn
  # Jinja by name: 'default', 'tool_use' (for conversations with tools), others.
  chat_templates: dict[str, str]
  special_tokens: dict[str, str]  # 'bos_token' -> string, for templates

  def __init__(self, control_ids: dict[str, int]):
    """Takes the special tokens: string -> id."""
    self._control_ids = control_ids
    self.control_tokens = ControlTokens(control_ids)

  @property
  def adds_bos(self) -> bool:
    """Whether every text begins with BOS."""
    return bool(self.begin)

  def encode(self, text: str, allow_special: bool = False) -> list[int]:
    """Token ids of a text, without BOS and EOS."""
    return self.encode_pieces((Piece(text, not allow_special),))

  def encode_pieces(
    self, pieces: Sequence[Piece], *, continues: bool = False
  ) -> list[int]:
    """Token ids of one rendered text; `continues`: it continues another."""
    return self.encode_batch([pieces], continues=continues)[0]

  def encode_batch(
    self, texts: Sequence[Sequence[Piece]], *, continues: bool = False
  ) -> list[list[int]]:
    """encode_pieces of many texts; what is equal is encoded once."""
    plans = [self._plan(pieces, continues) for pieces in texts]
    jobs = dict.fromkeys(
      part for plan in plans for part in plan if isinstance(part, Job)
    )
    found = self._run(list(jobs))
    return [
      found[plan[0]]
      if len(plan) == 1 and isinstance(plan[0], Job)
      else _joined(plan, found)
      for plan in plans
    ]

  def ends_turn(self, piece: Piece) -> bool:
    """Whether a piece of template text ends with a stop token."""
    return not piece.is_content and any(
      piece.text.endswith(text)
      for text, token in self._control_ids.items()
      if token in self.stop_ids
    )

  def first_stop(self, piece: Piece) -> int:
    """Characters of template text up to its first stop token's end; 0: none."""
    for match in self.control_tokens.pattern.finditer(piece.text):
      if self._control_ids[match.group()] in self.stop_ids:
        return match.end()
    return 0

  def masks(
    self,
    texts: Sequence[Sequence[Piece]],
    spans: Sequence[Sequence[tuple[int, int]]],
  ) -> list[np.ndarray]:
    """Which tokens of continuing texts have a character in a span, bool [n].

    Args:
      texts: as for encode_batch(..., continues=True).
      spans: of each text, characters [start, stop) of all its pieces joined.
    """
    return [
      self._mask(pieces, some)
      for pieces, some in zip(texts, spans, strict=True)
    ]

  def _mask(self, pieces, spans) -> np.ndarray:
    text = ''.join(piece.text for piece in pieces)
    names = {token: name for name, token in self._control_ids.items()}
    where_N2, at = [], 0
    for part in self._plan(pieces, True):
      is_job = isinstance(part, Job)
      name = part.text if is_job else names[part]
      at = text.index(name, at)  # white space beside a token may be left out
      offsets = self._offsets(part) if is_job else ((0, len(name)),)
      where_N2 += [(at + start, at + stop) for start, stop in offsets]
      at += len(name)
    where_N2 = np.array(where_N2, np.int64).reshape(-1, 2)
    mask = np.zeros(len(where_N2), bool)
    for start, stop in spans:
      mask |= (where_N2[:, 0] < stop) & (where_N2[:, 1] > start)
    return mask

  def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
    """The text of ids; special tokens are left out, or written by name."""
    raise NotImplementedError

  def merges(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """For each (left, right): do they share a token where they meet?

    A few dozen characters to either side are looked at.
    """
    raise NotImplementedError

  def _plan(self, pieces: Sequence[Piece], continues: bool) -> list[Job | int]:
    raise NotImplementedError

  def _run(self, jobs: list[Job]) -> dict[Job, list[int]]:
    raise NotImplementedError

  def _offsets(self, job: Job) -> Sequence[tuple[int, int]]:
    """Characters [start, stop) of each token of a job."""
    raise NotImplementedError

  def _split(self, pieces: Sequence[Piece]) -> list[str]:
    """Text, control token, text, control token, ..., text.

    Control tokens are looked for in each stretch of template text by itself.
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
    """Bytes that are not UTF-8 become U+FFFD."""
    names = ('', '', '') if skip_special else _BYTE_NAMES
    parts = (
      names[i - 256].encode() if i >= 256 else bytes((i,))
      for i in map(int, ids)
    )
    return b''.join(parts).decode('utf-8', errors='replace')

  def merges(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """A byte belongs to one text."""
    return [False] * len(pairs)

  def _plan(self, pieces: Sequence[Piece], continues: bool) -> list[Job | int]:
    parts = self._split(pieces)
    return [
      self._control_ids[part] if i % 2 else Job(part, False, False)
      for i, part in enumerate(parts)
    ]

  def _offsets(self, job: Job) -> Sequence[tuple[int, int]]:
    chars = enumerate(job.text)
    return [(i, i + 1) for i, char in chars for _ in char.encode('utf-8')]

  def _run(self, jobs: list[Job]) -> dict[Job, list[int]]:
    return {job: list(job.text.encode('utf-8')) for job in jobs}


def _stretches(pieces: Sequence[Piece]) -> list[tuple[bool, str]]:
  """(is_content, text), neighbours of one kind joined."""
  stretches: list[tuple[bool, str]] = []
  for piece in pieces:
    if stretches and stretches[-1][0] == piece.is_content:
      stretches[-1] = (piece.is_content, stretches[-1][1] + piece.text)
    else:
      stretches.append((piece.is_content, piece.text))
  return stretches


def _joined(plan: list[Job | int], found: dict[Job, list[int]]) -> list[int]:
  ids: list[int] = []
  for part in plan:
    ids.extend(found[part] if isinstance(part, Job) else (part,))
  return ids
