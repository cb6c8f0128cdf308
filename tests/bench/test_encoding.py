"""encoding: the benchmark runs on a few rows; its times are not checked."""

import json
import os

import pytest
import toy_tokenizers

from dpo_jax.bench import encoding
from dpo_jax.types import InputError


@pytest.fixture
def options(tmp_path):
  path = tmp_path / 'a.jsonl'
  rows = [
    {'prompt': f'p{i}', 'chosen': 'yes', 'rejected': 'no'} for i in range(9)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return encoding.Options(
    str(path),
    rows=7,
    rounds=1,
    processes=('1', '2'),
    step_ms=1.0,
    json=f'{tmp_path}/o',
  )


def _cells(table):
  return [
    [cell.strip() for cell in row.split('|')][1:-1]
    for row in table.splitlines()[4:-2]
  ]


def test_the_table_has_a_line_per_number_of_processes(options):
  table = encoding.run(options)
  assert table.startswith('7 rows; ')
  assert '7 prompts in 1 rows of 1024: ' in table
  assert ' an update of 1 ms waits for ' in table
  cells = _cells(table)
  assert [cell[:2] for cell in cells] == [['dpo_jax', '1'], ['dpo_jax', '2']]
  assert all(float(cell[2].replace(',', '')) > 0 for cell in cells)
  with open(options.json) as file:
    (one,) = json.load(file)['dpo_jax/1']
  assert one['rows'] == 7 and one['wall'] > 0


def test_refuses_what_is_missing(options, tmp_path):
  with pytest.raises(InputError, match='--data: is not given'):
    encoding.run(options._replace(data=''))
  (tmp_path / 'python').write_text('#!/bin/sh\necho no trl here >&2\nexit 1\n')
  (tmp_path / 'python').chmod(0o755)
  options = options._replace(trl_python=f'{tmp_path}/python')
  with pytest.raises(InputError, match=r'TRL did not run \(no trl here\)'):
    encoding.run(options)


@pytest.mark.skipif(
  os.environ.get('DPO_JAX_REAL_PARTS') != '1' or 'TRL_PYTHON' not in os.environ,
  reason='needs TRL: DPO_JAX_REAL_PARTS=1 TRL_PYTHON=PYTHON',
)
def test_trl_prepares_the_same_rows(options, tmp_path):
  made = toy_tokenizers.byte_level()
  (tmp_path / 't').mkdir()
  toy_tokenizers.save(
    tmp_path / 't',
    made,
    eos_token='</s>',
    tokenizer_class='PreTrainedTokenizerFast',
  )
  python = os.environ['TRL_PYTHON']
  options = options._replace(trl_python=python, tokenizer=f'{tmp_path}/t')
  cells = _cells(encoding.run(options))
  assert [cell[0] for cell in cells] == ['dpo_jax'] * 2 + ['TRL'] * 2
