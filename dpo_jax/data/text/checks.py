"""record -> record: refuses values that cannot become the tokens they mean.

Comes in: a record as it was read. Goes out: nothing, or a types.InputError of
one line. Renders and encodes nothing, drops nothing.

Refused are a lone surrogate, a number that is not finite and a value nested too
deeply, anywhere in a message or tool, since a template may write any of them;
text that was rendered before; and ids outside the vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import conversations
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.types import InputError, PreferenceRecord

MAX_DEPTH = 64  # lists and objects inside each other, far above any schema

_FIX_SURROGATE = 'write the character whole, or remove it'


def form(record: PreferenceRecord) -> str:
  """Returns 'text', 'chat' or 'ids': the form of prompt and completions.

  Raises:
    InputError: they are of different forms.
  """
  forms = set()
  for value in (record.prompt, *record.completions):
    if isinstance(value, str):
      forms.add('text')
    elif len(value):
      forms.add('chat' if isinstance(value[0], Mapping) else 'ids')
  if len(forms) > 1:
    raise errors.refuse(
      record.where,
      f'prompt and completions are of different forms: {sorted(forms)}',
      'give all as text, all as messages, or all as token ids',
    )
  return forms.pop() if forms else 'ids'


def texts(
  record: PreferenceRecord, tokenizer: Tokenizer, *, allow_control_tokens: bool
) -> None:
  """Checks a record of strings.

  Args:
    record: prompt and completions are strings.
    tokenizer: has the control tokens.
    allow_control_tokens: option of encode.EncodeOptions.

  Raises:
    InputError: a string has no UTF-8 form, or, unless control tokens are
      allowed, begins or ends with one: its text was rendered before.
  """
  for text in (record.prompt, *record.completions):
    conversations.text(text, 'text', record.where)
  if allow_control_tokens:
    return
  names = ['the prompt', *('a completion' for _ in record.completions)]
  for name, text in zip(names, (record.prompt, *record.completions)):
    side, token = tokenizer.control_tokens.at_border(text)
    if token:
      raise errors.refuse(
        record.where,
        f'{name} {side} with the control token {token!r}, so its text was '
        'rendered before and the token would be read letter by letter',
        'set data.allow_control_tokens=True to take it as the token, give '
        'messages and leave it to the chat template, or remove it',
      )


def messages(record: PreferenceRecord) -> None:
  """Refuses what no template can write, in messages and tools."""
  writable(record.prompt, 'prompt', record.where)
  for completion in record.completions:
    writable(completion, 'completion', record.where)
  if record.tools is not None:
    writable(record.tools, 'tools', record.where)


def writable(value: Any, name: str, where: str) -> None:
  """Refuses strings without a UTF-8 form, NaN, infinity, and deep nesting.

  Args:
    value: JSON data; its keys are checked too.
    name: of the value, for messages.
    where: the place of the value, for messages.
  """
  # A stack of (value, (its parent's place, its key), depth): no recursion, as
  # the value may be nested deeper than Python's stack.
  todo = [(value, (None, name), 0)]
  while todo:
    item, place, depth = todo.pop()
    if isinstance(item, str):
      _encodable(item, place, where)
    elif isinstance(item, Mapping):
      for key, part in item.items():
        inner = place, f'.{key}'
        if isinstance(key, str):
          _encodable(key, inner, where)
        todo.append((part, inner, depth + 1))
    elif isinstance(item, (list, tuple)):
      todo += [
        (part, (place, f'[{i}]'), depth + 1) for i, part in enumerate(item)
      ]
    elif isinstance(item, float) and not math.isfinite(item):
      raise errors.refuse(
        where, f'{_path(place)} is {item}', 'give a finite number, or null'
      )
    if depth > MAX_DEPTH:
      raise errors.refuse(
        where,
        f'{_path(place)[:60]}... is nested deeper than {MAX_DEPTH} levels',
        'make it flatter',
      )


def ids(
  lists: Sequence[Sequence[int]], tokenizer: Tokenizer, where: str
) -> None:
  """Refuses ids outside the vocabulary."""
  size = tokenizer.vocab_size
  for ids_of_one in lists:
    for token in (min(ids_of_one, default=0), max(ids_of_one, default=0)):
      if not 0 <= token < size:
        raise errors.refuse(
          where,
          f'token id {token} is outside the vocabulary of {size} '
          f'(tokenizer {tokenizer.name})',
          f'give ids of 0 to {size - 1}, or the tokenizer they are of',
        )


def _encodable(text: str, place: tuple, where: str) -> None:
  # ASCII, the usual case, cannot contain a surrogate.
  if text.isascii():
    return
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise _surrogate(text[error.start], place, where) from None


def _surrogate(character: str, place: tuple, where: str) -> InputError:
  return errors.refuse(
    where,
    f'{_path(place)} has a lone surrogate: {errors.show(character)}',
    _FIX_SURROGATE,
  )


def _path(place: tuple | None) -> str:
  """'prompt[0].tool_calls[1].name' from the pairs (parent, key)."""
  parts = []
  while place is not None:
    place, key = place
    parts.append(key)
  return ''.join(reversed(parts))
