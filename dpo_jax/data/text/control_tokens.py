"""text -> marks: where a message may hold, or become, a control token.

Comes in: the strings that a tokenizer turns into special tokens, and the texts
of messages. Goes out: those texts with everything wrapped that a template could
make such a token of. Renders nothing: templates.py does.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

_NAMED = ('role', 'type')  # keys whose values templates compare with words
_WORD = re.compile(r'[\w.-]*')
# Words of the schemas of messages and tools. A template writes `<|user|>` from
# a role on purpose, so these stay as they are in any place.
_SCHEMA = frozenset(
  'role content name type id text tools tool tool_calls tool_call_id function '
  'functions arguments parameters properties required description enum items '
  'thinking reasoning reasoning_content thought system user assistant '
  'developer observation ipython object string number integer boolean array '
  'null'.split()
)


class Piece(NamedTuple):
  """A part of a rendered text."""

  text: str
  is_content: bool  # from a message: no control token may be made from it


class ControlTokens:
  """The strings that a tokenizer turns into special tokens."""

  def __init__(self, tokens: Iterable[str]):
    """Takes the strings, in any order."""
    # Longest first: a regular expression takes the first alternative that fits.
    tokens = sorted(filter(None, set(tokens)), key=lambda t: (-len(t), t))
    self.pattern = re.compile('|'.join(map(re.escape, tokens)) or r'(?!)')
    self._loose = re.compile(self.pattern.pattern, re.IGNORECASE)
    self._tokens = tuple(tokens)
    lower = {t.lower() for t in tokens}
    self._heads = {t[:i] for t in lower for i in range(1, len(t))}
    self._tails = {t[i:] for t in lower for i in range(1, len(t))}
    # A text within a token, between two that the template writes, makes one.
    self._all = '\0'.join(lower)
    self._letters = tuple({frozenset(t) for t in lower})
    signs = {
      char for char in self._all if not (char.isalnum() or char in '\0 ')
    }
    self._signs = re.compile(
      f'[{re.escape("".join(signs))}]+' if signs else '(?!)'
    )
    self._longest = max(map(len, tokens), default=0)
    self._first = {t[0] for t in lower}
    self._last = {t[-1] for t in lower}

  def found_in(self, value: Any) -> bool:
    """Whether a text, or a text in messages, contains a control token."""
    return any(self.pattern.search(text) for text in strings_of(value)[0])

  def completes(self, word: str) -> bool:
    """Whether a word is part of a token: `<|` and `|>` around it make one.

    Words of the schema are none: templates write tokens of them.
    """
    inside = 2 < len(word) and word.lower() in self._all
    return inside and word not in _SCHEMA

  def mark_word(self, word: str, marks: tuple[str, str]) -> str:
    """Returns a key or a name, wrapped if it could complete a token."""
    return marks[0] + word + marks[1] if self.completes(word) else word

  def is_typed(self, texts: Iterable[str]) -> bool:
    """Whether one contains a token, upper and lower case counting as one."""
    return any(self._loose.search(text) for text in texts)

  def is_near(self, texts: Iterable[str]) -> bool:
    """As `is_typed`; also true for part of a token at either end of a text."""
    return any(self._spans(text) for text in texts)

  def may_be_cut_from(self, texts: Iterable[str]) -> bool:
    """Whether one has all characters of a control token, in any order."""
    for text in texts:
      # Nearly all texts have no special character, which is quick to see.
      if self._signs.search(text):
        letters = set(text.lower())
        if any(token <= letters for token in self._letters):
          return True
    return False

  def mark_signs(self, text: str, marks: tuple[str, str]) -> str:
    """Returns the text with all special characters of tokens wrapped."""
    return self._signs.sub(lambda m: marks[0] + m.group() + marks[1], text)

  def count(self, pieces: Iterable[Piece]) -> int:
    """The control tokens that are made from template text."""
    texts = (piece.text for piece in pieces if not piece.is_content)
    return sum(len(self.pattern.findall(text)) for text in texts)

  def at_border(self, text: str) -> tuple[str, str]:
    """Returns ('begins' or 'ends', token) of a text; ('', '') if neither.

    White space around the text does not count.
    """
    text = text.strip()
    if text.startswith(self._tokens):
      return 'begins', next(t for t in self._tokens if text.startswith(t))
    if text.endswith(self._tokens):
      return 'ends', next(t for t in self._tokens if text.endswith(t))
    return '', ''

  def mark(self, text: str, marks: tuple[str, str]) -> str:
    """Returns the text with all possible (parts of) control tokens wrapped."""
    done, parts = 0, []
    for start, stop in self._spans(text):
      parts += (text[done:start], marks[0], text[start:stop], marks[1])
      done = stop
    return ''.join((*parts, text[done:]))

  def _spans(self, text: str) -> list[tuple[int, int]]:
    """Spans of tokens, and of parts of tokens at the ends of the text.

    The end of a token may open the text, and the beginning of one may close
    it. White space around the text is skipped, since templates trim it.
    """
    # Complete tokens, then a head at the end and a tail at the beginning.
    spans = [match.span() for match in self._loose.finditer(text)]
    stop = len(text.rstrip())
    start = len(text) - len(text.lstrip())
    # One or two letters are in nearly every token, and in many short answers.
    if 2 < stop - start < self._longest and text.strip().lower() in self._all:
      return [(start, stop)]
    reach = min(self._longest, stop - start + 1)
    begin, end = text[start : start + reach - 1], text[stop - reach + 1 : stop]
    # A tail has the last character of its token, a head the first.
    if _may_have(begin, self._last):
      tails = [n for n in range(1, reach) if begin[:n].lower() in self._tails]
      spans += [(start, start + n) for n in tails[-1:]]
    if _may_have(end, self._first):
      heads = [n for n in range(1, reach) if end[-n:].lower() in self._heads]
      spans += [(stop - n, stop) for n in heads[-1:]]
    return _merged(spans)


def _may_have(text: str, lower: set[str]) -> bool:
  """Whether a text can hold one of these characters, in upper or lower case.

  Beyond ASCII a character of another case can be several.
  """
  return not text.isascii() or not lower.isdisjoint(text.lower())


def map_texts(
  value: Any,
  change: Callable[[str], str],
  key: str = '',
  word: Callable[[str], str] = lambda name: name,
) -> Any:
  """JSON data with each string and key changed.

  Args:
    value: the data.
    change: of a text.
    key: the key that the value has.
    word: of a key, or of a role or type, that is a plain word: templates
      compare these with words of their own.
  """
  if isinstance(value, str):
    return (word if _is_name(key, value) else change)(value)
  if isinstance(value, Mapping):
    return {
      (word if _is_word(k) else change)(k): map_texts(v, change, k, word)
      for k, v in value.items()
    }
  if isinstance(value, list | tuple):
    return [map_texts(item, change, '', word) for item in value]
  return value


def strings_of(value: Any) -> tuple[list[str], list[str]]:
  """The strings of JSON data as `map_texts` parts them: (texts, words)."""
  texts: list[str] = []
  words: list[str] = []
  _collect(value, '', texts, words)
  return texts, words


def _collect(value: Any, key: str, texts: list, words: list) -> None:
  """Appends the strings of a value, whose own key is given."""
  if isinstance(value, str):
    (words if _is_name(key, value) else texts).append(value)
  elif isinstance(value, Mapping):
    for name, item in value.items():
      (words if _is_word(name) else texts).append(name)
      _collect(item, name, texts, words)
  elif isinstance(value, list | tuple):
    for item in value:
      _collect(item, '', texts, words)


def _is_name(key: str, value: str) -> bool:
  """Whether a value is a role or a type that is a plain word."""
  return key in _NAMED and _is_word(value)


def _is_word(text: str) -> bool:
  """Whether a key, a role or a type is a plain word."""
  return _is_known(text) if len(text) < 64 else _fits(text)


def _fits(text: str) -> bool:
  return _WORD.fullmatch(text) is not None


_is_known = functools.lru_cache(1024)(_fits)  # few of them occur


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
  """The spans in order; those that touch or overlap become one."""
  merged: list[tuple[int, int]] = []
  for start, stop in sorted(spans):
    if merged and start <= merged[-1][1]:
      merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
    else:
      merged.append((start, stop))
  return merged
