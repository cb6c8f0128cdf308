"""row -> record: the table of row formats, and a parser for each.

Comes in: a columns.Row. Goes out: a types.PreferenceRecord. Touches no disk
and does not decide which format a row has: see records.py.

To add a row format, write its parser here and give it an entry in FORMATS.
Detection, refusals, the choices of config.data.row_format and the columns that
are decoded from Parquet files follow from the entry.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.sources import columns, conversations
from dpo_jax.data.sources.columns import Row
from dpo_jax.types import Comparison, PreferenceRecord

# Optional columns of every format. A misspelt one is refused: unnoticed, it
# would change how much a record counts.
OPTIONAL = ('weight', 'margin')
_LEAST_WEIGHT = 1e-30  # above 0

# Optional columns of pairs. The first two names that a row has are read.
SCORES = (
  ('score_chosen', 'score_rejected'),
  ('reward_chosen', 'reward_rejected'),
)
# Optional column of every format with scores: those of the reference's answers.
REFERENCE_SCORES = 'reference_scores'


class Form(NamedTuple):
  """A format with one kind of text in its columns: strings, messages, ids."""

  name: str  # a value of config.data.row_format
  words: str  # what the columns hold, for messages
  parse: Callable[[Row], PreferenceRecord]
  is_chat: bool = False  # holds messages, and so may have a column `tools`


class Format(NamedTuple):
  """A set of columns, with the forms of text that they may hold."""

  shape: str  # the columns as a refusal lists them; '' = not listed
  required: tuple[str, ...]  # columns that every row has
  signs: tuple[str, ...]  # a row with any of these is meant to have the format
  forms: tuple[Form, ...]
  # The index in `forms` of a row that has the required columns.
  choose: Callable[[Row], int] = lambda row: 0
  also: str = ''  # a column that must be there beside a sign, perhaps misspelt
  optional: tuple[str, ...] = ()  # further columns that the parser reads


def _pairs(row: Row) -> PreferenceRecord:
  """A prompt and two answers as strings."""
  return _pair_record(row, *map(row.text, ('prompt', 'chosen', 'rejected')))


def _chat_pairs(row: Row) -> PreferenceRecord:
  """Two answers as messages, with the prompt or after it."""
  chosen, rejected = map(row.messages, ('chosen', 'rejected'))
  if 'prompt' in row:
    prompt = row.columns['prompt']
    parts = conversations.split(prompt, chosen, rejected, row.where)
  else:
    parts = conversations.split_shared(chosen, rejected, row.where)
  return _pair_record(row, *parts)


def _dialogue_pairs(row: Row) -> PreferenceRecord:
  """Two Human/Assistant dialogues that begin alike."""
  sides = map(row.text, ('chosen', 'rejected'))
  return _pair_record(row, *conversations.split_dialogue(*sides, row.where))


def _pairs_form(row: Row) -> int:
  """Which form of pairs the values have: pairs, chat_pairs, dialogue_pairs."""
  sides = row.columns['chosen'], row.columns['rejected']
  if any(isinstance(v, list) for v in (*sides, row.columns.get('prompt'))):
    _refuse_list_of_texts(row)
    return 1
  if 'prompt' in row:
    return 0
  misspelt = columns.misspelt('prompt', row.columns, row.known, 0.6)
  if not misspelt and all(map(conversations.is_dialogue, sides)):
    return 2
  if 'prompt' in row.columns:
    row.get('prompt')  # refuses the null
  problem, fix = columns.missing('prompt', row.columns, row.known)
  if not misspelt:
    problem += ' and the sides are neither messages nor Human/Assistant text'
  raise row.refuse(problem, fix)


def _refuse_list_of_texts(row: Row) -> None:
  """Refuses a side that is a list beside one that is a text."""
  for key, other in (('chosen', 'rejected'), ('rejected', 'chosen')):
    value = row.columns[key]
    if not isinstance(value, list) or not isinstance(row.columns[other], str):
      continue
    if any(isinstance(item, dict) for item in value):
      continue  # messages: the other side should be too
    if value and all(isinstance(item, str) for item in value):
      raise row.refuse(
        f'{key!r} is a list of {len(value)} texts, and {other!r} is one text',
        f'give one {key!r} per row, or all answers as prompt, completions, '
        'scores',
      )
    raise errors.wrong_type(key, value, f'a string, as {other!r} is', row.where)


def _token_ids(row: Row) -> PreferenceRecord:
  """A prompt and two answers as lists of token ids."""
  names = ('prompt_ids', 'chosen_ids', 'rejected_ids')
  prompt, *sides = (row.read(name, columns.token_ids) for name in names)
  if not prompt:
    raise row.refuse(
      "'prompt_ids' is empty",
      'give at least one id (BOS): the last one predicts the first answer',
    )
  return _pair_record(row, prompt, *sides)


def _pair_record(
  row: Row, prompt: Any, chosen: Any, rejected: Any
) -> PreferenceRecord:
  scores = None
  for names in SCORES:
    if names[0] in row or names[1] in row:
      scores = tuple(map(row.number, names))
      break
  margin = scores[0] - scores[1] if scores else 0.0
  if 'margin' in row:
    margin = row.number('margin')
  comparison = Comparison(0, 1, _weight(row), margin)
  return PreferenceRecord(
    prompt,
    (chosen, rejected),
    (comparison,),
    scores=scores,
    where=row.where,
    quantiles=_quantiles(row, scores, ' and '.join(SCORES[0])),
  )


def _ranked(row: Row, chat: bool = False) -> PreferenceRecord:
  """K answers with scores; a comparison for each pair of different scores."""
  prompt = row.read('prompt', _PROMPT[chat])
  answers = row.each('completions', _ANSWER[chat])
  scores = row.each('scores', columns.number)
  if len(scores) != len(answers):
    raise row.refuse(
      f"{len(answers)} 'completions' and {len(scores)} 'scores'",
      'give one score per completion',
    )
  _refuse_column(row, 'margin', 'ranked')
  weight = _weight(row)
  # Equal scores give no comparison.
  comparisons = tuple(
    Comparison(i, j, weight, scores[i] - scores[j])
    for i in range(len(scores))
    for j in range(len(scores))
    if scores[i] > scores[j]
  )
  return PreferenceRecord(
    prompt,
    answers,
    comparisons,
    scores=scores,
    where=row.where,
    quantiles=_quantiles(row, scores, 'scores'),
  )


def _unpaired(row: Row, chat: bool = False) -> PreferenceRecord:
  """One answer, labelled desirable or not."""
  record = _demonstration(row, chat)
  label = row.get('label')
  # Files from other tools have 0 and 1 for false and true.
  if not isinstance(label, bool) and label not in (0, 1):
    raise errors.wrong_type('label', label, 'true or false', row.where)
  _refuse_column(row, 'weight', 'unpaired')
  # A score alone is provenance.
  has_both = REFERENCE_SCORES in row and 'score' in row
  score = (row.number('score'),) if has_both else None
  return record._replace(
    comparisons=(),
    labels=(bool(label),),
    quantiles=_quantiles(row, score, 'score'),
  )


def _demonstration(row: Row, chat: bool = False) -> PreferenceRecord:
  """One answer to imitate."""
  prompt = row.read('prompt', _PROMPT[chat])
  return _imitate(row, prompt, row.read('completion', _ANSWER[chat]))


def _messages(row: Row) -> PreferenceRecord:
  """A conversation whose last turn is to be imitated."""
  turns = row.messages('messages')
  if len(turns) < 2 or turns[-1]['role'] != 'assistant':
    raise row.refuse(
      "'messages' does not end with an assistant's answer to something",
      "end the conversation with a message of role 'assistant'",
    )
  return _imitate(row, turns[:-1], turns[-1:])


def _text(row: Row) -> PreferenceRecord:
  """A text to imitate, after an empty prompt."""
  return _imitate(row, '', row.text('text'))


def _imitate(row: Row, prompt: Any, answer: Any) -> PreferenceRecord:
  comparison = Comparison(0, 0, _weight(row))
  return PreferenceRecord(prompt, (answer,), (comparison,), where=row.where)


def _quantiles(
  row: Row, scores: tuple[float, ...] | None, missing: str
) -> tuple[float, ...] | None:
  """For each score, the share of `reference_scores` that are no better.

  Args:
    row: with or without the column.
    scores: of the row's answers; None if it gives none.
    missing: the columns that would give them, for the message.
  """
  if REFERENCE_SCORES not in row:
    return None
  reference = row.each(REFERENCE_SCORES, columns.number)
  if scores is None:
    raise row.refuse(
      f'{REFERENCE_SCORES!r} and no score of the row itself',
      f'give {missing}, or remove {REFERENCE_SCORES!r}',
    )
  return tuple(
    sum(other <= score for other in reference) / len(reference)
    for score in scores
  )


def _weight(row: Row) -> float:
  if 'weight' not in row:
    return 1.0
  weight = row.number('weight')
  if weight < 0:
    raise row.refuse(
      f"'weight' is negative: {weight}", 'give a weight of 0 or more'
    )
  # float32 has numbers from 1e-38; a weight is multiplied by small values too.
  if 0 < weight < _LEAST_WEIGHT:
    raise row.refuse(
      f"'weight' is {weight:g}, which vanishes in float32",
      f'give 0, or at least {_LEAST_WEIGHT:g}',
    )
  return weight


def _refuse_column(row: Row, key: str, name: str) -> None:
  """Refuses a column that has no meaning in the format."""
  if key in row:
    raise row.refuse(
      f'{key!r} has no meaning in {name} rows', f'remove {key!r}'
    )


def _completion_form(row: Row) -> int:
  return _is_chat(row, row.columns['completion'])


def _completions_form(row: Row) -> int:
  answers = row.columns['completions']
  first = answers[0] if isinstance(answers, list) and answers else answers
  return _is_chat(row, first)


def _is_chat(row: Row, answer: Any) -> int:
  """1 if the prompt or the answer is a list of messages, else 0."""
  return int(
    isinstance(answer, list) or isinstance(row.columns['prompt'], list)
  )


def _text_and_chat(
  name: str, text: str, chat: str, parse: Callable[..., PreferenceRecord]
) -> tuple[Form, Form]:
  """The two forms of a format that takes strings or messages."""
  of_chat = functools.partial(parse, chat=True)
  return Form(name, text, parse), Form(f'chat_{name}', chat, of_chat, True)


_PROMPT = {False: conversations.text, True: conversations.messages}
_ANSWER = {False: conversations.text, True: conversations.answer}

# In the order in which they are looked for. A format of a single column comes
# after the others: a row may have `text` or `messages` for provenance.
FORMATS = (
  Format(
    shape='prompt, chosen, rejected',
    required=('chosen', 'rejected'),  # both sides may contain the prompt
    signs=('chosen', 'rejected'),
    forms=(
      Form('pairs', 'prompt, chosen, rejected: strings', _pairs),
      Form(
        'chat_pairs',
        'chosen, rejected: messages; prompt: messages, or in both',
        _chat_pairs,
        is_chat=True,
      ),
      Form(
        'dialogue_pairs',
        'chosen, rejected: whole Human/Assistant texts, no prompt',
        _dialogue_pairs,
      ),
    ),
    choose=_pairs_form,
    optional=('prompt', *sum(SCORES, ()), REFERENCE_SCORES),
  ),
  Format(
    shape='',  # taken only where config.data.use_token_ids asks for it
    required=('prompt_ids', 'chosen_ids', 'rejected_ids'),
    signs=(),
    forms=(
      Form(
        'token_ids',
        'prompt_ids, chosen_ids, rejected_ids: lists of token ids',
        _token_ids,
      ),
    ),
    optional=(*sum(SCORES, ()), REFERENCE_SCORES),
  ),
  Format(
    shape='prompt, completions, scores',
    required=('prompt', 'completions', 'scores'),
    signs=('completions',),
    forms=_text_and_chat(
      'ranked',
      'prompt: string; completions: strings; scores: numbers',
      'prompt, each of completions: messages; scores: numbers',
      _ranked,
    ),
    choose=_completions_form,
    optional=(REFERENCE_SCORES,),
  ),
  Format(
    shape='prompt, completion, label',
    required=('prompt', 'completion', 'label'),
    signs=('completion',),
    also='label',
    forms=_text_and_chat(
      'unpaired',
      'prompt, completion: strings; label: true or false',
      'prompt, completion: messages; label: true or false',
      _unpaired,
    ),
    choose=_completion_form,
    optional=('score', REFERENCE_SCORES),
  ),
  Format(
    shape='prompt, completion',
    required=('prompt', 'completion'),
    signs=('completion',),
    forms=_text_and_chat(
      'demonstrations',
      'prompt, completion: strings (SFT)',
      'prompt, completion: messages (SFT)',
      _demonstration,
    ),
    choose=_completion_form,
  ),
  Format(
    shape='messages',
    required=('messages',),
    signs=('messages',),
    forms=(
      Form(
        'messages',
        'messages: a conversation whose last turn is trained (SFT)',
        _messages,
        is_chat=True,
      ),
    ),
  ),
  Format(
    shape='text',
    required=('text',),
    signs=('text',),
    forms=(Form('text', 'text: string (SFT)', _text),),
  ),
)
