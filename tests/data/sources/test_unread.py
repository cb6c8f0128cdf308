"""Columns that no format reads: refused if they change the trained text."""

import pytest

from dpo_jax import types
from dpo_jax.data.sources import records, unread

U = {'role': 'user', 'content': 'Hi'}
A = {'role': 'assistant', 'content': 'Yes'}
B = {'role': 'assistant', 'content': 'No'}
SYSTEM = {'role': 'system', 'content': 'Be kind'}
ROWS = {
  'pairs': {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'},
  'chat_pairs': {'prompt': [U], 'chosen': [A], 'rejected': [B]},
  'ranked': {'prompt': 'p', 'completions': ['a', 'b'], 'scores': [0, 1]},
  'unpaired': {'prompt': 'p', 'completion': 'c', 'label': True},
  'demonstrations': {'prompt': 'p', 'completion': 'c'},
  'messages': {'messages': [U, A]},
  'text': {'text': 'Once'},
}
CHANGES = {
  'system_prompt': 'Be rude',
  'systemPrompt': ['Be rude'],
  'images': [{'bytes': b'x', 'path': None}],
  'image_url': 'http://x',
  'video_path': 'x.mp4',
  'audios': ['a.wav'],
  'documents': [{'title': 't'}],
  'context': 'Some context',
  'history': [['q', 'a']],
  'functions': [{'name': 'f'}],
  'question': 'Another one',
  'query': 'Another one',
  'response': 'Another one',
  'instruction': 'Translate this',
}
NOTHING = (None, '', ' ', [], {}, [None], [''], {'a': None})


@pytest.mark.parametrize('key', CHANGES)
@pytest.mark.parametrize('row', ROWS.values(), ids=ROWS)
def test_a_column_that_changes_the_prompt_is_refused_by_name(row, key):
  is_chat = records.detect_format(row, 'f:1') in ('chat_pairs', 'messages')
  if key == 'system_prompt' and is_chat:
    return  # read: see below
  with pytest.raises(types.InputError) as caught:
    records.parse_row(row | {key: CHANGES[key]}, where='f:1')
  message = str(caught.value)
  assert f'column {key!r}' in message
  assert message.endswith(f'leave it out with config.data.columns=-{key}')


@pytest.mark.parametrize('value', NOTHING)
@pytest.mark.parametrize('key', CHANGES)
def test_an_empty_column_changes_nothing(key, value):
  row = ROWS['pairs']
  assert records.parse_row(
    row | {key: value}, where='f:1'
  ) == records.parse_row(row, where='f:1')


def test_a_column_that_the_record_repeats_changes_nothing():
  row = {'prompt': 'Q: Which day? A:', 'chosen': 'Monday', 'rejected': 'None'}
  more = {
    'question': 'Which day?',
    'response': 'Monday',
    'history': [],
    'system': 'Q:',
    'messages': [U, A],
    'rejected_response': 'other',
    'kto_tag': True,
  }
  assert records.parse_row(row | more, where='f:1') == records.parse_row(
    row, where='f:1'
  )


@pytest.mark.parametrize(
  'name',
  [
    'id', 'source', 'label_by', 'subset', 'prompt_id', 'image_id', 'metadata',
    'num_images', 'system_fingerprint', 'question_id', 'documents_count',
    'chosen_model', 'rejected_score', 'rejected_model', 'model_name', 'topic',
    'input_tokens', 'category', 'answer', 'reference', 'gen_rejected_model',
  ],
)  # fmt: skip
def test_names_of_provenance(name):
  assert unread.kind_of(name) in ('', 'media') and (
    unread.kind_of(name) == '' or name == 'num_images'
  )


@pytest.mark.parametrize('key', ['system', 'system_prompt', 'system_message'])
def test_a_chat_takes_its_system_message_from_a_column(key):
  for row in (ROWS['chat_pairs'], ROWS['messages']):
    record = records.parse_row(row | {key: 'Be kind'}, where='f:1')
    assert record.prompt == (SYSTEM, U)
    form = records.detect_format(row, 'f:1')
    assert records.names_unread(row | {key: 'x'}, form, 'f:1') == []
  # It has the same one already.
  row = {'prompt': [SYSTEM, U], 'chosen': [A], 'rejected': [B], key: 'Be kind'}
  assert records.parse_row(row, where='f:1').prompt == (SYSTEM, U)
  with pytest.raises(types.InputError, match=f"column '{key}'"):
    records.parse_row(row | {key: 'Be rude'}, where='f:1')
  with pytest.raises(types.InputError, match='lone surrogate'):
    records.parse_row(ROWS['messages'] | {key: '\ud800'}, where='f:1')


@pytest.mark.parametrize('key', ['kto_tag', 'rejected_answer', 'rejected_text'])
@pytest.mark.parametrize('name', ['demonstrations', 'text'])
def test_a_judgement_beside_a_demonstration_is_refused(name, key):
  row = ROWS[name] | {key: False if key == 'kto_tag' else 'r'}
  with pytest.raises(types.InputError, match=f"'{key}'"):
    records.parse_row(row, where='f:1')


def test_every_column_that_a_form_reads_is_decoded():
  # One list: what a parser reads is what a Parquet file is decoded for.
  for name in ('tools', 'weight', 'margin', 'score_chosen', 'reward_rejected'):
    assert records.is_known(name)
  for name in (*CHANGES, 'kto_tag', 'rejected_messages', 'conversations'):
    assert records.is_known(name)
  assert not records.is_known('embedding')
