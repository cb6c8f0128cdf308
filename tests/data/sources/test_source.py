"""Sources: every kind of file, fingerprints, repeatability, real data."""

import gzip
import hashlib
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from dpo_jax import types
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


@pytest.mark.parametrize(
  'name', ['a.jsonl', 'a.jsonl.gz', 'a.json', 'a.json.gz', 'a.parquet']
)
def test_every_kind_of_file_gives_the_same_records(tmp_path, name):
  path = tmp_path / name
  if name.endswith('.parquet'):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
  else:
    data = _jsonl(ROWS)
    path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
  source = sources.open_source(path)
  assert source.name == str(path)
  assert source.row_format == 'pairs'
  # The standard library's sha256 of all bytes at once.
  assert source.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
  records = list(source.records())
  assert records == list(source.records())  # any number of times
  assert [r.where for r in records] == [f'{path}:{i + 1}' for i in range(300)]
  assert records[7].prompt == 'p7'
  assert records[7].completions == ('é\u2028x', '')
  assert records[7].comparisons == (types.Comparison(0, 1, 1.0, 7.0),)


def test_conversations_from_parquet(tmp_path):
  user = {'content': 'Hi', 'role': 'user'}
  sides = [[user, {'content': c, 'role': 'assistant'}] for c in ('Yes', 'No')]
  table = pyarrow.Table.from_pylist(
    [{'prompt': 'Hi', 'chosen': sides[0], 'rejected': sides[1], 'extra': 1}]
  )
  pyarrow.parquet.write_table(table, tmp_path / 'a.parquet')
  source = sources.open_source(tmp_path / 'a.parquet')
  assert source.row_format == 'chat_pairs'
  (record,) = source.records()
  assert record.prompt == (user,)
  assert record.completions == (tuple(sides[0][1:]), tuple(sides[1][1:]))


def test_format_can_be_named(tmp_path):
  data = _jsonl([ROWS[0] | {'completion': 'c'}, ROWS[1]])
  path = _write(tmp_path / 'a.jsonl', data)
  source = sources.open_source(path, row_format='demonstrations')
  with pytest.raises(types.InputError, match=":2: key 'completion' is missing"):
    list(source.records())
  with pytest.raises(types.InputError, match="did you mean 'ranked'"):
    sources.open_source(path, row_format='rank')


# Rows per file, from the table in shared/data/README.md.
COUNTS = {
  'alpaca_eval': 19020,
  'finegrained_qa': 2125,
  'hh_harmless': 1839,
  'imdb_same_film': 5925,
  'persona_yesno': 8932,
  'stories_lexicon': 6795,
}


def test_every_shared_preference_file_is_read(shared):
  folder = shared / 'data' / 'prefs'
  counts = {}
  for name in sorted(os.listdir(folder)):
    source = sources.open_source(folder / name)
    assert source.row_format == 'pairs'
    counts[name.split('.')[0]] = sum(1 for _ in source.records())
  assert COUNTS.items() <= counts.items()
  assert len(counts) == 15


def test_stories_as_token_ids(shared):
  path = shared / 'data' / 'prefs' / 'stories_lexicon.jsonl.gz'
  source = sources.open_source(path, use_token_ids=True)
  records = list(source.records())
  assert len(records) == 6795
  for record in records:
    assert record.prompt[0] == 1  # BOS, says shared/data/README.md
    assert record.scores[0] > record.scores[1]
    # The margin column is the difference of the rewards.
    difference = record.scores[0] - record.scores[1]
    assert record.comparisons[0].margin == difference
