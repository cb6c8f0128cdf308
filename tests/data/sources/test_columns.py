"""Columns: values of a wrong type or out of range are refused by name."""

import pytest

from dpo_jax import types
from dpo_jax.data.sources import columns, records

PAIR = {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}
IDS = {'prompt_ids': [1], 'chosen_ids': [2], 'rejected_ids': [3]}
RANKED = {'prompt': 'p', 'completions': ['a', 'b'], 'scores': [0, 1]}

# (row, use_token_ids, parts of the message)
BAD = [
  (IDS | {'prompt_ids': []}, True, ["'prompt_ids' is empty", 'BOS']),
  (IDS | {'chosen_ids': [1.0]}, True, ["'chosen_ids[0]' is float 1.0"]),
  (IDS | {'chosen_ids': [True]}, True, ["'chosen_ids[0]' is bool"]),
  (IDS | {'chosen_ids': [-1]}, True, ["'chosen_ids[0]' is int -1"]),
  (IDS | {'chosen_ids': [2**31]}, True, ["'chosen_ids[0]' is int 2147483648"]),
  (IDS | {'chosen_ids': 'abc'}, True, ["'chosen_ids' is str 'abc'"]),
  (RANKED | {'scores': [1]}, False, ["2 'completions' and 1 'scores'"]),
  (RANKED | {'scores': []}, False, ["'scores' is an empty list"]),
  (RANKED | {'scores': [0, None]}, False, ["'scores[1]' is null"]),
  (RANKED | {'completions': 'ab'}, False, ["'completions' is str 'ab'"]),
  (RANKED | {'completions': ['a', 3]}, False, ["'completions[1]' is int 3"]),
  (RANKED | {'margin': 1.0}, False, ["'margin' has no meaning in ranked"]),
  (
    {'prompt': 'p', 'completion': 'c', 'label': 'yes'},
    False,
    ["'label' is str 'yes', not true or false"],
  ),
  (
    {'prompt': 'p', 'completion': 'c', 'label': True, 'weight': 2},
    False,
    ["'weight' has no meaning in unpaired"],
  ),
  (PAIR | {'margin': True}, False, ["'margin' is bool True, not a number"]),
  (PAIR | {'margin': 10**60}, False, ["'margin' is 1000000", 'finite']),
]


@pytest.mark.parametrize('row,use_token_ids,parts', BAD)
def test_bad_values_name_the_column(row, use_token_ids, parts):
  with pytest.raises(types.InputError) as caught:
    records.parse_row(row, where='f.jsonl:3', use_token_ids=use_token_ids)
  message = str(caught.value)
  assert message.startswith('f.jsonl:3: ') and '; fix: ' in message
  assert message.isprintable()
  for part in parts:
    assert part in message


def test_a_known_column_is_not_taken_for_a_misspelt_one():
  # 'score' is close to 'scores', unless a format has a column of that name.
  assert columns.misspelt('scores', ['score'], frozenset()) == 'score'
  assert columns.misspelt('scores', ['score'], frozenset({'score'})) == ''
