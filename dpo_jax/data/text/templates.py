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
`control_tokens`. Upper and lower case count as one, since templates change it.
A template may also take a text apart and write what is left (`replace`, slices,
`join`): a message that has all characters of a control token is then rendered
with each of its special characters wrapped, to see if the tokens stay the same.

Every string is wrapped where it must be: names, keys of objects, values of
`type`. Only plain words there, which templates compare, never are.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.sources import conversations
from dpo_jax.data.text import control_tokens, sandbox
from dpo_jax.data.text.control_tokens import ControlTokens, Piece
from dpo_jax.types import InputError

# Pairs of noncharacters, which Unicode reserves for internal use: texts should
# not contain them. They are removed before encoding.
_MARKS = tuple((chr(c), chr(c + 1)) for c in range(0xFDD0, 0xFDEF, 2))
# Keys of a message's reasoning; the first that is given counts.
REASONING = ('reasoning_content', 'thinking', 'reasoning')
# What can bring two ends of a message together in the middle.
_CUTS = re.compile(
  r'\b(replace|join|truncate|format)\b|(?<!messages)\[[^\[\]]*:[^\[\]]*\]'
)
_FIX_RENDER = 'give messages that this template takes, or another template'
_FIX_UNDEFINED = (
  'set what it reads in data.template_args, give messages that have it, or '
  'another template'
)
_FIX_FORBIDDEN = 'use a template that does nothing but write the messages'


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
    self._cuts = bool(_CUTS.search(source))

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
    known, is_near, is_cut, is_word = self._control_tokens, False, False, False
    if not allow_control_tokens:
      texts, words = control_tokens.strings_of(plain)
      is_near = known.is_near(texts)
      is_cut = self._cuts and known.may_be_cut_from(texts)
      is_word = any(map(known.completes, words))
    marks = spans = None
    if is_near or is_cut or is_word or self.has_generation:
      marks, of_spans = self._free_marks(plain)
    if self.has_generation:
      text, spans = _take_spans(
        self._run(plain, extra, where, of_spans), of_spans
      )
    else:
      text = self._run(plain, extra, where)
    pieces = (Piece(text, False),)
    is_typed = is_near and known.is_typed(texts)
    for is_needed, may_differ, change, word in (
      (is_near, not is_typed, known.mark, _as_is),
      (is_cut, True, known.mark_signs, _as_is),
      # Beside words, whatever else may be a token is wrapped too.
      (is_word, True, known.mark, known.mark_word),
    ):
      if is_needed:
        wrapped = control_tokens.map_texts(
          plain,
          functools.partial(change, marks=marks),
          word=functools.partial(word, marks=marks),
        )
        marked = _split_marked(self._run(wrapped, extra, where), marks)
        pieces = self._safer(text, pieces, marked, may_differ, where)
    return Rendering(pieces, spans)

  def _safer(
    self, text, pieces, marked, may_differ, where
  ) -> tuple[Piece, ...]:
    """The marked pieces if they have fewer control tokens, else `pieces`."""
    is_same = ''.join(piece.text for piece in marked) == text
    count = self._control_tokens.count
    if is_same:
      return marked if count(marked) < count(pieces) else pieces
    # Templates look at special characters (`<think>`) and write messages as
    # Python does: no fault where no message holds a token from end to end.
    if may_differ and count(marked) == count(pieces):
      return pieces
    refusal = errors.refuse(
      where or self.where,
      'a message holds control tokens that the chat template rewrites',
      'remove them from the message',
    )
    raise UnsafeText(str(refusal))

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
    used = set(self.source).union(*control_tokens.strings_of(plain)[0])
    free = [marks for marks in _MARKS if not used.intersection(marks)]
    if len(free) > 1:
      return free[:2]
    refusal = errors.refuse(
      self.where,
      'a message holds control tokens and every Unicode noncharacter',
      'remove them from the message',
    )
    raise UnsafeText(str(refusal))


def _as_is(word: str, marks: tuple[str, str]) -> str:
  """A word that is not wrapped."""
  del marks
  return word


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Copies of messages, as transformers' apply_chat_template makes them.

  A key whose value is null is left out ('content' beside 'tool_calls'), and
  reasoning is given under each of its names.
  """
  copies = []
  for message in messages:
    copy = {k: _copied(v) for k, v in message.items() if v is not None}
    thought = next((copy[k] for k in REASONING if k in copy), None)
    if thought is not None:
      copy = {'thinking': thought, **copy, 'reasoning_content': thought}
    copies.append(copy)
  return copies


def _copied(value: Any) -> Any:
  """JSON data in dicts and lists of its own."""
  if isinstance(value, str):
    return value
  if isinstance(value, Mapping):
    return {key: _copied(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_copied(item) for item in value]
  return value


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
