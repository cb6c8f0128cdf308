"""Row formats: what each becomes, and what is told about one that is wrong.

Expected records are written out by hand from the format's definition in
FORMATS and in the module docstring of records.py.
"""

import pytest

from dpo_jax import types
from dpo_jax.data.sources import conversations, records

U = {'role': 'user', 'content': 'Hi'}
A = {'role': 'assistant', 'content': 'Yes'}
B = {'role': 'assistant', 'content': 'No'}
SYSTEM = {'role': 'system', 'content': 'Be kind'}
PAIR = {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}
ONE = types.Comparison(0, 1)
IMITATE = types.Comparison(0, 0)

# (row, format, prompt, completions, comparisons, labels, scores)
GOOD = [
  (PAIR, 'pairs', 'p', ('c', 'r'), (ONE,), None, None),
  (
    {'prompt': [U], 'chosen': [A], 'rejected': [B]},
    'chat_pairs',
    (U,),
    ((A,), (B,)),
    (ONE,),
    None,
    None,
  ),
  (
    {'chosen': [SYSTEM, U, A], 'rejected': [SYSTEM, U, B]},
    'chat_pairs',
    (SYSTEM, U),
    ((A,), (B,)),
    (ONE,),
    None,
    None,
  ),
  (
    {
      'chosen': '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: good',
      'rejected': '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: bad',
    },
    'dialogue_pairs',
    '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:',
    (' good', ' bad'),
    (ONE,),
    None,
    None,
  ),
  (
    {'prompt': 'p', 'completions': ['a', 'b', 'c'], 'scores': [1, 3, 1.0]},
    'ranked',
    'p',
    ('a', 'b', 'c'),
    # Strict score order: a and c tie. Margin = score difference, 3 - 1.
    (types.Comparison(1, 0, 1.0, 2.0), types.Comparison(1, 2, 1.0, 2.0)),
    None,
    (1.0, 3.0, 1.0),
  ),
  (
    {'prompt': [U], 'completions': [[A], [B]], 'scores': [0, 1]},
    'chat_ranked',
    (U,),
    ((A,), (B,)),
    (types.Comparison(1, 0, 1.0, 1.0),),
    None,
    (0.0, 1.0),
  ),
  (
    {'prompt': 'p', 'completion': 'c', 'label': False},
    'unpaired',
    'p',
    ('c',),
    (),
    (False,),
    None,
  ),
  (
    {'prompt': [U], 'completion': [A], 'label': 1},
    'chat_unpaired',
    (U,),
    ((A,),),
    (),
    (True,),
    None,
  ),
  (
    {'prompt': 'p', 'completion': 'c'},
    'demonstrations',
    'p',
    ('c',),
    (IMITATE,),
    None,
    None,
  ),
  (
    {'prompt': [U], 'completion': [A]},
    'chat_demonstrations',
    (U,),
    ((A,),),
    (IMITATE,),
    None,
    None,
  ),
  (
    {'messages': [U, A]},
    'messages',
    (U,),
    ((A,),),
    (IMITATE,),
    None,
    None,
  ),
  # The imdb file: label and rating are provenance of a text.
  (
    {'id': 'x', 'text': 't', 'label': -1, 'rating': 0},
    'text',
    '',
    ('t',),
    (IMITATE,),
    None,
    None,
  ),
]


@pytest.mark.parametrize('case', GOOD, ids=[case[1] for case in GOOD])
def test_each_format_becomes_its_record(case):
  row, row_format, prompt, completions, comparisons, labels, scores = case
  assert records.detect_format(row, 'f:1') == row_format
  assert records.parse_row(row, where='f:1') == types.PreferenceRecord(
    prompt, completions, comparisons, labels, scores, where='f:1'
  )


def test_every_format_has_a_case():
  seen = {case[1] for case in GOOD} | {'token_ids'}
  assert seen == set(records.FORMATS)


def test_token_ids_are_taken_only_when_asked_for():
  row = PAIR | {'prompt_ids': [1, 5], 'chosen_ids': [7], 'rejected_ids': []}
  assert records.parse_row(row, where='f:1').prompt == 'p'
  record = records.parse_row(
    row | {'reward_chosen': 2, 'reward_rejected': 0},
    where='f:1',
    use_token_ids=True,
  )
  assert record.prompt == (1, 5)
  assert record.completions == ((7,), ())
  assert record.scores == (2.0, 0.0)


def test_weight_margin_and_scores():
  row = PAIR | {'score_chosen': 8, 'score_rejected': 5.5, 'weight': 0.5}
  record = records.parse_row(row, where='f:1')
  assert record.scores == (8.0, 5.5)
  assert record.comparisons == (types.Comparison(0, 1, 0.5, 2.5),)  # 8 - 5.5
  record = records.parse_row(row | {'margin': 1}, where='f:1')
  assert record.comparisons[0].margin == 1.0  # given beats derived


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


def test_shared_prompt_ends_before_an_answer_of_both_sides():
  other = {'role': 'user', 'content': 'Why?'}
  # They differ in a user's turn: the answers begin at the turn before it.
  split = conversations.split_shared((U, A, U, A), (U, A, other, B), 'f:1')
  assert split == ((U,), (A, U, A), (A, other, B))
  # The longest of several.
  assert conversations.split_shared((U, A, U, A), (U, A, U, B), 'f:1') == (
    (U, A, U),
    (A,),
    (B,),
  )
  # Equal sides: the last answer is the completion (encoding drops the pair).
  assert conversations.split_shared((U, A), (U, A), 'f:1') == (
    (U,),
    (A,),
    (A,),
  )
  # One side goes on after the answer that both give.
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


IDS = {'prompt_ids': [1], 'chosen_ids': [2], 'rejected_ids': [3]}
RANKED = {'prompt': 'p', 'completions': ['a', 'b'], 'scores': [0, 1]}

# (row, use_token_ids, parts of the message)
BAD = [
  (IDS, False, ['token ids', 'config.data.use_token_ids=True']),
  (IDS | {'prompt_ids': []}, True, ["'prompt_ids' is empty", 'BOS']),
  (IDS | {'chosen_ids': [1.0]}, True, ["'chosen_ids[0]' is float 1.0"]),
  (IDS | {'chosen_ids': [True]}, True, ["'chosen_ids[0]' is bool"]),
  (IDS | {'chosen_ids': [-1]}, True, ["'chosen_ids[0]' is int -1"]),
  (IDS | {'chosen_ids': [2**31]}, True, ["'chosen_ids[0]' is int 2147483648"]),
  (IDS | {'chosen_ids': 'abc'}, True, ["'chosen_ids' is str 'abc'"]),
  (PAIR, True, ["key 'prompt_ids' is missing"]),
  (
    {'prompt_ids': [1], 'chosen_ids': [1], 'rejected_id': [1]},
    True,
    ["did you mean 'rejected_ids' by 'rejected_id'?"],
  ),
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
    {'prompt': 'p', 'completion': 'c', 'lable': True},
    False,
    ["did you mean 'label' by 'lable'?"],
  ),
  (
    {'prompt': 'p', 'completion': 'c', 'label': True, 'weight': 2},
    False,
    ["'weight' has no meaning in unpaired"],
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
  (PAIR | {'wieght': 2}, False, ["'wieght' (did you mean 'weight'?)"]),
  (PAIR | {'margin': True}, False, ["'margin' is bool True, not a number"]),
  (PAIR | {'margin': 10**60}, False, ["'margin' is 1000000", 'finite']),
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
