"""row -> record: which format a row has, and the record that it becomes.

Comes in: a dict (a JSON object, a Parquet row, a TFDS example) and where it
was found. Goes out: a PreferenceRecord, or a types.InputError of one line that
names the key, what is wrong and the fix. Touches no disk, encodes no text and
drops nothing: an empty completion or two equal sides are records, and encoding
counts them.

The columns of every format are in formats.FORMATS. Optional columns:
  weight  finite, >= 0, default 1: the comparison's weight in the batch's mean.
          Refused in unpaired rows
  margin  finite: how much better the chosen side is; pairs only. Without it,
          the difference of the scores, or 0 without scores. Ranked rows have
          score differences and refuse it
  score_chosen, score_rejected (or reward_chosen, reward_rejected)  pairs only
  reference_scores  numbers: scores of the reference's own answers to the
          prompt. The row's answers need scores: `score` in unpaired rows
  tools   a list of function schemas, or its JSON text, for the chat template;
          rows of messages only
A null in an optional column counts as absent. Shapes of other trainers become
ours first (foreign.py). A column that changes the prompt and that the format
does not read is refused (unread.py). Any other one is provenance.
"""

import functools
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import (
  columns,
  conversations,
  foreign,
  formats,
  unread,
)
from dpo_jax.data.sources.columns import Row
from dpo_jax.data.sources.formats import Format
from dpo_jax.types import InputError, PreferenceRecord

_FORMS = {form.name: form for f in formats.FORMATS for form in f.forms}
FORMATS = {form.name: form.words for form in _FORMS.values()}

_REQUIRED = frozenset(key for f in formats.FORMATS for key in f.required)
# What each form reads: every stage that follows takes no other column.
_READ = {
  form.name: frozenset(
    (*f.required, *f.optional, *formats.OPTIONAL)
    + (('tools',) if form.is_chat else ())
  )
  for f in formats.FORMATS
  for form in f.forms
}


def is_known(name: str) -> bool:
  """Whether a column is read by any format, becomes one, or may be refused.

  These are the columns worth decoding from a Parquet file.
  """
  return (
    any(name in read for read in _READ.values())
    or name in foreign.COLUMNS
    or bool(unread.kind_of(name))
  )


def names_unread(row: dict[str, Any], row_format: str, where: str) -> list[str]:
  """Returns the columns of a row that its format does not read."""
  row = foreign.ours(row, where, row_format)
  read = _READ[row_format]
  if row.get(formats.REFERENCE_SCORES) is None:
    read -= {'score'}  # read together, or not at all
  is_chat = _FORMS[row_format].is_chat
  return [
    key
    for key in row
    # A chat takes its system message from such a column.
    if key not in read and not (is_chat and unread.kind_of(key) == 'system')
  ]


def check_prompt(
  row: dict[str, Any], record: PreferenceRecord
) -> PreferenceRecord:
  """Returns the record of a prompt as `parse_row` does that of a row.

  Args:
    row: column name -> value, from foreign.ours; needs no answer.
    record: the prompt, with any answer.

  Raises:
    InputError: a column that changes the prompt is not read.
  """
  # The dummy answer holds no text of a column.
  bare = record._replace(completions=())
  checked = unread.check(row, frozenset().union(*_READ.values()), bare)
  return checked._replace(completions=record.completions)


def lacks(row: dict[str, Any], need: str) -> tuple[bool, bool]:
  """Returns whether a row lacks what a loss needs, and whether by a null.

  Args:
    row: column name -> value.
    need: 'margin', 'scores' or 'reference_scores'.
  """
  if need == formats.REFERENCE_SCORES:
    return row.get(need) is None, need in row and row[need] is None
  scored = (*formats.SCORES, ('scores',))
  if any(all(row.get(k) is not None for k in names) for names in scored):
    return False, False
  keys = sum(scored, ())
  if need == 'margin':
    if row.get('margin') is not None:
      return False, False
    keys += ('margin',)
  return True, any(key in row and row[key] is None for key in keys)


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
    The record. A demonstration has the comparison Comparison(0, 0).

  Raises:
    InputError: one line, naming the key.
    KeyError: row_format is not in FORMATS.
  """
  row = foreign.ours(row, where, row_format)
  if row_format == 'auto':
    row_format = _detect(row, where, use_token_ids)
  form = _FORMS[row_format]
  record = form.parse(Row(row, where, _REQUIRED))
  # Every turn of a whole conversation is finished; a prompt may stop in one.
  if form.is_chat and form.name != 'messages' and row.get('prompt') is not None:
    continues = conversations.is_unfinished(record.prompt)
    record = record._replace(continues=continues)
  if row.get('tools') is not None:
    record = record._replace(tools=_tools(row['tools'], form, where))
  return unread.check(row, _READ[row_format], record)


def _tools(value: Any, form: formats.Form, where: str) -> tuple | None:
  """The function schemas of a row."""
  try:
    return conversations.tools(value, where)
  except InputError:
    if form.is_chat:
      raise
  # Strings are rendered as a chat by data.use_chat_template=always alone: what
  # is no list of schemas is provenance of theirs.
  return None


def detect_format(
  row: dict[str, Any], where: str, *, use_token_ids: bool = False
) -> str:
  """Returns the key of FORMATS that fits a row.

  Raises:
    InputError: no format fits; names the key.
  """
  return _detect(foreign.ours(row, where), where, use_token_ids)


def _detect(row: dict[str, Any], where: str, use_token_ids: bool) -> str:
  matched, problem = _match(tuple(row), use_token_ids)
  if problem:
    raise errors.refuse(where, *problem)
  index = matched.choose(Row(row, where, _REQUIRED))
  return matched.forms[index].name


# Rows of one file have the same columns: each set is looked at once.
@functools.lru_cache(maxsize=256)
def _match(
  keys: tuple[str, ...], use_token_ids: bool
) -> tuple[Format | None, tuple[str, str] | None]:
  """The format with these columns, and (problem, fix) if they do not fit it."""
  if use_token_ids:
    matched = _by_name('token_ids')
  else:
    matched, problem = _by_signs(keys)
    if problem:
      return None, problem
  for name in matched.required:
    if name not in keys:
      return matched, columns.missing(name, keys, _REQUIRED)
  for name in formats.OPTIONAL:
    key = columns.misspelt(name, keys, _REQUIRED)
    # The first letter must agree: columns of provenance may resemble a name.
    if name not in keys and key and key[0].lower() == name[0]:
      return matched, (
        f'unknown column {key!r}',
        f'{errors.did_you_mean(key, [name])}rename it to {name!r}, or remove '
        'it',
      )
  return matched, None


def _by_name(name: str) -> Format:
  return next(
    f for f in formats.FORMATS if name in (form.name for form in f.forms)
  )


def _by_signs(
  keys: tuple[str, ...],
) -> tuple[Format | None, tuple[str, str] | None]:
  """The first format that the columns are a sign of, or (problem, fix)."""
  several = [f for f in formats.FORMATS if len(f.required) > 1]
  single = [f for f in formats.FORMATS if len(f.required) == 1]
  for candidate in several:
    if _has_signs(candidate, keys):
      return candidate, None
  # Before formats of one column: {'choosen', 'rejcted', 'messages'} are pairs.
  for name in (sign for f in several for sign in f.signs):
    if columns.misspelt(name, keys, _REQUIRED):
      return None, columns.missing(name, keys, _REQUIRED, 0.8)
  for candidate in single:
    if _has_signs(candidate, keys):
      return candidate, None
  return None, _no_format(keys)


def _has_signs(candidate: Format, keys: tuple[str, ...]) -> bool:
  also = candidate.also
  return any(sign in keys for sign in candidate.signs) and (
    not also or also in keys or bool(columns.misspelt(also, keys, _REQUIRED))
  )


def _no_format(keys: tuple[str, ...]) -> tuple[str, str]:
  if 'chosen_ids' in keys or 'rejected_ids' in keys:
    return (
      'the row has token ids and no text',
      'set config.data.use_token_ids=True to train on the ids as they are',
    )
  names = ', '.join(errors.show(k, 30) for k in keys[:8]) or 'none'
  shapes = '; or '.join(f.shape for f in formats.FORMATS if f.shape)
  suggested = foreign.suggestion(keys)
  hint = f'set {foreign.KEY}={suggested}, or ' if suggested else ''
  more = (
    '' if suggested else f' (or rename: {foreign.KEY}=chosen=preferred,...)'
  )
  return f'unknown set of columns ({names})', f'{hint}use {shapes}{more}'
