"""Detection: the format of a row, and refusals that name the column."""

import pytest

from dpo_jax import types
from dpo_jax.data.sources import records

U = {'role': 'user', 'content': 'Hi'}
A = {'role': 'assistant', 'content': 'Yes'}
B = {'role': 'assistant', 'content': 'No'}
SYSTEM = {'role': 'system', 'content': 'Be kind'}
PAIR = {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}


def test_provenance_columns_are_not_looked_at():
  row = PAIR | {
    'source': None,
    'label_by': 3,
    'gen_chosen': float('nan'),
    'messages': 'anything',
    'subset': '\ud800',
    'prompt_id': 'x',
    'label': 7,
    'prompt_ids': 'x',
  }
  assert records.parse_row(row, where='f:1') == records.parse_row(
    PAIR, where='f:1'
  )


IDS = {'prompt_ids': [1], 'chosen_ids': [2], 'rejected_ids': [3]}
RANKED = {'prompt': 'p', 'completions': ['a', 'b'], 'scores': [0, 1]}

# (row, use_token_ids, parts of the message)
BAD = [
  (IDS, False, ['token ids', 'config.data.use_token_ids=True']),
  (PAIR, True, ["key 'prompt_ids' is missing"]),
  (
    {'prompt_ids': [1], 'chosen_ids': [1], 'rejected_id': [1]},
    True,
    ["did you mean 'rejected_ids' by 'rejected_id'?"],
  ),
  (
    {'prompt': 'p', 'completion': 'c', 'lable': True},
    False,
    ["did you mean 'label' by 'lable'?"],
  ),
  ({'messages': [U]}, False, ["does not end with an assistant's answer"]),
  ({'chosen': [A], 'rejected': [B]}, False, ['share no prompt']),
  (
    {'prompt': [U], 'chosen': [U], 'rejected': [B]},
    False,
    ["'chosen' does not begin with an assistant message"],
  ),
  (
    {'prompt': [U], 'completion': [U, A]},
    False,
    ["'completion' begins with a message of role 'user'"],
  ),
  (PAIR | {'score_chosen': 1.0}, False, ["'score_rejected' is missing"]),
  (
    PAIR | {'wieght': 2},
    False,
    ["'wieght'; fix: did you mean 'weight'?"],
  ),
  ({'chosen': 'a', 'rejected': 'b'}, False, ["key 'prompt' is missing"]),
]


@pytest.mark.parametrize('row,use_token_ids,parts', BAD)
def test_bad_rows_name_the_key(row, use_token_ids, parts):
  with pytest.raises(types.InputError) as caught:
    records.parse_row(row, where='f.jsonl:3', use_token_ids=use_token_ids)
  message = str(caught.value)
  assert message.startswith('f.jsonl:3: ') and '; fix: ' in message
  assert message.isprintable()
  for part in parts:
    assert part in message
