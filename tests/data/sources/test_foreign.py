"""Rows in the shapes of other trainers: what they become, renames, hints.

Expected records follow from the words of each trainer's own documentation of
its format, not from this code.
"""

import json

import pytest

from dpo_jax import types
from dpo_jax.data.sources import foreign, records

U = {'role': 'user', 'content': 'Hi'}
A = {'role': 'assistant', 'content': 'Yes'}
B = {'role': 'assistant', 'content': 'No'}
SYSTEM = {'role': 'system', 'content': 'Be kind'}
CALL = {'name': 'day', 'arguments': {'at': 1}}
TOOL_CALLS = [{'type': 'function', 'function': CALL}]
TOOLS = [{'type': 'function', 'function': {'name': 'day'}}]
ONE = types.Comparison(0, 1)


def _parse(row):
  return records.parse_row(row, where='f:1')


def _refusal(row, **options):
  with pytest.raises(types.InputError) as caught:
    records.parse_row(row, where='f:1', **options)
  message = str(caught.value)
  assert message.startswith('f:1: ') and message.isprintable()
  return message


PAIR = types.PreferenceRecord((U,), ((A,), (B,)), (ONE,), where='f:1')
# Rows of one meaning: Hi > Yes, not No.
SAME = [
  {'prompt': [U], 'chosen': [A], 'rejected': [B]},
  {'prompt': U, 'chosen': A, 'rejected': B},
  {'prompt': 'Hi', 'chosen': A, 'rejected': B},
  {'prompt': json.dumps([U]), 'chosen': [A], 'rejected': json.dumps([B])},
  {'prompt': json.dumps(U), 'chosen': json.dumps(A), 'rejected': [B]},
  {'prompt': [json.dumps(U)], 'chosen': [A], 'rejected': [json.dumps(B)]},
  {'chosen': json.dumps([U, A]), 'rejected': json.dumps([U, B])},
  {'prompt': None, 'chosen': [U, A], 'rejected': [U, B]},
  {'conversations': [U], 'chosen': A, 'rejected': B},
  {'conversations': [U], 'prompt': None, 'chosen': [A], 'rejected': [B]},
  {
    'conversations': [{'from': 'human', 'value': 'Hi'}],
    'chosen': {'from': 'gpt', 'value': 'Yes'},
    'rejected': {'from': 'gpt', 'value': 'No'},
  },
  {'messages': [U, A], 'rejected_response': 'No'},
  {'messages': json.dumps([U, A]), 'rejected_response': 'No', 'prompt': 'Hi'},
  {'messages': [U, A], 'rejected_messages': [U, B]},
  {'messages': [U, A], 'rejected_messages': [B]},
  {'messages': [U, A], 'rejected_messages': json.dumps([B])},
  {'messages': [U, A], 'rejected_response': json.dumps([B])},
  {
    'prompt': {'role': ['user'], 'content': ['Hi']},
    'chosen': {'from': ['gpt'], 'value': ['Yes'], 'name': [None]},
    'rejected': {'role': ['assistant'], 'content': ['No']},
  },
  {'messages': [U, A], 'rejected_response': [B], 'rejected_messages': None},
  {'prompt': {'messages': [U]}, 'chosen': [A], 'rejected': [B]},
  {
    'prompt': [U],
    'chosen': [A],
    'rejected': [B],
    'tools': None,
    'margin': None,
    'weight': None,
    'score_chosen': None,
    'score_rejected': None,
    'reward_chosen': None,
    'reward_rejected': None,
  },
]


@pytest.mark.parametrize('row', SAME, ids=range(len(SAME)))
def test_shapes_of_one_pair(row):
  assert _parse(row) == PAIR


@pytest.mark.parametrize(
  'row',
  [
    {'messages': [U, A], 'label': False},
    {'messages': [U, A], 'label': 0.0},
    {'conversations': [U, A], 'label': False},
    {'prompt': json.dumps([U]), 'completion': A, 'label': False},
  ],
)
def test_a_label_beside_messages_is_a_judgement(row):
  assert _parse(row) == types.PreferenceRecord(
    (U,), ((A,),), (), (False,), where='f:1'
  )


def test_messages_without_a_judgement_are_a_demonstration():
  demonstration = types.PreferenceRecord(
    (U,), ((A,),), (types.Comparison(0, 0),), where='f:1'
  )
  for row in (
    {'messages': [U, A], 'label': None, 'rejected_response': None},
    {'conversations': [U, A]},
    {'conversations': json.dumps([U, A])},
    {'prompt': [U], 'completion': json.dumps([A])},
  ):
    assert _parse(row) == demonstration


def test_a_call_in_place_of_the_last_answer_is_rejected_whole():
  # The rejected answer stands in the place of all after the last question.
  row = {
    'messages': [U, {'role': 'assistant', 'tool_calls': TOOL_CALLS}, A],
    'rejected_messages': [B],
  }
  assert _parse(row).prompt == (U,)
  assert _parse(row).completions == (tuple(row['messages'][1:]), (B,))


def test_calls_of_sharegpt():
  turns = [
    {'from': 'human', 'value': 'Hi'},
    {'from': 'function_call', 'value': json.dumps(CALL)},
    {'from': 'observation', 'value': 'Monday'},
    {'from': 'gpt', 'value': 'Yes'},
  ]
  record = _parse({'conversations': turns, 'tools': json.dumps(TOOLS)})
  assert record.prompt == (
    U,
    {'role': 'assistant', 'content': '', 'tool_calls': TOOL_CALLS},
    {'role': 'tool', 'content': 'Monday'},
  )
  assert record.completions == ((A,),)
  assert record.tools == tuple(TOOLS)


@pytest.mark.parametrize(
  'calls',
  [
    json.dumps(TOOL_CALLS),
    list(map(json.dumps, TOOL_CALLS)),
    [{'type': 'function', 'function': json.dumps(CALL)}],
  ],
)
def test_tool_calls_as_json_text(calls):
  turn = {'role': 'assistant', 'content': None, 'tool_calls': calls}
  record = _parse({'prompt': [U], 'chosen': [turn], 'rejected': [B]})
  assert record.completions[0][0]['tool_calls'] == TOOL_CALLS


@pytest.mark.parametrize('calls', ['call', 3, ['x'], '{"name": "day"}', True])
def test_other_tool_calls_are_refused_by_name(calls):
  turn = {'role': 'assistant', 'content': 'x', 'tool_calls': calls}
  message = _refusal({'messages': [U, turn]})
  assert "'messages[1].tool_calls' is " in message and 'JSON text' in message


def test_texts_that_only_look_like_json_stay_texts():
  for text in ('[1, 2]', '{"a": 1}', '[', '{"name": "x"}', '["a"]', '[]'):
    row = {'prompt': text, 'chosen': 'c', 'rejected': 'r'}
    assert _parse(row).prompt == text


@pytest.mark.parametrize(
  'text',
  [
    "[{'role': 'user', 'content': 'x'}]",
    '[{"role": "user", "con',
    '[{"role": "x"}]',
  ],
)
def test_text_of_messages_that_is_not_json_is_refused(text):
  row = {'prompt': text, 'completion': 'c'}
  message = _refusal(row)
  assert "'prompt' is a text that begins as messages do" in message
  assert 'config.data.row_format' in message
  record = records.parse_row(row, 'demonstrations', where='f:1')
  assert record.prompt == text


@pytest.mark.parametrize(
  'row,part',
  [
    ({'messages': [U, A], 'rejected_response': ['No']}, 'rejected_response'),
    ({'messages': [U, A], 'rejected_response': 3}, "'rejected_response' is"),
    ({'messages': [U], 'rejected_response': 'No'}, 'does not end with an'),
    ({'messages': [A], 'label': True}, 'does not end with an'),
    ({'messages': [U, A], 'label': [1]}, "'label' beside 'messages' is [1]"),
    ({'messages': [U, A], 'label': 'x'}, 'config.data.columns=-label'),
    ({'conversations': [{'from': 'x', 'value': 'y'}]}, "unknown role 'x'"),
    ({'conversations': [{'from': 'gpt', 'value': 3}]}, 'content'),
    (
      {'conversations': [{'from': 'function_call', 'value': 'x'}]},
      'function_call',
    ),
  ],
)
def test_what_is_contradictory_is_refused_by_name(row, part):
  assert part in _refusal(row)


def test_renames():
  renames = foreign.parse_renames(' chosen=good , rejected=bad, -system ')
  assert renames == {'good': 'chosen', 'bad': 'rejected', 'system': ''}
  row = {'good': 'a', 'bad': 'b', 'system': 's', 'prompt': 'p'}
  assert foreign.renamed(row, renames, 'f:1') == {
    'prompt': 'p',
    'chosen': 'a',
    'rejected': 'b',
  }
  # A source of a mixture that has our columns already.
  row = {'chosen': 'a', 'rejected': 'b'}
  assert foreign.renamed(row, renames, 'f:1') == row
  with pytest.raises(types.InputError, match="did you mean 'goods'"):
    foreign.renamed({'goods': 'a'}, renames, 'f:1')


@pytest.mark.parametrize(
  'text', ['a', 'a=', '=a', '-', 'a=b,a=c', 'a=b,c=b', '-a=b', 'a==', 'a,b']
)
def test_other_renames_are_refused(text):
  if text == 'a==':  # a column may be named '='
    assert foreign.parse_renames(text) == {'=': 'a'}
    return
  with pytest.raises(types.InputError, match='^config.data.columns: '):
    foreign.parse_renames(text)


@pytest.mark.parametrize(
  'keys,line',
  [
    ('question response_j response_k', 'prompt=question,chosen=response_j'),
    ('instruction output', 'prompt=instruction,completion=output'),
    ('prompt responses ratings', 'completions=responses,scores=ratings'),
    ('conversation', 'messages=conversation'),
    ('prompt chosen rejected', ''),
    ('a b c', ''),
  ],
)
def test_the_line_that_maps_columns(keys, line):
  suggested = foreign.suggestion(keys.split())
  assert suggested.startswith(line) and bool(suggested) == bool(line)
  if not line:
    return
  # Setting it gives a row that some format fits.
  row = dict.fromkeys(keys.split(), 'x')
  new = foreign.renamed(row, foreign.parse_renames(suggested), 'f:1')
  assert set(new) <= {
    'prompt', 'chosen', 'rejected', 'completion', 'completions', 'scores',
    'messages',
  }  # fmt: skip
