r"""text -> spans: the model's part of a Human/Assistant text, as in HH.

Comes in: prompt and completion as strings. Goes out: the characters of the
completion that the model writes, and so are trained; or the text as messages.

A dialogue whose two sides part before their last turn leaves turns of the
human in the completions:
  prompt      '\n\nHuman: Hi\n\nAssistant:'
  completion  ' Hello.\n\nHuman: Bye\n\nAssistant: See you.'
A turn of the human is read from '\n\nHuman:' up to the end of the next
'\n\nAssistant:', as a chat template's turn with its generation prompt is.
"""

import re

from dpo_jax.data.sources.conversations import ANSWER_MARK

HUMAN_MARK = '\n\nHuman:'  # begins each turn of the human in HH
_ROLES = {HUMAN_MARK: 'user', ANSWER_MARK: 'assistant'}


def trained(prompt: str, completion: str) -> tuple[tuple[int, int], ...] | None:
  """Returns the characters [start, stop) that the model writes; None = all."""
  is_dialogue = is_whole(prompt) or prompt.rstrip().endswith(ANSWER_MARK)
  if not is_dialogue or HUMAN_MARK not in completion:
    return None
  spans, start = [], 0
  while start >= 0:
    stop = completion.find(HUMAN_MARK, start)
    stop = len(completion) if stop < 0 else stop
    if start < stop:
      spans.append((start, stop))
    mark = completion.find(ANSWER_MARK, stop)
    start = mark + len(ANSWER_MARK) if mark >= 0 else -1
  return tuple(spans)


def is_whole(prompt: str) -> bool:
  """Whether a prompt begins with a turn of the human."""
  return f'\n\n{prompt.lstrip()}'.startswith(HUMAN_MARK)


def messages(text: str, role: str = '') -> tuple[dict[str, str], ...]:
  """Returns the turns of a text as messages, without white space around them.

  Args:
    text: prompt or completion of a dialogue.
    role: who speaks before the first mark; '' if nobody does.
  """
  turns = []
  # A group in the pattern makes re.split return the marks too.
  for part in re.split(f'({HUMAN_MARK}|{ANSWER_MARK})', text):
    if part in _ROLES:
      role = _ROLES[part]
    elif part.strip():
      turns.append({'role': role, 'content': part.strip()})
  return tuple(turns)
