"""row -> prompt: a row of a file of prompts to sample from.

Comes in: a dict as the file holds it. Goes out: a PreferenceRecord with a dummy
answer, which marks where the answer begins. The row may have the shapes of
training data, and an answer, which is left out. Touches no disk.
"""

from collections.abc import Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import conversations, foreign, records
from dpo_jax.types import Comparison, PreferenceRecord


def parse_row(
  row: dict[str, Any], renames: Mapping[str, str], where: str
) -> PreferenceRecord:
  """Reads the prompt of a row.

  Args:
    row: column name -> value; needs no answer.
    renames: as in foreign.renamed; columns that the row lacks are passed over.
    where: `path:line`, for messages.

  Raises:
    InputError: no prompt, or a column that changes it and is not read.
  """
  kept = {old: new for old, new in renames.items() if old in row}
  row = foreign.ours(foreign.renamed(row, kept, where), where, 'messages')
  return records.check_prompt(row, _prompt_record(row, where))


def _prompt_record(row: dict[str, Any], where: str) -> PreferenceRecord:
  """A prompt with a dummy answer, which marks where the answer begins."""
  key = 'prompt' if row.get('prompt') is not None else 'messages'
  if row.get(key) is None:
    raise errors.refuse(
      where, "has neither 'prompt' nor 'messages'", 'give one of them'
    )
  if isinstance(row[key], str):
    prompt, answer = row[key], 'x'
  else:
    prompt = conversations.messages(row[key], key, where)
    answer = ({'role': 'assistant', 'content': 'x'},)
    if key == 'messages' and prompt[-1]['role'] == 'assistant':
      prompt = _before_answer(prompt, where)
  one = (Comparison(0, 0),)
  record = PreferenceRecord(prompt, (answer,), one, where=where)
  if key == 'prompt' and not isinstance(prompt, str):
    continues = conversations.is_unfinished(prompt)
    record = record._replace(continues=continues)
  if row.get('tools') is None or isinstance(prompt, str):
    return record
  return record._replace(tools=conversations.tools(row['tools'], where))


def _before_answer(turns: conversations.Messages, where: str):
  if len(turns) < 2:
    raise errors.refuse(
      where, "'messages' is an answer to nothing", 'give the prompt before it'
    )
  return turns[:-1]
