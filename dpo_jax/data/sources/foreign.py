"""row -> row: rows in the shapes of other trainers, with our columns.

Comes in: a dict as a file holds it, and the renames of config.data.columns.
Goes out: a dict whose columns formats.py knows, or a types.InputError that
names the column. Checks no value that a parser checks later: see columns.py.

Understood, beside our own columns:
  messages as JSON text, in every column of messages
  one message in place of a list of one
  an object of lists, one per key, in place of a list of messages
  messages with `from` and `value` (ShareGPT), under any column of messages
  `conversations`: the prompt of `chosen` and `rejected`, else `messages`
  a `prompt` with `messages` and `tools` in it (OpenAI's `input`)
  `messages` with `rejected_response` or `rejected_messages`: a pair
  `messages` with `label`: a labelled answer
A null in an optional column counts as absent.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import conversations

KEY = 'config.data.columns'
# Columns that `ours` turns into others.
COLUMNS = frozenset(
  ('conversations', 'rejected_response', 'rejected_messages', 'label')
)
# Columns that count as absent if they are null.
OPTIONAL = frozenset(
  (
    'weight',
    'margin',
    'score_chosen',
    'score_rejected',
    'reward_chosen',
    'reward_rejected',
    'score',
    'reference_scores',
    'tools',
    *COLUMNS - {'label'},
  )
)

_MESSAGES = ('prompt', 'chosen', 'rejected', 'completion', 'messages')
_ANSWERS = ('chosen', 'rejected', 'completion', 'completions')
# Names that others give to our columns, for the line that maps them.
_OTHER_NAMES = {
  'prompt': 'instruction question query input problem post user_prompt '
  'user_input context',
  'chosen': 'preferred_output preferred_response preferred chosen_response '
  'response_chosen chosen_output output_chosen accepted accept response_j '
  'response_w positive better good response output answer completion',
  'rejected': 'non_preferred_output nonpreferred_output dispreferred_output '
  'non_preferred_response dispreferred non_preferred rejected_response '
  'response_rejected rejected_output output_rejected rejected_completion '
  'rejected_answer rejected_text reject response_k '
  'response_l negative worse bad',
  'completions': 'responses outputs answers generations candidates',
  'scores': 'ratings rewards score_list',
  'completion': 'response output answer generation target reply solution',
  'label': 'kto_tag desirable is_desirable thumbs_up is_chosen',
  'messages': 'conversation dialog dialogue turns chat',
}
# The columns of a format, in the order in which formats are looked for.
_SHAPES = (
  ('prompt', 'chosen', 'rejected'),
  ('prompt', 'completions', 'scores'),
  ('prompt', 'completion', 'label'),
  ('prompt', 'completion'),
  ('messages', 'label'),
  ('messages',),
)


def parse_renames(text: str) -> dict[str, str]:
  """Parses `NEW=OLD,-OTHER` into {OLD: NEW}; '' for a column left out.

  Raises:
    InputError: the text has another form, or names a column twice.
  """
  renames: dict[str, str] = {}
  for part in filter(None, (p.strip() for p in text.split(','))):
    new, equals, old = (side.strip() for side in part.partition('='))
    if part.startswith('-') and not equals:
      new, old = '', part[1:].strip()
    if not old or not (new or part.startswith('-')) or new.startswith('-'):
      raise errors.refuse(
        KEY,
        f'{errors.show(part)} is neither NEW=OLD nor -OLD',
        "write 'chosen=preferred_output,-system': the first is renamed, the "
        'second is left out',
      )
    if old in renames or new and new in renames.values():
      raise errors.refuse(
        KEY, f'{errors.show(part)} repeats a column', 'name each column once'
      )
    renames[old] = new
  return renames


def renamed(
  row: dict[str, Any], renames: Mapping[str, str], where: str
) -> dict[str, Any]:
  """Returns the row with its columns renamed.

  Args:
    row: column name -> value.
    renames: {old name: new name}; '' leaves the column out.
    where: `path:line`, for messages.

  Raises:
    InputError: the row has neither the old column nor the new one.
  """
  for old, new in renames.items():
    if new and old not in row and new not in row:
      names = ', '.join(errors.show(key, 30) for key in list(row)[:8])
      raise errors.refuse(
        where,
        f'no column {old!r} to rename (its columns: {names or "none"})',
        f'{errors.did_you_mean(old, row)}correct {KEY}',
      )
  kept = {key: value for key, value in row.items() if key not in renames}
  return kept | {
    new: row[old] for old, new in renames.items() if new and old in row
  }


def suggestion(keys: Iterable[str]) -> str:
  """Returns the value of config.data.columns that fits columns, or ''."""
  return _suggestion(tuple(keys))


def ours(
  row: dict[str, Any], where: str, row_format: str = 'auto'
) -> dict[str, Any]:
  """Returns a row with the columns and values that formats.py parses.

  Args:
    row: column name -> value, after `renamed`.
    where: `path:line`, for messages.
    row_format: the format that the row is meant to have. One of strings, named
      by the user, takes every text as it is.

  Raises:
    InputError: columns that contradict each other, or messages that cannot be
      read; names the column.
  """
  row = {
    key: value
    for key, value in row.items()
    if value is not None or key not in OPTIONAL
  }
  if row_format == 'auto' or row_format.removeprefix('chat_') != row_format:
    row = _with_turns(row, where)
    row = _with_prompt(row)
    if not any(key in row for key in _ANSWERS):
      row = _with_answers(row, where, row_format)
  elif row_format == 'messages':
    row = _with_prompt(_with_turns(row, where))
  return row


def _with_turns(row: dict[str, Any], where: str) -> dict[str, Any]:
  """The row with messages in the form of formats.py."""
  for key in (*_MESSAGES, *(COLUMNS - {'label'})):
    value = row.get(key)
    # Nearly all texts are neither messages nor their JSON: nothing to do.
    turns = conversations.from_foreign(value, key, where)
    if turns is not value:
      row = row | {key: turns}
  answers = row.get('completions')
  if isinstance(answers, str):
    answers = conversations.parse_json(answers)
  if isinstance(answers, list):
    row = row | {
      'completions': [
        conversations.from_foreign(answer, f'completions[{i}]', where)
        for i, answer in enumerate(answers)
      ]
    }
  return row


def _with_prompt(row: dict[str, Any]) -> dict[str, Any]:
  """The row with the prompt of its own column in place of another."""
  prompt = row.get('prompt')
  if isinstance(prompt, dict) and isinstance(prompt.get('messages'), list):
    tools = prompt.get('tools') or row.get('tools')
    row = row | {'prompt': prompt['messages']}
    return row | {'tools': tools} if tools else row
  if row.get('conversations') is None:
    return row
  new = 'messages'
  if any(key in row for key in _ANSWERS):
    new = 'prompt'
  if row.get(new) is not None:
    return row
  rest = {key: v for key, v in row.items() if key != 'conversations'}
  return rest | {new: row['conversations']}


def _with_answers(
  row: dict[str, Any], where: str, row_format: str
) -> dict[str, Any]:
  """The row with `messages` and a judgement as a pair or a labelled answer."""
  turns = row.get('messages')
  if turns is None:
    return row
  if row_format in ('auto', 'chat_pairs'):
    for key in ('rejected_response', 'rejected_messages'):
      if key in row:
        return _pair(row, key, where)
  label = row.get('label')
  if label is None or row_format not in ('auto', 'chat_unpaired'):
    return row
  if label not in (0, 1):  # True == 1
    raise errors.refuse(
      where,
      f"'label' beside 'messages' is {errors.show(label, 40)}, not true or "
      'false',
      f'make it true or false, or leave it out with {KEY}=-label',
    )
  turns = conversations.messages(turns, 'messages', where)
  prompt, answer = _cut(turns, len(turns) - 1, where)
  rest = {key: v for key, v in row.items() if key != 'messages'}
  return rest | {'prompt': list(prompt), 'completion': list(answer)}


def _pair(row: dict[str, Any], key: str, where: str) -> dict[str, Any]:
  """The pair of `messages` and the rejected answer under `key`."""
  turns = conversations.messages(row['messages'], 'messages', where)
  other = row[key]
  rest = {
    name: value
    for name, value in row.items()
    if name not in ('messages', 'prompt', key)
  }
  if key == 'rejected_response' and isinstance(other, str):
    prompt, chosen = _cut(turns, len(turns) - 1, where)
    rejected = [{'role': 'assistant', 'content': other}]
    return rest | {
      'prompt': list(prompt),
      'chosen': list(chosen),
      'rejected': rejected,
    }
  rejected = conversations.messages(
    conversations.from_foreign(other, key, where), key, where
  )
  if rejected[0]['role'] != 'assistant':  # the whole conversation again
    return rest | {'chosen': list(turns), 'rejected': list(rejected)}
  # The answer alone: it stands in the place of all after the last question.
  asked = [i for i, t in enumerate(turns) if t['role'] == 'user']
  prompt, chosen = _cut(turns, asked[-1] + 1 if asked else 0, where)
  return rest | {
    'prompt': list(prompt),
    'chosen': list(chosen),
    'rejected': list(rejected),
  }


def _cut(
  turns: conversations.Messages, size: int, where: str
) -> tuple[conversations.Messages, conversations.Messages]:
  """The first `size` messages, and the answer that follows them."""
  if not 0 < size < len(turns) or turns[-1]['role'] != 'assistant':
    raise errors.refuse(
      where,
      "'messages' does not end with an assistant's answer to something",
      "end the conversation with a message of role 'assistant'",
    )
  return turns[:size], turns[size:]


@functools.lru_cache(maxsize=256)
def _suggestion(keys: tuple[str, ...]) -> str:
  for shape in _SHAPES:
    parts = []
    for name in shape:
      if name in keys:
        continue
      others = [k for k in _OTHER_NAMES[name].split() if k in keys]
      if not others:
        break
      parts.append(f'{name}={others[0]}')
    else:
      # Columns that are ours already have been refused for another reason.
      if parts:
        return ','.join(parts)
  return ''
