"""Row formats: the record that a row of each format becomes.

Expected records are written by hand from the words of records.FORMATS and from
the docstring of records.py.
"""

import pytest

from dpo_jax import types
from dpo_jax.data.sources import formats, records

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
  # As in the imdb file: label and rating are provenance of the text.
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


@pytest.mark.parametrize('weight', [1e-46, 5e-324, 9e-31])
def test_a_weight_that_vanishes_in_float32_is_refused(weight):
  words = f"f:3: 'weight' is {weight:g}, which vanishes in float32; fix: give 0"
  with pytest.raises(types.InputError, match=words):
    records.parse_row(PAIR | {'weight': weight}, where='f:3')
  for kept in (0, 1e-30):
    row = records.parse_row(PAIR | {'weight': kept}, where='f:3')
    assert row.comparisons[0].weight == kept


def test_weight_margin_and_scores():
  row = PAIR | {'score_chosen': 8, 'score_rejected': 5.5, 'weight': 0.5}
  record = records.parse_row(row, where='f:1')
  assert record.scores == (8.0, 5.5)
  assert record.comparisons == (types.Comparison(0, 1, 0.5, 2.5),)  # 8 - 5.5
  record = records.parse_row(row | {'margin': 1}, where='f:1')
  assert (
    record.comparisons[0].margin == 1.0
  )  # a given margin replaces the derived one


QUANTILES = [
  (PAIR | {'score_chosen': 8, 'score_rejected': 5}, (0.75, 0.5)),
  (PAIR | {'reward_chosen': 9, 'reward_rejected': 4.5}, (1.0, 0.25)),
  (
    {'prompt': 'p', 'completions': ['a', 'b', 'c'], 'scores': [1, 5, 1.0]},
    (0.0, 0.5, 0.0),
  ),
  ({'prompt': 'p', 'completion': 'a', 'label': False, 'score': 6}, (0.5,)),
]


@pytest.mark.parametrize('row,quantiles', QUANTILES)
def test_quantiles_are_shares_of_the_reference_scores(row, quantiles):
  # An equal score counts: `ref_rewards <= rewards`, as in QRPO's code.
  row = row | {'reference_scores': [2, 5, 8, 9]}
  assert records.parse_row(row, where='f:1').quantiles == quantiles
  row['reference_scores'] = None
  assert records.parse_row(row, where='f:1').quantiles is None


@pytest.mark.parametrize(
  'more,words',
  [
    (
      {'reference_scores': [1, 2]},
      'no score of the row itself; fix: give scor',
    ),
    (
      {'reference_scores': []},
      "'reference_scores' is .*list that is not empty",
    ),
    ({'reference_scores': 3}, "'reference_scores' is .*list that is not empty"),
    ({'reference_scores': [1, 'x']}, r"'reference_scores\[1\]' is .* a number"),
    ({'reference_scores': [1, float('nan')]}, 'not a finite number'),
  ],
)
def test_reference_scores_that_are_none_are_refused(more, words):
  with pytest.raises(types.InputError, match=words):
    records.parse_row(PAIR | more, where='f:1')


def test_every_format_is_reached_by_a_sign_or_by_its_name():
  for row_format in formats.FORMATS:
    named = {form.name for form in row_format.forms} == {'token_ids'}
    assert named or set(row_format.signs) <= set(row_format.required)
    # A refusal lists every format that detection can give.
    assert bool(row_format.shape) != named
