"""Data that means what was meant: held-out rows, dates, prompts to sample."""

import datetime
import json

import pytest
from commands import EXPERIMENT, refuse

from dpo_jax import config as config_lib
from dpo_jax.data.text import encoders
from dpo_jax.run import datasets
from dpo_jax.types import InputError

BYTE = encoders.ByteTokenizer()
DATE = (
  "{{- strftime_now('%d %b %Y') }}{% for m in messages %}"
  "{{- '<' + m.role + '>' + m.content }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
USER = {'role': 'user', 'content': 'Q?'}
ANSWER = {'role': 'assistant', 'content': 'A.'}


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def read(folder, *overrides):
  config = config_lib.load(EXPERIMENT, overrides)
  config_lib.validate(config)
  lines = []
  data = datasets.read(config, BYTE, folder, log=lines.append)
  return data, lines


def pairs(first, stop):
  return [
    {'prompt': f'p{i}', 'chosen': f'yes {i}', 'rejected': 'no'}
    for i in range(first, stop)
  ]


def test_held_out_rows_that_are_training_rows_are_counted_and_said(tmp_path):
  train = write(tmp_path / 'train.jsonl', pairs(0, 40))
  # 10 of the training rows, 2 with another answer to a known prompt, 5 new.
  other = [row | {'chosen': 'perhaps'} for row in pairs(20, 22)]
  held_out = write(
    tmp_path / 'eval.jsonl', [*pairs(30, 40), *other, *pairs(50, 55)]
  )
  flags = (('data.train', train), ('data.eval', held_out))
  for _ in range(2):  # the second time from the token cache
    data, lines = read(tmp_path, *flags)
    said = [line for line in lines if line.startswith('held out: ')]
    assert said[0].startswith('held out: 10 of 17 records are training records')
    assert said[1].startswith('held out: 2 more records have the prompt of a')
    assert data.ledger['eval']['trained_on'] == 10
    assert data.ledger['eval']['trained_prompts'] == 2
  _, lines = read(tmp_path, *flags, ('data.eval', 'split'))
  assert not any('training record' in line for line in lines)
  data, lines = read(tmp_path, *flags, ('eval.max_comparisons', '4'))
  assert data.ledger['eval']['trained_on'] == 4


def test_the_date_of_a_template_is_the_configs(tmp_path):
  rows = [
    {'prompt': [USER | {'content': f'{i:03}'}], 'chosen': [ANSWER]}
    | {'rejected': [ANSWER | {'content': 'B.'}]}
    for i in range(300)
  ]
  (tmp_path / 'date.jinja').write_text(DATE)
  flags = (
    ('data.train', write(tmp_path / 'chats.jsonl', rows)),
    ('data.chat_template', f'{tmp_path}/date.jinja'),
  )
  days = {}
  for day in ('2024-07-26', '2023-01-02', 'today'):
    for _ in range(2):  # the second time from the token cache
      data, lines = read(tmp_path, *flags, ('data.template_date', day))
      text = BYTE.decode(data.train.store[0].prompt)
      expected = datetime.date.today() if day == 'today' else None
      expected = expected or datetime.date.fromisoformat(day)
      assert text == f'{expected:%d %b %Y}<user>000<assistant>'
      line = f'train: the chat template writes the date {expected}'
      assert any(one.startswith(line) for one in lines), lines
    days[day] = text
  assert len(set(days.values())) == 3
  default, _ = read(tmp_path, *flags)
  assert BYTE.decode(default.train.store[0].prompt) == days['2024-07-26']


def test_today_is_written_as_a_date():
  config = config_lib.load(EXPERIMENT, [('data.template_date', 'today')])
  assert config.data.template_date == datetime.date.today().isoformat()
  config_lib.validate(config)


@pytest.mark.parametrize('value', ['2024-02-30', '26 Jul 2024', 'now', ''])
def test_what_is_no_date_is_refused(tmp_path, capsys, value):
  flag = f'--config.data.template_date={value}'
  error = refuse([flag], tmp_path, capsys)
  assert error.startswith('config.data.template_date: ')


def test_a_date_that_no_template_writes_changes_no_data(tmp_path):
  train = write(tmp_path / 'train.jsonl', pairs(0, 400))
  flags = ('data.train', train)
  read(tmp_path, flags)
  _, lines = read(tmp_path, flags, ('data.template_date', '2020-01-01'))
  assert any('from the token cache' in line for line in lines)


CHAT = DATE.partition('}}')[2]
PROMPTS = {
  'messages, answered': ({'messages': [USER, ANSWER]}, '<user>Q?<assistant>'),
  'messages, a second time': (
    {'messages': [USER, ANSWER, USER, ANSWER]},
    '<user>Q?<assistant>A.<user>Q?<assistant>',
  ),
  'messages, open': ({'messages': [USER]}, '<user>Q?<assistant>'),
  'messages, after a call': (
    {'messages': [USER, ANSWER, {'role': 'tool', 'content': 'T'}]},
    '<user>Q?<assistant>A.<tool>T<assistant>',
  ),
  'prompt': ({'prompt': [USER]}, '<user>Q?<assistant>'),
  'prompt, prefilled': ({'prompt': [USER, ANSWER]}, '<user>Q?<assistant>A.'),
  'both': ({'prompt': [USER], 'messages': [ANSWER]}, '<user>Q?<assistant>'),
}


def read_prompts(tmp_path, *rows):
  (tmp_path / 'chat.jinja').write_text(CHAT)
  path = write(tmp_path / 'prompts.jsonl', rows)
  flags = [
    ('data.chat_template', f'{tmp_path}/chat.jinja'),
    ('sample.prompts', path),
  ]
  config = config_lib.load(EXPERIMENT, flags)
  return [BYTE.decode(ids) for ids in datasets.read_prompts(config, BYTE)]


@pytest.mark.parametrize('name', PROMPTS)
def test_a_prompt_to_sample_ends_where_the_answer_begins(tmp_path, name):
  row, text = PROMPTS[name]
  assert read_prompts(tmp_path, row) == [text]


@pytest.mark.parametrize(
  ('row', 'words'),
  [
    ({'messages': [ANSWER]}, 'is an answer to nothing'),
    ({'prompt': 'hi<|eos|>'}, 'data.allow_control_tokens'),
    ({'prompt': [USER | {'name': '\udc00'}]}, 'lone surrogate'),
  ],
)
def test_a_prompt_that_is_refused(tmp_path, row, words):
  with pytest.raises(InputError, match=f'jsonl:1: .*{words}'):
    read_prompts(tmp_path, row)
