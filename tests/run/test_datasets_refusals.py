"""datasets: bad data through the real command is refused.

A refusal is exit code 2, one line, and nothing on disk. The bad files are FILES
of tests/data/sources/test_files_refusals.py.
"""

import pytest
import test_files_refusals
from commands import CONFIG, refuse, write_good

from dpo_jax import main as main_lib


@pytest.mark.parametrize(
  'name,data,line,parts',
  [case[1:] for case in test_files_refusals.FILES],
  ids=[case[0] for case in test_files_refusals.FILES],
)
def test_bad_data_leaves_no_file(tmp_path, capsys, name, data, line, parts):
  path = tmp_path / name
  path.write_bytes(data)
  error = refuse([f'--config.data.train={path}'], tmp_path, capsys)
  assert error.startswith(f'{path}:{line}: ')
  assert all(part in error for part in parts)


UNUSABLE = {
  'empty completion': '{"prompt": "p", "chosen": "", "rejected": "no"}',
  'identical sides': '{"prompt": "p", "chosen": "so", "rejected": "so"}',
  'prompt fills the window': '{"prompt": "%s", "chosen": "yes", '
  '"rejected": "no"}' % ('p' * 300),
}


@pytest.mark.parametrize('row', UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_rows_are_refused_when_strict(tmp_path, capsys, row):
  good = write_good(tmp_path)
  with open(tmp_path / 'good.jsonl', 'a') as file:
    file.write(row + '\n')
  drop = '--config.data.truncation=drop'
  error = refuse([good, drop, '--config.data.strict'], tmp_path, capsys)
  assert 'good.jsonl:41' in error


def test_unusable_rows_are_dropped_and_counted(tmp_path, capsys):
  good = write_good(tmp_path)
  with open(tmp_path / 'good.jsonl', 'a') as file:
    file.write('\n'.join(UNUSABLE.values()) + '\n')
  drop = '--config.data.truncation=drop'
  assert main_lib.main([CONFIG, f'--workdir={tmp_path}/run', good, drop]) == 0
  out = capsys.readouterr().out
  assert 'ledger: 43 rows read' in out and '3 dropped' in out


@pytest.mark.parametrize(
  ('rows', 'words'),
  [
    (['{"prompt": "p", "chosen": "so", "rejected": "so"}'] * 3, 'same trained'),
    (['{"prompt": "p", "completion": "so"}'], 'imitate with stage=sft'),
  ],
)
def test_nothing_left_names_the_reason(tmp_path, capsys, rows, words):
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(rows) + '\n')
  error = refuse([f'--config.data.train={path}'], tmp_path, capsys)
  assert 'config.data.train: no record of' in error and words in error
