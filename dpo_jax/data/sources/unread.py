"""row -> refusal: unread columns that would change the trained text.

Comes in: a row, the columns that its format reads, and its record. Goes out:
the record, with a system message where `system` gives one, or a
types.InputError that names the column. A column whose text the record holds
already, or that is empty, changes nothing. Any other column (ids, sources,
metadata) is provenance, which the log names.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import conversations, foreign
from dpo_jax.types import InputError, PreferenceRecord

# Last words of names that hold facts about a row, such as `image_id`.
_FACTS = frozenset(
  'id ids idx index uid uuid hash key type kind source src count counts num '
  'number len length lengths size tokens score scores rating ratings rank '
  'lang language category model models split license version name names date '
  'time timestamp fingerprint url urls width height logps logprob logprobs '
  'reward rewards path paths'.split()
)
_SYSTEM = frozenset(
  'system systems sys system_prompt system_message system_msg sys_prompt '
  'system_instruction system_instructions system_text system_content'.split()
)
_MEDIA = frozenset(
  'image images img imgs picture pictures photo photos video videos audio '
  'audios frames pixel pixels speech waveform media'.split()
)
_PROMPT = frozenset(
  'prompt instruction instructions question questions query queries input '
  'inputs context contexts document documents docs passage passages history '
  'chat_history dialogue_history dialog_history conversation_history '
  'conversation conversations evidence knowledge retrieved user_prompt '
  'user_message user_input functions function_list available_tools '
  'tool_schemas tool_list developer developer_prompt few_shot response '
  'responses'.split()
)
_REJECTED = frozenset(('rejected', 'dispreferred', 'nonpreferred'))
_JUDGED = frozenset(('kto_tag', 'label'))


def check(
  row: dict[str, Any], read: frozenset[str], record: PreferenceRecord
) -> PreferenceRecord:
  """Returns the record, or refuses a column that would change it.

  Args:
    row: column name -> value, from foreign.ours.
    read: the columns that the row's format reads.
    record: the record of the row.

  Raises:
    InputError: names the first such column.
  """
  for key, kind in _suspects(tuple(row), read):
    value = row[key]
    texts = list(_texts(value))
    if value is None or not texts and kind != 'judged':
      continue
    if kind == 'system' and _takes_system(record, value):
      turn = {'role': 'system', 'content': value}
      conversations.text(value, key, record.where)
      record = record._replace(prompt=(turn, *record.prompt))
    elif kind in ('media', 'judged') or not _holds(record, texts):
      raise _refusal(key, kind, value, row, record.where)
  return record


@functools.lru_cache(maxsize=4096)
def kind_of(name: str) -> str:
  """Returns the way in which a column of this name changes a record, or ''."""
  words = re.findall(
    r'[a-z]+', re.sub(r'([a-z])([A-Z])', r'\1_\2', name).lower()
  )
  if not words or words[-1] in _FACTS - {'url', 'urls', 'path', 'paths'}:
    return ''
  joined = '_'.join(words)
  if _MEDIA & set(words):
    return 'media'
  if words[-1] in _FACTS:
    return ''
  if joined in _SYSTEM:
    return 'system'
  if joined in _PROMPT:
    return 'prompt'
  if _REJECTED & set(words) or 'non_preferred' in joined:
    return 'rejected'
  return 'judged' if joined in _JUDGED else ''


# Rows of one file have the same columns: each set is looked at once.
@functools.lru_cache(maxsize=1024)
def _suspects(
  keys: tuple[str, ...], read: frozenset[str]
) -> tuple[tuple[str, str], ...]:
  """(column, kind) of the columns whose values have to be looked at."""
  # The user asked for ids, whatever the text is.
  if 'prompt_ids' in read and 'prompt' not in read:
    return ()
  suspects = []
  for key in keys:
    kind = '' if key in read else kind_of(key)
    # Beside two sides, or a score of each answer, these are provenance.
    if kind in ('rejected', 'judged') and read & {'rejected', 'scores'}:
      continue
    # A label of a text is its class; `ours` has looked at that of messages.
    if key == 'label':
      continue
    if kind:
      suspects.append((key, kind))
  return tuple(suspects)


def _takes_system(record: PreferenceRecord, value: Any) -> bool:
  """Whether a record of messages has no system message yet."""
  return (
    isinstance(value, str)
    and isinstance(record.prompt, tuple)
    and isinstance(record.prompt[0], dict)
    and record.prompt[0]['role'] not in ('system', 'developer')
  )


def _texts(value: Any) -> Iterable[str]:
  """The texts in a value that are not blank; roles and numbers are none."""
  if isinstance(value, str):
    if value.strip():
      yield value.strip()
  elif isinstance(value, bytes):
    if value:
      yield repr(value)
  elif isinstance(value, dict):
    for key, item in value.items():
      if key not in ('role', 'from', 'type'):
        yield from _texts(item)
  elif isinstance(value, list | tuple):
    for item in value:
      yield from _texts(item)


def _holds(record: PreferenceRecord, texts: list[str]) -> bool:
  """Whether the record holds all of the texts."""
  held = '\n'.join(_texts([record.prompt, *record.completions]))
  return all(text in held for text in texts)


def _refusal(
  key: str, kind: str, value: Any, row: dict[str, Any], where: str
) -> InputError:
  """The refusal of a column, with the line that reads it or leaves it out."""
  leave = f'leave it out with {foreign.KEY}=-{key}'
  shown = errors.show(value, 40)
  if kind in ('rejected', 'judged'):
    suggested = foreign.suggestion(row)
    hint = f'set {foreign.KEY}={suggested}' if suggested else 'rename it'
    return errors.refuse(
      where,
      f'column {key!r} says which answer is preferred and is not read: {shown}',
      f'{hint}, or {leave}',
    )
  if kind == 'media':
    return errors.refuse(
      where,
      f'column {key!r} is not read, and models here read text only: {shown}',
      f'give rows of text, or {leave}',
    )
  place = "a first message of role 'system'" if kind == 'system' else "'prompt'"
  return errors.refuse(
    where,
    f'column {key!r} changes the prompt and is not read: {shown}',
    f'write it into {place}, or {leave}',
  )
