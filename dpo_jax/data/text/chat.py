"""record -> text: a record of messages becomes a prompt, answers and spans.

Comes in: the messages of a prompt and of its answers, and a chat template. Goes
out: the text of the prompt, the text that each answer adds to it, and the
trained characters of each answer. Renders nothing itself (templates.py does)
and encodes nothing.

The trained part of an answer: what the template marks by `{% generation %}`.
If it marks nothing, the assistant's turns. A turn begins after the generation
prompt. It ends with the first stop token that the template writes after that,
or at the end of the conversation rendered up to this turn.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.text import dialogues, templates
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.templates import ChatTemplate, Piece
from dpo_jax.types import InputError, PreferenceRecord

TRAIN_ON = ('last', 'all_assistant', 'generation')

Messages = Sequence[Mapping[str, Any]]
Spans = tuple[tuple[int, int], ...]


class Rendered(NamedTuple):
  """The texts of a record."""

  prompt: tuple[Piece, ...]
  completions: list[tuple[Piece, ...]]
  spans: list[Spans | None]  # trained characters of each; None = all


def as_messages(record: PreferenceRecord) -> PreferenceRecord:
  """Returns plain text as the turns of a user and an assistant.

  A Human/Assistant text becomes its own turns.
  """
  if dialogues.is_whole(record.prompt):
    prompt = f'\n\n{record.prompt.lstrip()}'
    turns = dialogues.messages(prompt)
    return record._replace(
      prompt=turns,
      completions=tuple(
        dialogues.messages(text, 'assistant') for text in record.completions
      ),
      continues=bool(turns) and turns[-1]['role'] == 'assistant',
    )
  return record._replace(
    prompt=({'role': 'user', 'content': record.prompt},),
    completions=tuple(
      ({'role': 'assistant', 'content': text},) for text in record.completions
    ),
  )


def from_first_answer(record: PreferenceRecord) -> PreferenceRecord:
  """Moves the prompt's turns from the first assistant turn on to the answers.

  They are then trained as well. An assistant turn that opens the prompt stays,
  since no prompt would be left.
  """
  turns = record.prompt
  roles = [turn['role'] for turn in turns]
  # From index 1: an assistant turn at index 0 opens the conversation.
  first = roles.index('assistant', 1) if 'assistant' in roles[1:] else None
  if first is None:
    return record
  return record._replace(
    prompt=turns[:first],
    completions=tuple((*turns[first:], *c) for c in record.completions),
  )


def join_prefill(record: PreferenceRecord) -> tuple[PreferenceRecord, str]:
  """Joins the prompt's unfinished turn to each answer.

  Returns:
    The record whose answers begin with the text of that turn, and this text,
    which the answers continue; (record, '') if the prompt has no such turn.
  """
  if not record.continues:
    return record, ''
  *turns, opened = record.prompt
  prefix = _content(opened)
  completions = tuple(
    ({**opened, **c[0], 'content': prefix + _content(c[0])}, *c[1:])
    for c in record.completions
  )
  joined = record._replace(
    prompt=tuple(turns), completions=completions, continues=False
  )
  return joined, prefix


def omits_reasoning(record: PreferenceRecord, rendered: Rendered) -> bool:
  """Whether a message has reasoning that the rendering does not contain."""
  thoughts = [
    message[key].strip()
    for message in _all_messages(record)
    for key in templates.REASONING
    if isinstance(message.get(key), str)
  ]
  if not any(thoughts):
    return False
  text = _text_of(rendered)
  return not all(thought in text for thought in thoughts)


def quotes_arguments(record: PreferenceRecord, rendered: Rendered) -> bool:
  """Whether JSON text of a call's arguments was written as a JSON string."""
  quoted = [
    json.dumps(arguments, ensure_ascii=False)
    for arguments in _arguments(record)
    if isinstance(arguments, str) and '"' in arguments
  ]
  if not quoted:
    return False
  text = _text_of(rendered)
  return any(arguments in text for arguments in quoted)


def has_nulls(record: PreferenceRecord) -> bool:
  """Whether a tool call or a function schema holds a null, at any depth."""
  stack = [*_arguments(record), *(record.tools or ())]
  while stack:
    value = stack.pop()
    if value is None:
      return True
    if isinstance(value, dict):
      stack += value.values()
    elif isinstance(value, list):
      stack += value
  return False


def _arguments(record: PreferenceRecord) -> list[Any]:
  """The arguments of all tool calls, those that are given."""
  out = []
  for message in _all_messages(record):
    for call in message.get('tool_calls') or ():
      call = call.get('function', call)
      if isinstance(call, dict) and call.get('arguments') is not None:
        out.append(call['arguments'])
  return out


def _all_messages(record: PreferenceRecord) -> list[Mapping[str, Any]]:
  return [*record.prompt, *itertools.chain(*record.completions)]


def _text_of(rendered: Rendered) -> str:
  pieces = [*rendered.prompt, *itertools.chain(*rendered.completions)]
  return ''.join(piece.text for piece in pieces)


def says_something(messages: Messages) -> bool:
  """Whether any message has text besides white space, or calls a tool."""
  return any(_content(m).strip() or m.get('tool_calls') for m in messages)


def unused(
  num_chats: int,
  *,
  chat_template: str | None,
  template_args: Mapping[str, Any],
  train_on: str,
) -> str:
  """Returns a line naming the chat options that no record used, or ''.

  Args:
    num_chats: records that went through a chat template.
    chat_template: the option data.chat_template, None if not set.
    template_args: the option data.template_args.
    train_on: the option data.train_on, one of TRAIN_ON.
  """
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


def writes_date(source: str | None, tokenizer: Tokenizer) -> bool:
  """Whether the template, or one of the tokenizer's if None, writes a date."""
  sources = [source] if source else tokenizer.chat_templates.values()
  return any('strftime_now' in text for text in sources)


def make_template(
  tokenizer: Tokenizer,
  source: str | None,
  *,
  template_args: Mapping[str, Any],
  train_on: str,
  where: str,
  date: str = '',
  has_tools: bool = False,
) -> ChatTemplate:
  """Compiles the template that renders a record.

  Args:
    tokenizer: its template is used if `source` is None: the one named
      'tool_use' for a record with tools, if there is one, else 'default'.
    source: Jinja, or None.
    template_args: variables that the template must read.
    train_on: one of TRAIN_ON.
    where: the record, for messages.
    date: the date that the template may write, YYYY-MM-DD.
    has_tools: whether the record has tools.

  Raises:
    InputError: no template, or it does not use an option.
  """
  named = tokenizer.chat_templates
  # The option comes first, then the tokenizer's template for tools.
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
    date=date,
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
  prefix: str = '',
  ends_turn: Callable[[Piece], int] = lambda piece: 0,
  **options: Any,
) -> Rendered:
  """Renders the prompt once, and each completion as the text that follows it.

  Args:
    template: the chat template.
    prompt: one or more messages before the answer.
    completions: the messages of each answer.
    where: the record, for messages.
    prefix: the beginning of each answer's first message that is part of the
      prompt ('continue_final_message' of transformers).
    ends_turn: (piece) -> characters up to the end of its first stop token; 0
      if it has none.
    **options: options of ChatTemplate.render.

  Raises:
    InputError: the rendering of prompt and answer does not begin with that of
      the prompt, so that it cannot be split into prompt + completion.
  """

  def render(messages: Messages, **more: Any):
    return template.render(messages, where=where, **options, **more)

  # The prompt is rendered once, so all answers follow the same text.
  place = f'{where}: {template.where}'
  opened = render(prompt, add_generation_prompt=True)
  start = opened.text + prefix
  size = len(start)
  pieces, rests, spans = opened.pieces, [], []
  for completion in completions:
    chat = render((*prompt, *completion))
    _check_beginning(start, chat.text, place)
    if prefix:
      pieces = before(chat.pieces, size)
    rests.append(after(chat.pieces, size))
    trained = chat.spans
    # A single message is trained entirely; several need the assistant's turns.
    if trained is None and len(completion) > 1:
      trained = _turns(render, prompt, completion, chat, ends_turn, place)
    if trained is not None:
      # From characters of the conversation to characters of the answer.
      trained = tuple(
        (max(a, size) - size, b - size) for a, b in trained if b > size
      )
    spans.append(trained)
  return Rendered(pieces, rests, spans)


def before(pieces: Sequence[Piece], offset: int) -> tuple[Piece, ...]:
  """Returns the pieces up to `offset` characters."""
  kept = []
  for piece in pieces:
    if offset > 0:
      kept.append(Piece(piece.text[:offset], piece.is_content))
    offset -= len(piece.text)
  return tuple(kept)


def after(pieces: Sequence[Piece], offset: int) -> tuple[Piece, ...]:
  """Returns the pieces without their first `offset` characters."""
  rest = []
  for piece in pieces:
    if offset < len(piece.text):
      rest.append(Piece(piece.text[offset:], piece.is_content))
    offset = max(0, offset - len(piece.text))
  return tuple(rest)


def _turns(render, prompt, completion, chat, ends_turn, place) -> Spans:
  """The assistant's turns of an answer, in characters of the conversation."""
  spans = []
  for i, message in enumerate(completion):
    if message['role'] != 'assistant':
      continue
    before = (*prompt, *completion[:i])
    opened = render(before, add_generation_prompt=True).text
    _check_beginning(opened, chat.text, place)
    done = render((*before, message)).text
    stop = _first_stop(after(chat.pieces, len(opened)), ends_turn)
    end = len(opened) + stop
    # Without a stop token, or with one that a later turn writes, the turn ends
    # where the conversation up to it ends.
    if not stop or chat.text.startswith(done) and len(done) < end:
      _check_beginning(done, chat.text, place)
      end = len(done)
    spans.append((len(opened), end))
  return tuple(spans)


def _first_stop(pieces: Sequence[Piece], ends_turn) -> int:
  """Characters up to the end of the first stop token; 0 = none.

  Only template text counts: a stop token that a message contains is content.
  """
  size = 0
  for piece in pieces:
    end = 0 if piece.is_content else ends_turn(piece)
    if end:
      return size + end
    size += len(piece.text)
  return 0


def _content(message: Mapping[str, Any]) -> str:
  return str(message.get('content') or '')


def _check_beginning(start: str, text: str, where: str) -> None:
  if not text.startswith(start):
    raise _not_a_beginning(start, text, where)


def _not_a_beginning(start: str, text: str, where: str) -> InputError:
  # The first character that differs, or the end of the shorter text.
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
