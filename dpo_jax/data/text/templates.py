"""record -> text: a chat template turns messages into pieces of text.

Comes in: messages, tools and the Jinja source of a template. Goes out: Pieces
whose joined texts are the rendering of `transformers`, cut where a message
contains a control token's text; and the characters that the template marks as
the assistant's (`{% generation %}`). Reads no file and encodes nothing.

A control token typed in a message (`<|im_end|>`) must not act as one. A string
of the messages that contains one, or that could complete one together with
the template's own text, is therefore wrapped in two Unicode noncharacters
before rendering. Nearly all messages contain none: they reach the template
unchanged, which may trim, split and test them. If something was wrapped, the
template runs twice, and the two renderings must be equal after the wrapping is
removed. They differ if the template measures or rewrites the control tokens of
messages. Then UnsafeText is raised, and encoding drops the record as
`control_tokens`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.sources import conversations
from dpo_jax.data.text import sandbox
from dpo_jax.types import InputError

# Pairs of noncharacters, which Unicode reserves for internal use: texts should
# not contain them. They are removed before encoding.
_MARKS = tuple((chr(c), chr(c + 1)) for c in range(0xFDD0, 0xFDEF, 2))
# Keys of a message's reasoning; the first that is given counts.
REASONING = ('reasoning_content', 'thinking', 'reasoning')
_NOT_TEXT = ('role', 'type')  # keys of a message whose values are names
_FIX_RENDER = 'give messages that this template takes, or another template'
_FIX_UNDEFINED = (
  'set what it reads in data.template_args, give messages that have it, or '
  'another template'
)
_FIX_FORBIDDEN = 'use a template that does nothing but write the messages'


class Piece(NamedTuple):
  """A part of a rendered text."""

  text: str
  is_content: bool  # from a message: no control token may be made from it


class Rendering(NamedTuple):
  """A rendered conversation."""

  pieces: tuple[Piece, ...]  # joined, their texts are the rendering
  # Characters [start, stop) of the generation blocks, ascending, disjoint;
  # None if the template has no such block.
  spans: tuple[tuple[int, int], ...] | None

  @property
  def text(self) -> str:
    """The rendered text."""
    return ''.join(piece.text for piece in self.pieces)


class UnsafeText(InputError):
  """Control tokens of a message cannot be told from those of the template."""


class ControlTokens:
  """The strings that a tokenizer turns into special tokens."""

  def __init__(self, tokens: Iterable[str]):
    """Takes the strings, in any order."""
    # Longest first: a regular expression takes the first alternative that fits.
    tokens = sorted(filter(None, set(tokens)), key=lambda t: (-len(t), t))
    self.pattern = re.compile('|'.join(map(re.escape, tokens)) or r'(?!)')
    self._tokens = tuple(tokens)
    self._heads = {t[:i] for t in tokens for i in range(1, len(t))}
    self._tails = {t[i:] for t in tokens for i in range(1, len(t))}
    self._longest = max(map(len, tokens), default=0)

  def found_in(self, value: Any) -> bool:
    """Whether a text, or a text in messages, contains a control token."""
    return any(self.pattern.search(text) for text in _texts(value))

  def is_near(self, value: Any) -> bool:
    """As `found_in`; also true for part of a token at either end of a text."""
    return any(self._spans(text) for text in _texts(value))

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
    spans = [match.span() for match in self.pattern.finditer(text)]
    stop = len(text.rstrip())
    start = len(text) - len(text.lstrip())
    reach = min(self._longest, stop - start + 1)
    tails = [
      n for n in range(1, reach) if text[start : start + n] in self._tails
    ]
    heads = [n for n in range(1, reach) if text[stop - n : stop] in self._heads]
    if tails:
      spans.append((start, start + tails[-1]))
    if heads:
      spans.append((stop - heads[-1], stop))
    return _merged(spans)


class ChatTemplate:
  """A compiled chat template."""

  def __init__(
    self,
    source: str,
    *,
    special_tokens: Mapping[str, Any] | None = None,
    control_tokens: ControlTokens | None = None,
    date: str = '',
    where: str = 'chat template',
  ):
    """Compiles the template.

    Args:
      source: Jinja.
      special_tokens: tokens that the template reads by name ('bos_token').
      control_tokens: tokens that a message must not be able to make.
      date: the date that strftime_now writes, YYYY-MM-DD.
      where: the origin of the template, for messages.

    Raises:
      InputError: the source is not a valid Jinja template.
    """
    self.source = source
    self.where = where
    self._special_tokens = dict(special_tokens or {})
    self._control_tokens = control_tokens or ControlTokens(())
    try:
      self._template = sandbox.compile_template(source, date)
    except Exception as error:
      raise errors.refuse(
        where,
        f'is no chat template that can be compiled: {_with_line(error)}',
        'give a Jinja template as transformers takes it',
      ) from None
    self.variables = self._template.variables  # names that the template reads
    self.has_generation = self._template.has_generation

  def render(
    self,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    allow_control_tokens: bool = False,
    where: str = '',
    **extra: Any,
  ) -> Rendering:
    """Renders a conversation.

    Args:
      messages: `{'role': ..., 'content': ...}`, oldest first.
      add_generation_prompt: end with the text that opens an assistant's turn.
      allow_control_tokens: control tokens typed in messages act as control
        tokens; the rendering is one piece.
      where: the record, for messages.
      **extra: further variables of the template ('tools', 'documents', ...).
        Control tokens in 'tools' are content, as those in messages.

    Raises:
      InputError: the template refuses the messages or exceeds its budget.
      UnsafeText: see the docstring of this file.
    """
    plain = {'messages': _plain(messages), 'tools': extra.pop('tools', None)}
    extra = {
      'documents': None,
      **self._special_tokens,
      **extra,
      'add_generation_prompt': add_generation_prompt,
    }
    # Rendered once unwrapped; a second time, wrapped, only if it is needed.
    is_near = self._control_tokens.is_near(plain) and not allow_control_tokens
    marks = spans = None
    if is_near or self.has_generation:
      marks, of_spans = self._free_marks(plain)
    if self.has_generation:
      text, spans = _take_spans(
        self._run(plain, extra, where, of_spans), of_spans
      )
    else:
      text = self._run(plain, extra, where)
    if not is_near:
      return Rendering((Piece(text, False),), spans)
    wrapped = _map_texts(
      plain, lambda text: self._control_tokens.mark(text, marks)
    )
    pieces = _split_marked(self._run(wrapped, extra, where), marks)
    if ''.join(piece.text for piece in pieces) != text:
      refusal = errors.refuse(
        where or self.where,
        'a message holds control tokens that the chat template rewrites',
        'remove them from the message',
      )
      raise UnsafeText(str(refusal))
    return Rendering(pieces, spans)

  def _run(
    self,
    plain: dict[str, Any],
    extra: dict,
    where: str,
    marks: tuple[str, str] = ('', ''),
  ) -> str:
    try:
      text = self._template.render({**extra, **plain}, marks)
    except Exception as error:  # an expression in a template may raise anything
      verb, fix = 'cannot render the messages', _FIX_RENDER
      if isinstance(error, sandbox.UndefinedError):
        fix = _FIX_UNDEFINED
      elif isinstance(error, sandbox.SecurityError):
        verb, fix = 'does what no chat template may', _FIX_FORBIDDEN
      raise errors.refuse(
        f'{where}: {self.where}' if where else self.where,
        f'the template {verb}: '
        f'{errors.show(str(error) or type(error).__name__, 200)}',
        fix,
      ) from None
    # A template can spell a surrogate: "\ud800" is a string of Jinja.
    return conversations.text(
      text, 'the rendered text', f'{where}: {self.where}'
    )

  def _free_marks(self, plain: Any) -> list[tuple[str, str]]:
    """Two pairs of noncharacters that occur in no text."""
    used = set(self.source).union(*_texts(plain))
    free = [marks for marks in _MARKS if not used.intersection(marks)]
    if len(free) > 1:
      return free[:2]
    refusal = errors.refuse(
      self.where,
      'a message holds control tokens and every Unicode noncharacter',
      'remove them from the message',
    )
    raise UnsafeText(str(refusal))


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Copies of messages, as transformers' apply_chat_template makes them.

  A key whose value is null is left out ('content' beside 'tool_calls'), and
  reasoning is given under each of its names.
  """
  copies = []
  for message in messages:
    copy = _map_texts(
      {k: v for k, v in message.items() if v is not None}, lambda text: text
    )
    thought = next((copy[k] for k in REASONING if k in copy), None)
    if thought is not None:
      copy = {'thinking': thought, **copy, 'reasoning_content': thought}
    copies.append(copy)
  return copies


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
  """JSON data with each string changed, except keys, roles and types."""
  if isinstance(value, str):
    return change(value)
  if isinstance(value, Mapping):
    return {
      k: v if k in _NOT_TEXT else _map_texts(v, change)
      for k, v in value.items()
    }
  if isinstance(value, list | tuple):
    return [_map_texts(item, change) for item in value]
  return value


def _texts(value: Any) -> list[str]:
  """The strings that _map_texts changes."""
  texts: list[str] = []
  _map_texts(value, lambda text: texts.append(text) or text)
  return texts


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
  """The spans in order; those that touch or overlap become one."""
  merged: list[tuple[int, int]] = []
  for start, stop in sorted(spans):
    if merged and start <= merged[-1][1]:
      merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
    else:
      merged.append((start, stop))
  return merged


def _split_marked(text: str, marks: tuple[str, str]) -> tuple[Piece, ...]:
  """Cuts a text at the marks; a part between two marks is content."""
  pieces = []
  # A group in the pattern makes re.split return the separators too.
  for part in re.split(f'({marks[0]}[^{marks[1]}]*{marks[1]})', text):
    is_content = part.startswith(marks[0])
    clean = part.replace(marks[0], '').replace(marks[1], '')
    if clean:
      pieces.append(Piece(clean, is_content))
  return tuple(pieces)


def _take_spans(
  text: str, marks: tuple[str, str]
) -> tuple[str, tuple[tuple[int, int], ...]]:
  """The text without marks, and the spans that were between two marks.

  Generation blocks may be nested; the outermost give the spans.
  """
  parts, spans, size, depth, start = [], [], 0, 0, 0
  for part in re.split(f'([{marks[0]}{marks[1]}])', text):
    # `size` counts characters without marks, in which spans are measured.
    if part == marks[0]:
      start = size if not depth else start
      depth += 1
    elif part == marks[1]:
      depth -= 1
      if not depth and start < size:
        spans.append((start, size))
    else:
      parts.append(part)
      size += len(part)
  return ''.join(parts), tuple(spans)


def _with_line(error: Exception) -> str:
  """The error's message, after the template's line if the error has one."""
  line = getattr(error, 'lineno', None)
  text = getattr(error, 'message', None) or str(error)
  return f'line {line}: {text}' if line else text
