"""Cases of data files: columns, foreign shapes, nulls and folders.

Each case writes its own file and reads it as a run does: see row_files.py.
"""

import json
from typing import Any

import row_files
from cases.case import Case

U = {'role': 'user', 'content': 'Hi'}
A = {'role': 'assistant', 'content': 'Yes'}
B = {'role': 'assistant', 'content': 'No'}
PAIR = {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}
CHAT = {'prompt': [U], 'chosen': [A], 'rejected': [B]}
TOOLS = [
  {'type': 'function', 'function': {'name': 'day', 'parameters': {'x': 'int'}}},
  {'type': 'function', 'function': {'name': 'map', 'parameters': {'y': 'str'}}},
]
PAIR_WORDS = 'Hi > Yes | No'


def _call(name: str, **arguments: Any) -> list[dict]:
  """An answer that only calls a tool."""
  function = {'name': name, 'arguments': arguments}
  calls = [{'type': 'function', 'function': function}]
  return [{'role': 'assistant', 'content': '', 'tool_calls': calls}]


CALLS = [
  {'prompt': [U], 'chosen': _call('a', x='1'), 'rejected': _call('b', y='2')},
  {'prompt': [U], 'chosen': _call('b', y='3'), 'rejected': _call('a', x='4')},
]


WITH_TOOLS = [CHAT | {'tools': TOOLS}]
TOOLS_WORDS = f'{PAIR_WORDS} + {json.dumps(TOOLS)}'
CALL_WORDS = 'Hi > {"x": "1"} | {"y": "2"}; Hi > {"y": "3"} | {"x": "4"}'
SCORED = PAIR | {'score_chosen': 2.0, 'score_rejected': 1.0}
UNSCORED = PAIR | {'score_chosen': None, 'score_rejected': None}
HUMAN = {'from': 'human', 'value': 'Hi'}
GPT = {'from': 'gpt', 'value': 'Yes'}
GPT_BAD = {'from': 'gpt', 'value': 'No'}
SYSTEM = 'Be brief.'

CASES = [
  *(
    row_files.case(
      'tools in every format', f'tools in .{kind}', TOOLS_WORDS, rows, kind
    )
    for kind, rows in (
      ('jsonl', WITH_TOOLS),
      ('parquet', WITH_TOOLS),
      ('arrow', WITH_TOOLS),
      ('saved', WITH_TOOLS),
    )
  ),
  row_files.case(
    'tools in every format',
    'JSON text of tools in .parquet',
    TOOLS_WORDS,
    [CHAT | {'tools': json.dumps(TOOLS)}],
    'parquet',
  ),
  row_files.case(
    'tools in every format',
    'a list of JSON texts, one per tool',
    TOOLS_WORDS,
    [CHAT | {'tools': list(map(json.dumps, TOOLS))}],
    'parquet',
  ),
  *(
    row_files.case(
      'nulls that Arrow adds', f'calls in .{kind}', CALL_WORDS, CALLS, kind
    )
    for kind in ('jsonl', 'parquet', 'arrow', 'saved')
  ),
  row_files.case(
    'nulls that Arrow adds',
    'arguments of calls in the prompt',
    'Hi / {"x": "1"} / day > Yes | No; Hi / {"y": "2"} / map > Yes | No',
    [
      CHAT | {'prompt': [U, *call, {'role': 'tool', 'content': word}]}
      for call, word in ((_call('a', x='1'), 'day'), (_call('b', y='2'), 'map'))
    ],
    'parquet',
  ),
  *(
    row_files.case(
      'messages as JSON text',
      f'.{kind}',
      PAIR_WORDS,
      row_files.as_text([CHAT]),
      kind,
    )
    for kind in ('jsonl', 'parquet')
  ),
  row_files.case(
    'messages as JSON text',
    'column messages',
    'Hi > Yes',
    row_files.as_text([{'messages': [U, A]}]),
  ),
  row_files.case(
    'messages as JSON text',
    'column completion, with a label',
    'Hi > Yes (false)',
    row_files.as_text([{'prompt': [U], 'completion': [A], 'label': False}]),
  ),
  row_files.case(
    'messages as JSON text',
    'column completions, one text',
    PAIR_WORDS,
    row_files.as_text([{'prompt': [U], 'completions': [[A], [B]]}])[0]
    | {'scores': [1, 0]},
  ),
  row_files.case(
    'messages as JSON text',
    'tool_calls of a message',
    'Hi > {"x": "1"} | No',
    CHAT
    | {
      'chosen': [
        {**m, 'tool_calls': json.dumps(m['tool_calls'])}
        for m in _call('a', x='1')
      ]
    },
  ),
  row_files.case(
    'messages as JSON text',
    'as Python prints them',
    "1: 'prompt' is a text that begins as messages do and is not JSON of "
    "them: \"[{'role': 'user', 'content': 'Hi'}]\"",
    {'prompt': str([U]), 'chosen': str([A]), 'rejected': str([B])},
  ),
  row_files.case(
    'null in an optional column',
    'margin and weight',
    'p > c | r; p > c | r',
    [
      PAIR | {'margin': None, 'weight': None},
      PAIR | {'margin': 1, 'weight': 1},
    ],
  ),
  row_files.case(
    'null in an optional column',
    'scores in .parquet',
    'p > c | r; p > c | r',
    [SCORED, UNSCORED],
    'parquet',
  ),
  row_files.case(
    'null in an optional column',
    'a prompt beside whole conversations',
    PAIR_WORDS,
    {'prompt': None, 'chosen': [U, A], 'rejected': [U, B]},
    'parquet',
  ),
  row_files.case(
    'null in an optional column',
    'scores, with a loss that reads them',
    "2: 'scores' is not given (in 1 of 2 rows), and a chosen loss reads it",
    [SCORED, UNSCORED],
    'parquet',
    needs=('scores',),
  ),
  row_files.case(
    'null in an optional column',
    'margin absent from a row, with a loss that reads it',
    "2: 'margin' is not given (in 1 of 2 rows), and a chosen loss reads it",
    [PAIR | {'margin': 1}, PAIR],
    needs=('margin',),
  ),
  row_files.case(
    'columns that contradict the format',
    'messages with rejected_response',
    PAIR_WORDS,
    {'messages': [U, A], 'rejected_response': 'No'},
  ),
  row_files.case(
    'columns that contradict the format',
    'messages with rejected_messages',
    PAIR_WORDS,
    {'messages': [U, A], 'rejected_messages': [U, B]},
  ),
  row_files.case(
    'columns that contradict the format',
    'messages with a rejected answer as messages',
    PAIR_WORDS,
    {'messages': [U, A], 'rejected_messages': [B]},
  ),
  row_files.case(
    'columns that contradict the format',
    'messages with label',
    'Hi > Yes (false)',
    {'messages': [U, A], 'label': False},
  ),
  row_files.case(
    'columns that contradict the format',
    'messages with a label that is no judgement',
    "1: 'label' beside 'messages' is 'maths', not true or false",
    {'messages': [U, A], 'label': 'maths'},
  ),
  row_files.case(
    'columns that contradict the format',
    'completion with kto_tag',
    "1: column 'kto_tag' says which answer is preferred and is not read: True",
    {'prompt': 'p', 'completion': 'c', 'kto_tag': True},
  ),
  row_files.case(
    'columns that contradict the format',
    'completion with rejected_completion',
    "1: column 'rejected_completion' says which answer is preferred and is "
    "not read: 'r'",
    {'prompt': 'p', 'completion': 'c', 'rejected_completion': 'r'},
  ),
  row_files.case(
    'columns that change the prompt',
    'system beside texts',
    "1: column 'system' changes the prompt and is not read: 'Be brief.'",
    PAIR | {'system': SYSTEM},
  ),
  row_files.case(
    'columns that change the prompt',
    'system beside messages',
    f'{SYSTEM} / {PAIR_WORDS}',
    CHAT | {'system': SYSTEM},
  ),
  row_files.case(
    'columns that change the prompt',
    'system that the prompt holds already',
    f"{SYSTEM} p > c | r; columns that are not read: 'system'",
    PAIR | {'prompt': f'{SYSTEM} p', 'system': SYSTEM},
  ),
  row_files.case(
    'columns that change the prompt',
    'images in .parquet',
    "1: column 'images' is not read, and models here read text only: "
    "[{'bytes': b'x'}]",
    [CHAT | {'images': [{'bytes': b'x'}]}],
    'parquet',
  ),
  row_files.case(
    'columns that change the prompt',
    'no images in this row',
    f"{PAIR_WORDS}; columns that are not read: 'images'",
    CHAT | {'images': []},
  ),
  row_files.case(
    'columns that change the prompt',
    'documents',
    "1: column 'documents' changes the prompt and is not read: [{'text': 'd'}]",
    CHAT | {'documents': [{'text': 'd'}]},
  ),
  row_files.case(
    'columns that change the prompt',
    'history',
    "1: column 'history' changes the prompt and is not read: [['a', 'b']]",
    PAIR | {'history': [['a', 'b']]},
  ),
  row_files.case(
    'columns that change the prompt',
    'one that is left out by data.columns',
    'p > c | r',
    PAIR | {'history': [['a', 'b']]},
    columns='-history',
  ),
  row_files.case(
    'columns of provenance',
    'named once',
    "p > c | r; p > c | r; columns that are not read: 'id', 'source'",
    [PAIR | {'id': 1, 'source': 's'}, PAIR | {'id': 2, 'source': 's'}],
  ),
  row_files.case(
    'foreign shapes',
    'preferred_output, with the line that maps it',
    PAIR_WORDS,
    {
      'input': {'messages': [U]},
      'preferred_output': [A],
      'non_preferred_output': [B],
    },
    columns='prompt=input,chosen=preferred_output,'
    'rejected=non_preferred_output',
  ),
  row_files.case(
    'foreign shapes',
    'conversations with from and value',
    'Hi > Yes',
    {'conversations': [HUMAN, GPT]},
  ),
  row_files.case(
    'foreign shapes',
    'conversations with chosen and rejected, each one message',
    PAIR_WORDS,
    {'conversations': [HUMAN], 'chosen': GPT, 'rejected': GPT_BAD},
  ),
  row_files.case(
    'foreign shapes',
    'chosen and rejected as one message each',
    PAIR_WORDS,
    {'prompt': 'Hi', 'chosen': A, 'rejected': B},
  ),
  row_files.case(
    'a list under one side',
    'rejected',
    "1: 'rejected' is a list of 2 texts, and 'chosen' is one text",
    PAIR | {'rejected': ['r', 's']},
  ),
  row_files.case(
    'a list under one side',
    'chosen',
    "1: 'chosen' is a list of 1 texts, and 'rejected' is one text",
    PAIR | {'chosen': ['c']},
  ),
  row_files.case(
    'a list under one side',
    'an empty rejected',
    "1: 'rejected' is an empty list, not a string, as 'chosen' is",
    PAIR | {'rejected': []},
  ),
  row_files.case(
    'a folder as data', 'save_to_disk', 'p > c | r', PAIR, 'saved'
  ),
  row_files.case(
    'a folder as data', 'an Arrow file', 'p > c | r', PAIR, 'arrow'
  ),
]


CASES += [
  Case(
    'a folder as data',
    'without a data file',
    'F:0: a folder, not a file; fix: name one file in it',
    row_files.as_folder('README.md', 'dataset_info.json'),
  ),
  Case(
    'a folder as data',
    'with splits that save_to_disk wrote',
    "F:0: a folder, not a file; fix: name one file in it, such as 'F/test'",
    row_files.as_folder(
      'dataset_dict.json', 'train/state.json', 'test/state.json'
    ),
  ),
]


CASES += [
  Case('foreign shapes', f'columns {", ".join(row)}', line, ours)
  for row, line in (
    (
      {'question': 'q', 'response_j': 'a', 'response_k': 'b'},
      'set config.data.columns=prompt=question,chosen=response_j,'
      'rejected=response_k',
    ),
    (
      {'question': 'q', 'chosen': 'a', 'rejected': 'b'},
      'set config.data.columns=prompt=question',
    ),
    (
      {'query': 'q', 'response': 'a', 'rejected_response': 'b'},
      'set config.data.columns=prompt=query,chosen=response,'
      'rejected=rejected_response',
    ),
    (
      {'instruction': 'q', 'input': '', 'output': 'a'},
      'set config.data.columns=prompt=instruction,completion=output',
    ),
    (
      {'instruction': 'q', 'output': 'a', 'kto_tag': True},
      'set config.data.columns=prompt=instruction,completion=output,'
      'label=kto_tag',
    ),
    (
      {'input': 'q', 'preferred_output': 'a', 'non_preferred_output': 'b'},
      'set config.data.columns=prompt=input,chosen=preferred_output,'
      'rejected=non_preferred_output',
    ),
  )
  for ours in (row_files.refused_with(row, line),)
]
