"""record: one row of a data file -> types.PreferenceRecord.

Comes in: a dict (a JSON object, a Parquet row, a TFDS example) and where it
was found. Goes out: a PreferenceRecord, or a types.InputError of one line that
names the key, what is wrong and the fix. Touches no disk, encodes no text and
drops nothing: an empty completion or two equal sides are records, and encoding
counts them.

Columns of every format are in FORMATS. Beside them:
  weight  finite, >= 0, default 1: the comparison's weight in the batch's mean
  margin  finite: how much better the chosen side is; pairs only. Where it is
          not given it is the difference of the scores, or 0 without scores.
          Ranked rows have score differences and refuse it
  score_chosen, score_rejected (or reward_chosen, reward_rejected)  pairs only
  tools   a list of function schemas, or its JSON text, for the chat template;
          rows of messages only
Any other column is provenance and is not looked at.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import conversations
from dpo_jax.types import Comparison, PreferenceRecord

FORMATS = {
  'pairs': 'prompt, chosen, rejected: strings',
  'chat_pairs': 'chosen, rejected: messages; prompt: messages, or in both',
  'dialogue_pairs': 'chosen, rejected: whole Human/Assistant texts, no prompt',
  'token_ids': 'prompt_ids, chosen_ids, rejected_ids: lists of token ids',
  'ranked': 'prompt: string; completions: strings; scores: numbers',
  'chat_ranked': 'prompt, each of completions: messages; scores: numbers',
  'unpaired': 'prompt, completion: strings; label: true or false',
  'chat_unpaired': 'prompt, completion: messages; label: true or false',
  'demonstrations': 'prompt, completion: strings (SFT)',
  'chat_demonstrations': 'prompt, completion: messages (SFT)',
  'messages': 'messages: a conversation whose last turn is learnt (SFT)',
  'text': 'text: string (SFT)',
}

MAX_NUMBER = 1e38  # numbers and their differences must fit in float32
_MAX_TOKEN = 2**31 - 1

# The columns that a kind of row must have; its form (text, messages) is in the
# values. `prompt` of pairs may be part of both sides.
_REQUIRED = {
  'pairs': ('chosen', 'rejected'),
  'token_ids': ('prompt_ids', 'chosen_ids', 'rejected_ids'),
  'ranked': ('prompt', 'completions', 'scores'),
  'unpaired': ('prompt', 'completion', 'label'),
  'demonstrations': ('prompt', 'completion'),
  'messages': ('messages',),
  'text': ('text',),
}
_KEYS = frozenset(key for keys in _REQUIRED.values() for key in keys)
_OPTIONAL = ('weight', 'margin')
_SCORES = (
  ('score_chosen', 'score_rejected'),
  ('reward_chosen', 'reward_rejected'),
)
KNOWN_COLUMNS = (*_KEYS, *_OPTIONAL, *sum(_SCORES, ()))


def parse_row(
  row: dict[str, Any],
  row_format: str = 'auto',
  *,
  where: str,
  use_token_ids: bool = False,
) -> PreferenceRecord:
  """Reads one row.

  Args:
    row: column name -> value.
    row_format: a key of FORMATS, or 'auto' to detect it from this row.
    where: `path:line` or `source[index]`, for messages and record.where.
    use_token_ids: take `*_ids` columns as they are and ignore the text.

  Returns:
    The record; comparisons of a demonstration are Comparison(0, 0).

  Raises:
    InputError: one line, naming the key.
    KeyError: row_format is none of FORMATS.
  """
  if row_format == 'auto':
    row_format = detect_format(row, where, use_token_ids=use_token_ids)
  record = _PARSERS[row_format](row, where)
  if row.get('tools') is None or row_format not in _OF_MESSAGES:
    return record
  return record._replace(tools=conversations.tools(row['tools'], where))


def detect_format(
  row: dict[str, Any], where: str, *, use_token_ids: bool = False
) -> str:
  """The key of FORMATS that fits the row, or an InputError naming the key."""
  kind, problem = _kind(tuple(row), use_token_ids)
  if problem:
    raise errors.refuse(where, *problem)
  if kind == 'pairs':
    return _pairs_format(row, where)
  if kind in ('ranked', 'unpaired', 'demonstrations'):
    value = row['completions' if kind == 'ranked' else 'completion']
    if kind == 'ranked' and isinstance(value, list) and value:
      value = value[0]
    if isinstance(value, list) or isinstance(row['prompt'], list):
      return 'chat_' + kind
  return kind


@functools.lru_cache(maxsize=256)
def _kind(
  keys: tuple[str, ...], use_token_ids: bool
) -> tuple[str, tuple[str, str] | None]:
  """The kind of row that has these columns, and (problem, fix) if none has."""
  if use_token_ids:
    kind = 'token_ids'
  elif 'chosen' in keys or 'rejected' in keys:
    kind = 'pairs'
  elif 'completions' in keys:
    kind = 'ranked'
  elif 'completion' in keys:
    labelled = 'label' in keys or _misspelt('label', keys)
    kind = 'unpaired' if labelled else 'demonstrations'
  else:
    names = ('chosen', 'rejected', 'completions', 'completion')
    wrong = [(name, key) for name in names if (key := _misspelt(name, keys))]
    if wrong:
      return '', _missing(*wrong[0])
    kind = next((k for k in ('messages', 'text') if k in keys), '')
    if not kind:
      return '', _no_format(keys)
  for name in _REQUIRED[kind]:
    if name not in keys:
      return kind, _missing(name, _misspelt(name, keys, 0.6))
  for name in _OPTIONAL:
    key = _misspelt(name, keys)
    if name not in keys and key and key[0].lower() == name[0]:
      return kind, (
        f'unknown column {key!r} (did you mean {name!r}?)',
        f'rename it to {name!r}, or remove it',
      )
  return kind, None


def _misspelt(name: str, keys: Iterable[str], cutoff: float = 0.8) -> str:
  """The unknown column that most likely was meant to be `name`, or ''."""
  return errors.nearest(name, [k for k in keys if k not in _KEYS], cutoff)


def _missing(name: str, key: str) -> tuple[str, str]:
  if key:
    return (
      f'key {name!r} is missing (did you mean {name!r} by {key!r}?)',
      f'rename {key!r} to {name!r}',
    )
  return f'key {name!r} is missing', f'add {name!r} to this row'


def _no_format(keys: tuple[str, ...]) -> tuple[str, str]:
  if 'chosen_ids' in keys or 'rejected_ids' in keys:
    return (
      'the row has token ids and no text',
      'set config.data.use_token_ids=True to train on the ids as they are',
    )
  found = ', '.join(errors.show(k, 30) for k in keys[:8]) or 'none'
  return (
    f'unknown set of columns ({found})',
    'use prompt, chosen, rejected; or prompt, completions, scores; or prompt, '
    'completion, label; or prompt, completion; or messages; or text',
  )


def _pairs_format(row: dict[str, Any], where: str) -> str:
  sides = row['chosen'], row['rejected']
  if any(isinstance(value, list) for value in (*sides, row.get('prompt'))):
    return 'chat_pairs'
  if 'prompt' in row:
    return 'pairs'
  wrong = _misspelt('prompt', row, 0.6)
  if not wrong and all(map(conversations.is_dialogue, sides)):
    return 'dialogue_pairs'
  problem, fix = _missing('prompt', wrong)
  if not wrong:
    problem += ' and the sides are neither messages nor Human/Assistant text'
  raise errors.refuse(where, problem, fix)


def _pairs(row: dict[str, Any], where: str) -> PreferenceRecord:
  prompt, chosen, rejected = (
    _read(conversations.text, row, key, where)
    for key in ('prompt', 'chosen', 'rejected')
  )
  return _pair_record(row, prompt, chosen, rejected, where)


def _chat_pairs(row: dict[str, Any], where: str) -> PreferenceRecord:
  chosen = _read(conversations.messages, row, 'chosen', where)
  rejected = _read(conversations.messages, row, 'rejected', where)
  if 'prompt' in row:
    parts = conversations.split(row['prompt'], chosen, rejected, where)
  else:
    parts = conversations.split_shared(chosen, rejected, where)
  return _pair_record(row, *parts, where)


def _dialogue_pairs(row: dict[str, Any], where: str) -> PreferenceRecord:
  chosen = _read(conversations.text, row, 'chosen', where)
  rejected = _read(conversations.text, row, 'rejected', where)
  parts = conversations.split_dialogue(chosen, rejected, where)
  return _pair_record(row, *parts, where)


def _token_ids(row: dict[str, Any], where: str) -> PreferenceRecord:
  prompt, chosen, rejected = (
    _read(_ids, row, key, where) for key in _REQUIRED['token_ids']
  )
  if not prompt:
    raise errors.refuse(
      where,
      "'prompt_ids' is empty",
      'give at least one id (BOS): the last one predicts the first answer',
    )
  return _pair_record(row, prompt, chosen, rejected, where)


def _pair_record(
  row: dict[str, Any], prompt: Any, chosen: Any, rejected: Any, where: str
) -> PreferenceRecord:
  scores = None
  for names in _SCORES:
    if names[0] in row or names[1] in row:
      scores = tuple(_read(_number, row, name, where) for name in names)
      break
  margin = scores[0] - scores[1] if scores else 0.0
  if 'margin' in row:
    margin = _number(row['margin'], 'margin', where)
  comparison = Comparison(0, 1, _weight(row, where), margin)
  return PreferenceRecord(
    prompt, (chosen, rejected), (comparison,), scores=scores, where=where
  )


def _ranked(
  row: dict[str, Any], where: str, chat: bool = False
) -> PreferenceRecord:
  """K answers; a comparison for each two whose scores differ."""
  prompt = _read(_PROMPT[chat], row, 'prompt', where)
  answers = _each(_ANSWER[chat], row, 'completions', where)
  scores = _each(_number, row, 'scores', where)
  if len(scores) != len(answers):
    problem = f"{len(answers)} 'completions' and {len(scores)} 'scores'"
    raise errors.refuse(where, problem, 'give one score a completion')
  _refuse(row, 'margin', 'ranked', where)
  weight = _weight(row, where)
  comparisons = tuple(
    Comparison(i, j, weight, scores[i] - scores[j])
    for i in range(len(scores))
    for j in range(len(scores))
    if scores[i] > scores[j]
  )
  return PreferenceRecord(
    prompt, answers, comparisons, scores=scores, where=where
  )


def _unpaired(
  row: dict[str, Any], where: str, chat: bool = False
) -> PreferenceRecord:
  """One answer that is desirable or not."""
  record = _demonstration(row, where, chat)
  label = _get(row, 'label', where)
  if not isinstance(label, bool) and label not in (0, 1):
    raise errors.wrong_type('label', label, 'true or false', where)
  _refuse(row, 'weight', 'unpaired', where)
  return record._replace(comparisons=(), labels=(bool(label),))


def _demonstration(
  row: dict[str, Any], where: str, chat: bool = False
) -> PreferenceRecord:
  """One answer to imitate."""
  prompt = _read(_PROMPT[chat], row, 'prompt', where)
  answer = _read(_ANSWER[chat], row, 'completion', where)
  return _imitate(row, prompt, answer, where)


def _messages(row: dict[str, Any], where: str) -> PreferenceRecord:
  turns = _read(conversations.messages, row, 'messages', where)
  if len(turns) < 2 or turns[-1]['role'] != 'assistant':
    raise errors.refuse(
      where,
      "'messages' does not end with an assistant's answer to something",
      "end the conversation with a message of role 'assistant'",
    )
  return _imitate(row, turns[:-1], turns[-1:], where)


def _text(row: dict[str, Any], where: str) -> PreferenceRecord:
  return _imitate(row, '', _read(conversations.text, row, 'text', where), where)


def _imitate(
  row: dict[str, Any], prompt: Any, answer: Any, where: str
) -> PreferenceRecord:
  comparison = Comparison(0, 0, _weight(row, where))
  return PreferenceRecord(prompt, (answer,), (comparison,), where=where)


_OF_MESSAGES = ('messages', *(f for f in FORMATS if f.startswith('chat_')))
_PROMPT = {False: conversations.text, True: conversations.messages}
_ANSWER = {False: conversations.text, True: conversations.answer}
_PARSERS = {
  'pairs': _pairs,
  'chat_pairs': _chat_pairs,
  'dialogue_pairs': _dialogue_pairs,
  'token_ids': _token_ids,
  'ranked': _ranked,
  'chat_ranked': functools.partial(_ranked, chat=True),
  'unpaired': _unpaired,
  'chat_unpaired': functools.partial(_unpaired, chat=True),
  'demonstrations': _demonstration,
  'chat_demonstrations': functools.partial(_demonstration, chat=True),
  'messages': _messages,
  'text': _text,
}


def _read(read: Callable, row: dict[str, Any], key: str, where: str) -> Any:
  """The value of a column that must be there, checked by `read`."""
  return read(_get(row, key, where), key, where)


def _get(row: dict[str, Any], key: str, where: str) -> Any:
  value = row.get(key)
  if value is not None:
    return value
  if key in row:
    raise errors.refuse(
      where, f'{key!r} is null', f'give {key!r} a value, or drop the row'
    )
  raise errors.refuse(where, *_missing(key, _misspelt(key, row, 0.6)))


def _refuse(row: dict[str, Any], key: str, kind: str, where: str) -> None:
  if key in row:
    raise errors.refuse(
      where, f'{key!r} has no meaning in {kind} rows', f'remove {key!r}'
    )


def _weight(row: dict[str, Any], where: str) -> float:
  if 'weight' not in row:
    return 1.0
  weight = _number(row['weight'], 'weight', where)
  if weight < 0:
    raise errors.refuse(
      where, f"'weight' is negative: {weight}", 'give a weight of 0 or more'
    )
  return weight


def _number(value: Any, key: str, where: str) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise errors.wrong_type(key, value, 'a number', where)
  if not -MAX_NUMBER <= value <= MAX_NUMBER:  # also where it is NaN
    raise errors.refuse(
      where,
      f'{key!r} is {errors.show(value)}, not a finite number',
      f'give a finite number within {MAX_NUMBER:g}, or drop the row',
    )
  return float(value)


def _each(
  read: Callable, row: dict[str, Any], key: str, where: str
) -> tuple[Any, ...]:
  """The elements of a list that must not be empty, each checked by `read`."""
  value = _get(row, key, where)
  if not isinstance(value, list) or not value:
    raise errors.wrong_type(key, value, 'a list that is not empty', where)
  return tuple(read(v, f'{key}[{i}]', where) for i, v in enumerate(value))


def _ids(value: Any, key: str, where: str) -> tuple[int, ...]:
  if not isinstance(value, list):
    raise errors.wrong_type(key, value, 'a list of token ids', where)
  for i, token in enumerate(value):
    if type(token) is not int or not 0 <= token <= _MAX_TOKEN:
      raise errors.wrong_type(f'{key}[{i}]', token, 'an int from 0', where)
  return tuple(value)
