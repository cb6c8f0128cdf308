"""value -> text: strings, lists of messages and dialogues in a row.

Comes in: one value of a row, its key and where it was found. Goes out: the
checked value, or the prompt and the answers that it contains, or a
types.InputError that names the key. Renders no template: see text/templates.py.

A message is {'role': ..., 'content': string}. Its other keys (name,
tool_calls) are kept for the template.
"""

import json
import os
from typing import Any

from dpo_jax import errors
from dpo_jax.types import InputError

ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
ANSWER_MARK = '\n\nAssistant:'  # begins each turn of the model in HH

_OTHER_NAMES = {'human': 'user', 'gpt': 'assistant', 'model': 'assistant'}

Messages = tuple[dict[str, Any], ...]


def text(value: Any, key: str, where: str) -> str:
  """Checks a string, which may be empty and must have a UTF-8 form."""
  if not isinstance(value, str):
    raise errors.wrong_type(key, value, 'a string', where)
  # ASCII, the usual case, cannot contain a surrogate.
  if not value.isascii():
    try:
      value.encode('utf-8')
    except UnicodeEncodeError as error:
      raise errors.refuse(
        where,
        f'{key!r} has a lone surrogate at character {error.start + 1}: '
        f'{errors.show(value[error.start])}',
        'write the character whole, or remove it',
      ) from None
  return value


def messages(value: Any, key: str, where: str) -> Messages:
  """Checks a list of one or more messages; returns it as a tuple."""
  if not isinstance(value, list) or not value:
    raise errors.wrong_type(key, value, 'a list of messages', where)
  for i, message in enumerate(value):
    name = f'{key}[{i}]'
    if not isinstance(message, dict):
      raise errors.wrong_type(
        name, message, "{'role': ..., 'content': ...}", where
      )
    for part in ('role', 'content'):
      if message.get(part) is None:
        if part == 'content' and message.get('tool_calls'):
          continue  # the assistant only calls a tool
        raise _without(part, message, name, where)
      text(message[part], f'{name}.{part}', where)
    if message['role'] not in ROLES:
      raise _unknown_role(message['role'], name, where)
  return tuple(value)


def tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
  """Checks function schemas: a list of objects, or its JSON text."""
  schemas = value
  if isinstance(value, str):
    try:
      schemas = json.loads(value)
    except (ValueError, RecursionError):
      pass  # still a string, which is refused below
  if not isinstance(schemas, list) or not all(
    isinstance(schema, dict) for schema in schemas
  ):
    raise errors.wrong_type(
      'tools', value, 'a list of function schemas, or its JSON text', where
    )
  return tuple(schemas)


def answer(value: Any, key: str, where: str) -> Messages:
  """Checks messages of which the first is the assistant's."""
  turns = messages(value, key, where)
  if turns[0]['role'] != 'assistant':
    raise errors.refuse(
      where,
      f'{key!r} begins with a message of role {turns[0]["role"]!r}',
      "begin the answer with role 'assistant'; what is before is the prompt",
    )
  return turns


def is_unfinished(prompt: Messages) -> bool:
  """Whether a prompt ends within an assistant's turn, which answers continue.

  A turn that calls a tool is finished.
  """
  last = prompt[-1]
  return last['role'] == 'assistant' and not last.get('tool_calls')


def split(
  prompt: Any, chosen: Messages, rejected: Messages, where: str
) -> tuple[Messages, Messages, Messages]:
  """Returns prompt, chosen and rejected of a row that names a prompt.

  If `prompt` is a list of messages, it is the prompt, and sides that repeat it
  lose it. If it is a string (UltraFeedback), it only restates the question:
  the prompt is then the beginning that both sides share or, for sides that
  begin with an answer, one user message with this string.
  """
  if isinstance(prompt, str):
    text(prompt, 'prompt', where)
    if chosen[0]['role'] != 'assistant':
      return split_shared(chosen, rejected, where)
    turns: Messages = ({'role': 'user', 'content': prompt},)
  else:
    turns = messages(prompt, 'prompt', where)
  # Both sides repeat the prompt, or neither does.
  size = len(turns)
  if all(_same(side[:size], turns) for side in (chosen, rejected)):
    chosen, rejected = chosen[size:], rejected[size:]
  for key, side in (('chosen', chosen), ('rejected', rejected)):
    if not side or side[0]['role'] != 'assistant':
      raise errors.refuse(
        where,
        f'{key!r} does not begin with an assistant message after the prompt',
        "give the answer alone, or leave 'prompt' out where both sides repeat "
        'it',
      )
  return turns, chosen, rejected


def split_shared(
  chosen: Messages, rejected: Messages, where: str
) -> tuple[Messages, Messages, Messages]:
  """Returns prompt, chosen and rejected of two complete conversations.

  The prompt is the longest common beginning that an assistant message follows
  on both sides.
  """
  best = 0  # messages in the prompt
  # At least one message of each side must follow the prompt.
  for size in range(1, min(len(chosen), len(rejected))):
    if not _same(chosen[size - 1 : size], rejected[size - 1 : size]):
      break
    if chosen[size]['role'] == rejected[size]['role'] == 'assistant':
      best = size
  if not best:
    raise errors.refuse(
      where,
      "'chosen' and 'rejected' share no prompt that an assistant answers in "
      'both',
      "begin both with the same messages, or put them under 'prompt'",
    )
  return chosen[:best], chosen[best:], rejected[best:]


def is_dialogue(value: Any) -> bool:
  """Whether a value is a Human/Assistant text, as in Anthropic's HH."""
  return isinstance(value, str) and ANSWER_MARK in value


def split_dialogue(
  chosen: str, rejected: str, where: str
) -> tuple[str, str, str]:
  r"""Returns prompt, chosen and rejected of two dialogues in HH's form.

  The prompt is the longest common beginning that ends in '\n\nAssistant:'. The
  answers keep their leading space.
  """
  # commonprefix compares characters; it knows nothing of paths.
  shared = os.path.commonprefix([chosen, rejected])
  size = shared.rfind(ANSWER_MARK) + len(ANSWER_MARK)
  if size < len(ANSWER_MARK):
    raise errors.refuse(
      where,
      "'chosen' and 'rejected' share no beginning that ends in "
      f'{ANSWER_MARK!r}',
      'give both the same dialogue up to the last answer',
    )
  return chosen[:size], chosen[size:], rejected[size:]


def _same(left: Messages, right: Messages) -> bool:
  # Other keys (name, timestamps) do not make a turn another one.
  return len(left) == len(right) and all(
    all(a.get(k) == b.get(k) for k in ('role', 'content', 'tool_calls'))
    for a, b in zip(left, right)
  )


def _without(
  part: str, message: dict[str, Any], name: str, where: str
) -> InputError:
  if part in message:
    return errors.wrong_type(f'{name}.{part}', None, 'a string', where)
  keys = ', '.join(errors.show(key, 20) for key in list(message)[:6])
  return errors.refuse(
    where,
    f'message {name} has no {part!r} (its keys: {keys or "none"})',
    "write messages as {'role': ..., 'content': ...}",
  )


def _unknown_role(role: str, name: str, where: str) -> InputError:
  meant = _OTHER_NAMES.get(role.lower(), role)
  return errors.refuse(
    where,
    f'unknown role {errors.show(role, 30)} in {name}',
    f'{errors.did_you_mean(meant, ROLES)}use one of {", ".join(ROLES)}',
  )
