"""Conversations: where the prompt ends, which messages and tools are valid."""

import pytest

from dpo_jax import types
from dpo_jax.data.sources import conversations, records

U = {'role': 'user', 'content': 'Hi'}


A = {'role': 'assistant', 'content': 'Yes'}


B = {'role': 'assistant', 'content': 'No'}


SYSTEM = {'role': 'system', 'content': 'Be kind'}


def test_shared_prompt_ends_before_an_answer_of_both_sides():
  other = {'role': 'user', 'content': 'Why?'}
  # They differ in a user's turn: the answers begin at the turn before it.
  split = conversations.split_shared((U, A, U, A), (U, A, other, B), 'f:1')
  assert split == ((U,), (A, U, A), (A, other, B))
  # The longest of several common beginnings.
  assert conversations.split_shared((U, A, U, A), (U, A, U, B), 'f:1') == (
    (U, A, U),
    (A,),
    (B,),
  )
  # Equal sides: the last answer is the completion. Encoding drops the pair.
  assert conversations.split_shared((U, A), (U, A), 'f:1') == (
    (U,),
    (A,),
    (A,),
  )
  # One side continues after the answer that both have.
  assert conversations.split_shared((U, A), (U, A, U, B), 'f:1') == (
    (U,),
    (A,),
    (A, U, B),
  )


def test_dialogues_that_part_early_keep_their_later_turns():
  parts = conversations.split_dialogue(
    '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d',
    '\n\nHuman: a\n\nAssistant: bad',
    'f:1',
  )
  assert parts == (
    '\n\nHuman: a\n\nAssistant:',
    ' b\n\nHuman: c\n\nAssistant: d',
    ' bad',
  )


def test_a_prompt_in_words_before_conversations():
  # UltraFeedback: the prompt is also the first user message of both sides.
  row = {'prompt': 'Hi', 'chosen': [U, A], 'rejected': [U, B]}
  assert records.parse_row(row, where='f:1').prompt == (U,)
  row = {'prompt': 'Hi', 'chosen': [A], 'rejected': [B]}
  assert records.parse_row(row, where='f:1').prompt == (U,)


def test_sides_that_repeat_the_prompt_lose_it():
  row = {'prompt': [SYSTEM, U], 'chosen': [SYSTEM, U, A]}
  record = records.parse_row(row | {'rejected': [SYSTEM, U, B]}, where='f:1')
  assert record.prompt == (SYSTEM, U)
  assert record.completions == ((A,), (B,))


TURNS = (
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'Which day?'},
  {'role': 'assistant', 'tool_calls': [{'name': 'day'}]},
  {'role': 'tool', 'content': 'Monday'},
  {'role': 'assistant', 'content': 'Mönday.'},
  {'role': 'user', 'content': 'Sure?'},
  {'role': 'assistant', 'content': 'Yes.'},
)


@pytest.mark.parametrize('tools', ['{"name": "f"}', 'x', {'a': 1}, ['f'], 3])
def test_tools_that_are_no_list_of_schemas_are_refused(tools):
  with pytest.raises(types.InputError, match="^f:1: 'tools' is .*; fix: "):
    records.parse_row({'messages': list(TURNS), 'tools': tools}, where='f:1')
  row = {'prompt': 'a', 'completion': 'b', 'tools': tools}  # provenance
  assert records.parse_row(row, where='f:1').tools is None


def test_sides_that_call_different_tools_share_no_turn():
  other = {'role': 'assistant', 'tool_calls': [{'name': 'night'}]}
  chosen = [*TURNS[:2], TURNS[2], *TURNS[3:5]]
  rejected = [*TURNS[:2], other, *TURNS[3:5]]
  row = {'chosen': chosen, 'rejected': rejected}
  assert records.parse_row(row, where='f:1').prompt == TURNS[:2]


@pytest.mark.parametrize(
  ['key', 'value'],
  [
    ('weight', 0),
    ('weight', 0.5),
    ('train', False),
    ('loss', False),
    ('train_detail', [{'begin_offset': 0, 'train': False}]),
  ],
)
@pytest.mark.parametrize('column', ['messages', 'chosen', 'completion'])
def test_the_weight_of_a_message_is_refused_by_name(column, key, value):
  answer = A | {key: value}
  row = {
    'messages': {'messages': [U, answer]},
    'chosen': {'prompt': [U], 'chosen': [answer], 'rejected': [B]},
    'completion': {'prompt': [U], 'completion': [answer], 'label': True},
  }[column]
  with pytest.raises(types.InputError, match=rf'{column}\[\d\]\.{key} is '):
    records.parse_row(row, where='f:1')


def test_a_weight_that_changes_nothing_is_harmless():
  user, answer = U | {'weight': 0, 'train': False}, A | {'weight': 1}
  row = {'messages': [SYSTEM, user, answer | {'train': True, 'loss': None}]}
  assert records.parse_row(row, where='f:1').completions[0][0]['content']
  # Nothing of a prompt is trained, whatever it says.
  prompt = [U, A | {'weight': 0}, U]
  row = {'prompt': prompt, 'chosen': [answer], 'rejected': [B]}
  assert len(records.parse_row(row, where='f:1').prompt) == 3
  user = U | {'train': True}
  with pytest.raises(types.InputError, match=r'messages\[0\]\.train is True'):
    records.parse_row({'messages': [user, answer]}, where='f:1')


def test_the_weight_of_a_turn_from_sharegpt_is_refused():
  turns = [
    {'from': 'human', 'value': 'Hi'},
    {'from': 'gpt', 'value': 'Yes', 'weight': 0},
  ]
  with pytest.raises(types.InputError, match=r'\.weight is 0, and weights of'):
    records.parse_row({'conversations': turns}, where='f:1')
