"""record -> text: a record of messages becomes a prompt, answers, and spans.

Comes in: messages of a prompt and of its answers, a chat template. Goes out:
the prompt's text, each answer's as what follows it, and which characters of an
answer are trained. Renders nothing itself (templates.py) and encodes nothing.

What is trained of an answer: where the template marks `{% generation %}`, what
it marks; else the assistant's turns. A turn begins after the generation prompt
and ends with the first stop token that the template writes, or where the
conversation up to it ends.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.templates import ChatTemplate, Piece
from dpo_jax.types import InputError, PreferenceRecord

TRAIN_ON = ('last', 'all_assistant', 'generation')

Messages = Sequence[Mapping[str, Any]]
Spans = tuple[tuple[int, int], ...]


class Rendered(NamedTuple):
  """A record's texts."""

  prompt: tuple[Piece, ...]
  completions: list[tuple[Piece, ...]]
  spans: list[Spans | None]  # trained characters of each; None = all


def as_messages(record: PreferenceRecord) -> PreferenceRecord:
  """Plain text as the turns of a user and an assistant."""
  return record._replace(
    prompt=({'role': 'user', 'content': record.prompt},),
    completions=tuple(
      ({'role': 'assistant', 'content': text},) for text in record.completions
    ),
  )


def from_first_answer(record: PreferenceRecord) -> PreferenceRecord:
  """The record whose answers begin with the prompt's first assistant turn."""
  turns = record.prompt
  roles = [turn['role'] for turn in turns]
  first = roles.index('assistant', 1) if 'assistant' in roles[1:] else None
  if first is None:
    return record
  return record._replace(
    prompt=turns[:first],
    completions=tuple((*turns[first:], *c) for c in record.completions),
  )


def says_something(messages: Messages) -> bool:
  """Whether any message has more than white space, or calls a tool."""
  return any(
    str(m.get('content') or '').strip() or m.get('tool_calls') for m in messages
  )


def unused(
  num_chats: int,
  *,
  chat_template: str | None,
  template_args: Mapping[str, Any],
  train_on: str,
) -> str:
  """Says which options nothing was rendered with; '' where all had a use."""
  given = {
    'data.chat_template': chat_template is not None,
    'data.template_args': bool(template_args),
    'data.train_on': train_on != 'last',
  }
  names = [name for name, is_given in given.items() if is_given]
  if num_chats or not names:
    return ''
  return (
    f'not used: {", ".join(names)}, as no record went through a chat template '
    '(text does with data.use_chat_template=always)'
  )


def make_template(
  tokenizer: Tokenizer,
  source: str | None,
  *,
  template_args: Mapping[str, Any],
  train_on: str,
  where: str,
  has_tools: bool = False,
) -> ChatTemplate:
  """The template of a source, or else of the tokenizer, fit for the options.

  A tokenizer's template 'tool_use' is taken where the record has tools.

  Raises:
    InputError: there is none, or it has no use for an option.
  """
  named = tokenizer.chat_templates
  own = source or (has_tools and named.get('tool_use')) or named.get('default')
  if own is None:
    others = ', '.join(map(repr, named))
    raise errors.refuse(
      where,
      f'the row is a chat, and tokenizer {tokenizer.name} has no '
      + (f"template 'default', just {others}" if others else 'chat template'),
      f'set data.chat_template (a Jinja file{others and f", or {others}"}), or '
      'give prompts and completions as text',
    )
  template = ChatTemplate(
    own,
    special_tokens=tokenizer.special_tokens,
    control_tokens=tokenizer.control_tokens,
    where='config.data.chat_template'
    if source
    else f'chat template of {tokenizer.name}',
  )
  if train_on == 'generation' and not template.has_generation:
    raise errors.refuse(
      'config.data.train_on',
      f"'generation', but {template.where} has no {{% generation %}} block",
      "use 'last' or 'all_assistant', or a template with such blocks",
    )
  for name in template_args:
    if name not in template.variables:
      raise errors.refuse(
        'config.data.template_args',
        f'{template.where} reads no {name!r}',
        f'{errors.did_you_mean(name, template.variables)}remove it; it reads '
        f'{", ".join(sorted(template.variables))}',
      )
  return template


def render_record(
  template: ChatTemplate,
  prompt: Messages,
  completions: Sequence[Messages],
  *,
  where: str,
  ends_turn: Callable[[Piece], int] = lambda piece: 0,
  **options: Any,
) -> Rendered:
  """Renders the prompt once and each completion as what follows it.

  Args:
    template: the chat template.
    prompt: the messages before the answer, one or more.
    completions: for each answer its messages.
    where: the record, for messages.
    ends_turn: how many characters of a piece its first stop token ends after;
      0 where it has none.
    **options: of ChatTemplate.render.

  Raises:
    InputError: the whole conversation's rendering does not begin with the
      prompt's, so that no token sequence is prompt + completion.
  """

  def render(messages: Messages, **more: Any):
    return template.render(messages, where=where, **options, **more)

  place = f'{where}: {template.where}'
  opened = render(prompt, add_generation_prompt=True)
  size = len(opened.text)
  rests, spans = [], []
  for completion in completions:
    whole = render((*prompt, *completion))
    _check_beginning(opened.text, whole.text, place)
    rests.append(after(whole.pieces, size))
    found = whole.spans
    if found is None and len(completion) > 1:
      found = _turns(render, prompt, completion, whole, ends_turn, place)
    if found is not None:
      found = tuple(
        (max(a, size) - size, b - size) for a, b in found if b > size
      )
    spans.append(found)
  return Rendered(opened.pieces, rests, spans)


def after(pieces: Sequence[Piece], offset: int) -> tuple[Piece, ...]:
  """The pieces from a character on."""
  rest = []
  for piece in pieces:
    if offset < len(piece.text):
      rest.append(Piece(piece.text[offset:], piece.is_content))
    offset = max(0, offset - len(piece.text))
  return tuple(rest)


def _turns(render, prompt, completion, whole, ends_turn, place) -> Spans:
  """The assistant's turns of an answer, in characters of the whole."""
  spans = []
  for i, message in enumerate(completion):
    if message['role'] != 'assistant':
      continue
    before = (*prompt, *completion[:i])
    opened = render(before, add_generation_prompt=True).text
    _check_beginning(opened, whole.text, place)
    done = render((*before, message)).text
    stop = _first_stop(after(whole.pieces, len(opened)), ends_turn)
    end = len(opened) + stop
    if not stop or whole.text.startswith(done) and len(done) < end:
      _check_beginning(done, whole.text, place)
      end = len(done)
    spans.append((len(opened), end))
  return tuple(spans)


def _first_stop(pieces: Sequence[Piece], ends_turn) -> int:
  """Characters up to the first stop token of template text; 0 = none."""
  size = 0
  for piece in pieces:
    end = 0 if piece.is_content else ends_turn(piece)
    if end:
      return size + end
    size += len(piece.text)
  return 0


def _check_beginning(start: str, text: str, where: str) -> None:
  if not text.startswith(start):
    raise _not_a_beginning(start, text, where)


def _not_a_beginning(start: str, text: str, where: str) -> InputError:
  same = next((i for i, (a, b) in enumerate(zip(start, text)) if a != b), 0)
  same = same or min(len(start), len(text))
  return errors.refuse(
    where,
    'the conversation does not begin with its prompt as the template renders '
    f'it: from character {same + 1} on the prompt has '
    f'{errors.show(start[same : same + 30])} and the conversation '
    f'{errors.show(text[same : same + 30])}',
    'let the template write the generation prompt exactly as it opens an '
    "assistant's turn, or give prompt and completions as text",
  )
