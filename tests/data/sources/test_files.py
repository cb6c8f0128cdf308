"""Data files: paths that are refused, and the rows of Parquet files."""

import gzip
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from dpo_jax import types
from dpo_jax.data.sources import files, records
from dpo_jax.data.sources import source as sources

ROWS = [
  {'prompt': f'p{i}', 'chosen': 'é\u2028x', 'rejected': '', 'margin': i}
  for i in range(300)
]


def _jsonl(rows, end='\n'):
  return ''.join(json.dumps(r, ensure_ascii=False) + end for r in rows).encode()


def _write(path, data):
  path.write_bytes(data)
  return str(path)


def test_parquet_faults_name_the_row(tmp_path):
  rows = ROWS[:3] + [ROWS[3] | {'chosen': None}]
  path = tmp_path / 'a.parquet'
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  with pytest.raises(types.InputError, match=r'parquet:4: .chosen. is null'):
    list(sources.open_source(path).records())


def test_a_missing_file_gets_its_nearest_neighbour(tmp_path):
  _write(tmp_path / 'train.jsonl', b'{}')
  with pytest.raises(types.InputError, match=r"did you mean '.*train\.jsonl'"):
    sources.open_source(tmp_path / 'trian.jsonl')


def test_columns_that_no_format_reads_are_left_in_the_parquet_file(tmp_path):
  path = tmp_path / 'a.parquet'
  table = pyarrow.Table.from_pylist([ROWS[0] | {'other': 'x'}])
  pyarrow.parquet.write_table(table, path)
  ((number, row),) = files.read_rows(str(path), records.is_known)
  assert number == 1
  assert row == ROWS[0] | {'other': None}


OK = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n'


@pytest.mark.parametrize(
  'name,part',
  [
    ('no.jsonl', 'no such file'),
    ('none/no.jsonl', 'no such folder'),
    ('folder.jsonl/a.jsonl/b.jsonl', 'no such file'),
    ('folder', 'a folder, not a file'),
    ('folder.jsonl', "name one file in it, such as '"),
    ('pipe.jsonl', 'not a regular file'),
    ('a\nb.jsonl', 'no such file'),
    ('a\0b.jsonl', 'cannot be read'),
    ('\udcff.jsonl', 'no such file'),
    ('link.jsonl', 'no such file'),
    ('x' * 300 + '.jsonl', 'cannot be read'),
  ],
)
def test_paths_that_are_no_file(tmp_path, name, part):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'folder.jsonl').mkdir()
  (tmp_path / 'folder.jsonl' / 'a.jsonl').write_bytes(OK)
  os.mkfifo(tmp_path / 'pipe.jsonl')
  os.symlink(tmp_path / 'gone', tmp_path / 'link.jsonl')
  with pytest.raises(types.InputError) as caught:
    sources.open_source(f'{tmp_path}/{name}')
  message = str(caught.value)
  assert part in message and ':0: ' in message and '; fix: ' in message
  assert message.isprintable()


def test_files_and_folders_in_a_bucket(bucket, tmp_path):
  rows = [{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}] * 3
  text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  (bucket / 'a.jsonl').write_bytes(text)
  (bucket / 'b.jsonl.gz').write_bytes(gzip.compress(text))
  for name in ('a.jsonl', 'b.jsonl.gz'):
    read = [row for _, row in files.read_rows(f'mem://bkt/{name}')]
    assert read == rows
  (bucket / 'bad.jsonl').write_bytes(text + b'{"prompt"')
  for name, words in (
    ('bad.jsonl', 'mem://bkt/bad.jsonl:4: '),
    ('c.jsonl', 'mem://bkt/c.jsonl:0: no such file'),
    ('a.json', "did you mean 'mem://bkt/a.jsonl'"),
  ):
    with pytest.raises(types.InputError, match=words):
      list(files.read_rows(f'mem://bkt/{name}'))
