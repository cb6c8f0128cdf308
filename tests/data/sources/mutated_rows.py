"""Mutated rows of chats: a record, a dropped record or one line of refusal.

  PYTHONPATH=. python tests/data/sources/mutated_rows.py [NUM] [SEED]

Every mutated row is written as JSON, read, rendered by a chat template and
encoded, in this process. It gives a record or one line of refusal. The script
prints how many of each there were, and the rows that did anything else or took
more than five seconds.
"""

import copy
import json
import math
import random
import sys
import time
import traceback
from typing import Any

from dpo_jax.data.sources import jsonl, records
from dpo_jax.data.text import encode, tokenizer
from dpo_jax.types import InputError

# Writes whatever a message and its tools hold.
TEMPLATE = (
  "{%- if tools %}{{- '<tools>' }}{%- for t in tools %}{{- t | tojson }}"
  '{%- endfor %}{%- endif %}{%- for m in messages %}'
  "{{- '<' + m.role + '>' }}{%- if m.content %}{{- m.content }}{%- endif %}"
  '{%- for c in m.tool_calls or [] %}{{- c | tojson }}{%- endfor %}'
  '{{- eos_token }}{%- endfor %}'
  "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)

_SYSTEM = {'role': 'system', 'content': 'Be brief.'}
_USER = {'role': 'user', 'content': 'Which day is it, é?'}
_YES = {'role': 'assistant', 'content': 'Monday.'}
_NO = {'role': 'assistant', 'content': 'Never.'}
_CALL = {
  'role': 'assistant',
  'content': None,
  'tool_calls': [
    {'type': 'function', 'function': {'name': 'day', 'arguments': {'at': 1.5}}}
  ],
}
_RESULT = {'role': 'tool', 'name': 'day', 'content': '{"day": "Monday"}'}
_TOOLS = [
  {
    'type': 'function',
    'function': {'name': 'day', 'parameters': {'properties': {'at': {}}}},
  }
]
_HUMAN = {'from': 'human', 'value': 'Which day?'}
_GPT = {'from': 'gpt', 'value': 'Monday.'}

SEEDS: tuple[dict[str, Any], ...] = (
  {'prompt': [_SYSTEM, _USER], 'chosen': [_YES], 'rejected': [_NO]},
  {'chosen': [_USER, _YES, _USER, _YES], 'rejected': [_USER, _YES, _USER, _NO]},
  {
    'prompt': [_USER, _CALL, _RESULT],
    'chosen': [_YES],
    'rejected': [_CALL],
    'tools': _TOOLS,
    'margin': 1.0,
    'weight': 0.5,
  },
  {'prompt': [_USER], 'completions': [[_YES], [_NO], [_CALL]],
   'scores': [2, 1, 0]},
  {'prompt': [_USER], 'completion': [_YES, _USER, _NO], 'label': True},
  {'messages': [_SYSTEM, _USER, _CALL, _RESULT, _YES], 'tools': _TOOLS},
  {'messages': [_USER, _YES], 'rejected_response': 'Never.'},
  {'messages': [_USER, _YES], 'rejected_messages': [_USER, _NO]},
  {'messages': [_USER, _YES], 'label': False, 'system': 'Be brief.'},
  {'conversations': [_HUMAN, _GPT], 'system': 'Be brief.', 'id': 7},
  {'conversations': [_HUMAN], 'chosen': _GPT, 'rejected': {**_GPT}},
  {
    'prompt': json.dumps([_USER]),
    'chosen': json.dumps([_YES]),
    'rejected': json.dumps([_NO]),
    'tools': json.dumps(_TOOLS),
    'score_chosen': 1,
    'score_rejected': 0,
  },
  {'prompt': 'Which day?', 'chosen': _YES, 'rejected': _NO, 'images': []},
)  # fmt: skip
_KEYS = (
  'prompt', 'chosen', 'rejected', 'completion', 'completions', 'messages',
  'conversations', 'label', 'scores', 'tools', 'system', 'images', 'weight',
  'margin', 'role', 'content', 'from', 'value', 'tool_calls', 'function',
  'arguments', 'reasoning_content', 'rejected_response', 'x', '', '\ud800',
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
  None, True, False, 0, 1, -1, 10**30, 1.5, float('nan'), float('inf'), '',
  ' ', 'x', '\ud83d', 'a\udc00b', '\x00', '\u2028', '[', '{}', '[]', 'null',
  '[{"role": "user"', "[{'role': 'user', 'content': 'x'}]", '<|im_end|>',
  'assistant', 'user', 'tool', 'function_call', [], {}, [[]], [{}], [None],
  ['x'], {'': None}, {'role': 'user'}, {'role': 'user', 'content': 'x'},
  {'from': 'gpt', 'value': None}, {'from': 3, 'value': 'x'}, '</s>', '<s>',
)  # fmt: skip


def mutate(row: Any, random_: random.Random) -> Any:
  """Returns a copy of a row with one to three changes at any depth."""
  row = copy.deepcopy(row)
  for _ in range(random_.choice((1, 1, 2, 3))):
    holders = list(_holders(row))
    holder = random_.choice(holders)
    _change(holder, random_)
  return row


def _holders(value: Any) -> Any:
  """Yields the lists and objects of a row, itself first."""
  if isinstance(value, dict | list):
    yield value
    for item in value.values() if isinstance(value, dict) else value:
      yield from _holders(item)


def _change(holder: Any, random_: random.Random) -> None:
  """Changes one entry of a list or an object."""
  keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
  kind = random_.randrange(8)
  if not keys or kind == 0:  # one more entry
    if isinstance(holder, dict):
      holder[random_.choice(_KEYS)] = _value(random_)
    else:
      holder.insert(random_.randint(0, len(holder)), _value(random_))
    return
  key = random_.choice(keys)
  if kind == 1:
    del holder[key]
  elif kind == 2 and isinstance(holder, dict):
    holder[random_.choice(_KEYS)] = holder.pop(key)
  elif kind == 3:  # as JSON text
    holder[key] = json.dumps(holder[key])
  elif kind == 4:  # deeper
    for _ in range(random_.choice((1, 2, 70, 300))):
      holder[key] = random_.choice(([holder[key]], {'a': holder[key]}))
  elif kind == 5 and isinstance(holder[key], str):
    text, at = holder[key], random_.randint(0, len(holder[key]))
    added = random_.choice(
      ('\ud800', '\x00', '</s>', '\n', 'é', '"', '{{ x }}')
    )
    holder[key] = text[:at] + added + text[at:]
  else:
    holder[key] = _value(random_)


def _value(random_: random.Random) -> Any:
  value = random_.choice((*_VALUES, _YES, _USER, _CALL, _TOOLS))
  return copy.deepcopy(value)


def outcome(row: dict[str, Any], bytes_: tokenizer.Tokenizer, sft: bool) -> str:
  """Reads and encodes one row: 'kept', 'dropped' or 'refused'.

  Raises:
    AssertionError: the refusal is not one line.
  """
  try:
    line = json.dumps(row).encode()
    parsed = jsonl.parse_line(line, 'f.jsonl:1')
    record = records.parse_row(parsed, where='f.jsonl:1')
    options = encode.EncodeOptions(
      512,
      chat_template=TEMPLATE,
      stage='sft' if sft else 'dpo',
      truncation='keep_prompt_end',
    )
    kept, _ = encode.encode_all([record], bytes_, options)
    result = 'kept' if kept else 'dropped'
  except InputError as error:
    message = str(error)
    assert message.startswith('f.jsonl:1: ') and '; fix: ' in message, message
    assert message.isprintable(), message
    result = 'refused'
  return result


def run(
  count: int, seed: int = 0, seconds: float = math.inf
) -> tuple[dict[str, int], list[str]]:
  """Returns how many rows had each outcome, and the failures as text.

  Args:
    count: rows.
    seed: of the mutations.
    seconds: what a row may take.
  """
  random_ = random.Random(seed)
  bytes_ = tokenizer.load('byte')
  counts = dict.fromkeys(('kept', 'dropped', 'refused'), 0)
  failures = []
  for i in range(count):
    row = mutate(SEEDS[i % len(SEEDS)], random_)
    start = time.monotonic()
    try:
      counts[outcome(row, bytes_, sft=random_.random() < 0.3)] += 1
      assert time.monotonic() - start < seconds, 'too slow'
    except Exception:
      # The end of the traceback says where; the row can be run again.
      failures.append(f'{traceback.format_exc()[-1500:]}\n{str(row)[:500]}')
  return counts, failures


if __name__ == '__main__':
  num = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
  done, failed = run(num, int(sys.argv[2]) if len(sys.argv) > 2 else 0, 5)
  print('\n\n'.join(failed[:10]))
  print(f'{num} mutations: {done}, {len(failed)} failures')
  sys.exit(bool(failed))
