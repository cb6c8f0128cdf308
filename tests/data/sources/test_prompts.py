"""Prompts to sample from: the shapes of training rows, without an answer."""

import json

import pytest

from dpo_jax import types
from dpo_jax.data.sources import prompts

U = {'role': 'user', 'content': 'Hi'}
A = {'role': 'assistant', 'content': 'Yes'}
SYSTEM = {'role': 'system', 'content': 'Be kind'}
TOOLS = [{'function': {'name': 'day'}}]


def _prompt(row, **renames):
  return prompts.parse_row(row, renames, 'f:1').prompt


@pytest.mark.parametrize(
  'row',
  [
    {'prompt': [U]},
    {'prompt': U},
    {'prompt': json.dumps([U])},
    {'prompt': {'messages': [U]}},
    {'messages': [U]},
    {'messages': [U, A]},
    {'messages': json.dumps([U, A]), 'prompt': None},
    {'conversations': [{'from': 'human', 'value': 'Hi'}]},
    {'prompt': [U], 'chosen': 'x', 'rejected': ['y'], 'label': 3, 'id': 1},
    {'prompt': [U], 'images': [], 'system': None},
  ],
)
def test_shapes_of_one_prompt(row):
  assert _prompt(row) == (U,)


def test_columns_that_change_a_prompt():
  assert _prompt({'prompt': [U], 'system': 'Be kind'}) == (SYSTEM, U)
  assert _prompt({'q': 'Hi'}, q='prompt', other='chosen') == 'Hi'
  record = prompts.parse_row({'prompt': [U], 'tools': TOOLS}, {}, 'f:1')
  assert record.tools == tuple(TOOLS)
  for row, part in (
    ({'prompt': 'Hi', 'system': 'Be kind'}, "column 'system'"),
    ({'prompt': [U], 'images': ['x']}, "column 'images'"),
    ({'prompt': [U], 'documents': ['x']}, "column 'documents'"),
    ({'prompt': None}, "has neither 'prompt' nor 'messages'"),
    ({'prompt': [U], 'tools': 'x'}, "'tools' is"),
  ):
    with pytest.raises(types.InputError, match=part):
      _prompt(row)
