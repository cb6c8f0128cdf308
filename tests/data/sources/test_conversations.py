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
