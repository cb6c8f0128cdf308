"""value -> text: strings, lists of messages and dialogues in a row.

Comes in: one value of a row, its key and where it was found. Goes out: the
checked value, or the prompt and the answers that it contains, or a
types.InputError that names the key. Renders no template: see text/templates.py.

A message is {'role': ..., 'content': string}. Its other keys (name,
tool_calls) are kept for the template. Messages, tool calls and function
schemas may be given as JSON text.
"""

import json
import os
import re
from typing import Any

from dpo_jax import errors
from dpo_jax.types import InputError

ROLES = ('system', 'developer', 'user', 'assistant', 'tool')
ANSWER_MARK = '\n\nAssistant:'  # begins each turn of the model in HH

_OTHER_NAMES = {
  'human': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'bot': 'assistant',
  'model': 'assistant',
  'observation': 'tool',
}
# Keys of a message with which other trainers select what is trained.
_WEIGHTS = ('weight', 'train', 'loss', 'train_detail', 'training')
# The beginning of messages in a text: as JSON, or as Python prints them.
_TEXT_OF_MESSAGES = re.compile(
  r"""\s*\[?\s*\{\s*(["'])(role|content|from|value)\1\s*:"""
)

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
    # Nothing of a prompt is trained.
    if key != 'prompt':
      _check_weights(message, name, where)
  return tuple(
    _with_calls(message, f'{key}[{i}].tool_calls', where)
    for i, message in enumerate(value)
  )


def tools(value: Any, where: str) -> tuple[dict[str, Any], ...]:
  """Checks function schemas: a list of objects, or its JSON text."""
  wanted = 'a list of function schemas, or its JSON text'
  return _objects(value, 'tools', wanted, where)


def parse_json(text: str) -> Any:
  """Returns the list or object of a JSON text; any other text as it is."""
  if not text.lstrip().startswith(('[', '{')):
    return text
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return text


def from_foreign(value: Any, key: str, where: str) -> Any:
  """Returns messages in another form as a list; any other value as it is.

  The other forms: JSON text, one message, an object of lists (a `Sequence` of
  `datasets`), and messages with `from` and `value`. Content that is no message
  is not looked at.

  Raises:
    InputError: a text that begins as messages do and is not JSON.
  """
  parsed = parse_json(value) if isinstance(value, str) else value
  if _is_message(parsed):
    parsed = _transposed(parsed) or [parsed]
  if isinstance(parsed, list) and not all(map(_is_ours, parsed)):
    turns = [parse_json(t) if isinstance(t, str) else t for t in parsed]
    if turns and all(map(_is_message, turns)):
      parsed = [_from_sharegpt(t, key, where) for t in turns]
  is_messages = (
    isinstance(parsed, list) and parsed and all(map(_is_message, parsed))
  )
  if not isinstance(value, str) or is_messages:
    return parsed if is_messages else value
  if _TEXT_OF_MESSAGES.match(value):
    raise errors.refuse(
      where,
      f'{key!r} is a text that begins as messages do and is not JSON of them: '
      f'{errors.show(value, 40)}',
      'write the list itself or its JSON (json.dumps), or name a format of '
      'strings in config.data.row_format to take it as text',
    )
  return value


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


def _is_ours(message: Any) -> bool:
  return isinstance(message, dict) and 'role' in message


def _is_message(value: Any) -> bool:
  """Whether a value has the keys of a message, ours or ShareGPT's."""
  return isinstance(value, dict) and (
    ('role' in value and ('content' in value or 'tool_calls' in value))
    or {'from', 'value'} <= value.keys()
  )


def _transposed(value: dict[str, Any]) -> list[dict[str, Any]]:
  """The messages of an object of equally long lists; [] of any other."""
  columns = list(value.values())
  if not all(isinstance(column, list) for column in columns):
    return []
  if len({len(column) for column in columns}) > 1:
    return []
  # A key that one message lacks is null in its place.
  return [
    {k: v for k, v in zip(value, turn) if v is not None or k == 'content'}
    for turn in zip(*columns)
  ]


def _from_sharegpt(
  message: dict[str, Any], key: str, where: str
) -> dict[str, Any]:
  """A message with `role` and `content` for one with `from` and `value`."""
  if 'role' in message or not isinstance(message['from'], str):
    return message
  rest = {k: v for k, v in message.items() if k not in ('from', 'value')}
  role = message['from']
  if role != 'function_call':
    role = _OTHER_NAMES.get(role, role)
    return {'role': role, 'content': message['value'], **rest}
  calls = message['value']
  calls = parse_json(calls) if isinstance(calls, str) else calls
  calls = calls if isinstance(calls, list) else [calls]
  if not all(isinstance(call, dict) for call in calls):
    raise errors.wrong_type(
      key, message['value'], "'function_call' with JSON of a call", where
    )
  calls = [{'type': 'function', 'function': call} for call in calls]
  return {'role': 'assistant', 'content': '', 'tool_calls': calls, **rest}


def _with_calls(
  message: dict[str, Any], name: str, where: str
) -> dict[str, Any]:
  """The message with its tool calls as objects, whatever text they were."""
  calls = message.get('tool_calls')
  if calls is None:
    return message
  wanted = 'a list of calls, or its JSON text'
  parsed = [
    call | {'function': parse_json(call['function'])}
    if isinstance(call.get('function'), str)
    else call
    for call in _objects(calls, name, wanted, where)
  ]
  if isinstance(calls, list) and all(a is b for a, b in zip(parsed, calls)):
    return message
  return message | {'tool_calls': parsed}


def _objects(
  value: Any, key: str, wanted: str, where: str
) -> tuple[dict[str, Any], ...]:
  """Checks a list of objects; it, or each of them, may be JSON text."""
  objects = parse_json(value) if isinstance(value, str) else value
  if isinstance(objects, list):
    objects = [parse_json(o) if isinstance(o, str) else o for o in objects]
  if not isinstance(objects, list) or not all(
    isinstance(item, dict) for item in objects
  ):
    raise errors.wrong_type(key, value, wanted, where)
  return tuple(objects)


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


def _check_weights(message: dict[str, Any], name: str, where: str) -> None:
  """Refuses a message that says of itself whether, or how much, it is trained.

  The answers of the assistant are, and no others are: a key that says the same
  is harmless.
  """
  is_answer = message['role'] == 'assistant'
  for key in _WEIGHTS:
    value = message.get(key)
    if value is not None and value != is_answer:
      raise errors.refuse(
        where,
        f'{name}.{key} is {errors.show(value, 20)}, and weights of single '
        'messages are not read',
        'split the row so that what is trained is its last answer '
        "(data.train_on='last') and remove the key; the column 'weight' weighs "
        'a comparison',
      )


def _unknown_role(role: str, name: str, where: str) -> InputError:
  meant = _OTHER_NAMES.get(role.lower(), role)
  return errors.refuse(
    where,
    f'unknown role {errors.show(role, 30)} in {name}',
    f'{errors.did_you_mean(meant, ROLES)}use one of {", ".join(ROLES)}',
  )
