"""Public sets: the records made from rows in their published layout.

Each layout is that of the set's own page (published.py has the address). The
rows below have the published columns and invented text.
"""

import io
import sys
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from published_files import open_set, put, put_hh, refused

from dpo_jax import types
from dpo_jax.data.sources import published

SHP = {
  'post_id': 'x',
  'domain': 'askvet_train',
  'upvote_ratio': 0.9,
  'history': 'Why?',
  'human_ref_A': 'a',
  'human_ref_B': 'b',
  'labels': 0,
  'score_A': 3,
  'score_B': 12,
  'score_ratio': 4.0,
}
TLDR = {
  'info': {'id': 't3_x', 'post': 'Long.', 'title': 'T', 'subreddit': 'dogs'},
  'summaries': [
    {'text': ' first', 'policy': 'ref', 'note': None},
    {'text': 'second', 'policy': 'sup2', 'note': 'n'},
  ],
  'choice': 1,
  'worker': 'w',
  'batch': 'batch3',
  'split': 'train',
  'extra': {'confidence': 8},
}


def test_hh(tmp_path):
  put_hh(tmp_path)
  name = 'tfds:hh_rlhf/harmless-base:test'
  source = open_set(tmp_path, name)
  assert source.row_format == 'pairs'
  records = list(source.records())
  assert [r.prompt for r in records] == [
    f'\n\nHuman: {i}?\n\nAssistant:'
    for i in range(20)  # in file order
  ]
  assert records[3].completions == (' good é', ' bad')
  assert records[3].where == f'{name}[3]'
  assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules


def test_shp(tmp_path):
  put(tmp_path, 'shp/askvet/train.json', [SHP, SHP | {'labels': 1}])
  first, second = open_set(tmp_path, 'tfds:shp/askvet:train').records()
  assert first.prompt == '\n\nHuman: Why?\n\nAssistant:'
  assert first.completions == (' b', ' a')  # labels 0: B is preferred
  assert first.scores == (12.0, 3.0)
  assert first.comparisons[0].margin == 9.0  # 12 - 3
  assert second.completions == (' a', ' b')


def test_ultrafeedback(tmp_path):
  user = {'content': 'Hi', 'role': 'user'}
  sides = [[user, {'content': c, 'role': 'assistant'}] for c in ('Yes', '')]
  row = {
    'prompt': 'Hi',
    'prompt_id': 'f' * 64,
    'chosen': sides[0],
    'rejected': sides[1],
    'messages': sides[0],
    'score_chosen': 8.5,
    'score_rejected': 4.0,
  }
  folder = tmp_path / 'manual' / 'ultrafeedback_binarized' / 'data'
  folder.mkdir(parents=True)
  pyarrow.parquet.write_table(
    pyarrow.Table.from_pylist([row, row]),
    folder / 'test_prefs-00000-of-00001.parquet',
  )
  source = open_set(tmp_path, 'tfds:ultrafeedback_binarized:test_prefs')
  assert source.row_format == 'chat_pairs'
  record = next(source.records())
  assert record.prompt == (user,)
  assert [c[0]['content'] for c in record.completions] == ['Yes', '']
  assert record.scores == (8.5, 4.0)


def test_tldr_splits_by_the_rows_own_column(tmp_path):
  files = published.SETS['tldr_comparisons'].configs['default']['train']
  for file in files:
    put(tmp_path, f'tldr_comparisons/{file}', [TLDR])
  held_out = TLDR | {'split': 'valid2', 'choice': 0}
  put(tmp_path, 'tldr_comparisons/comparisons/batch7.json', [TLDR, held_out])
  records = list(open_set(tmp_path, 'tfds:tldr_comparisons:train').records())
  assert len(records) == len(files)
  assert records[0].prompt == (
    'SUBREDDIT: r/dogs\n\nTITLE: T\n\nPOST: Long.\n\nTL;DR:'
  )
  assert records[0].completions == (' second', ' first')
  (record,) = open_set(tmp_path, 'tfds:tldr_comparisons:valid2').records()
  assert record.completions == (' first', ' second')
  message = refused(tmp_path, 'tfds:tldr_comparisons:valid1')
  assert "split 'valid1' had no rows" in message


REVIEWS = {
  'aclImdb/train/pos/0_9.txt': 'Good é',
  'aclImdb/train/neg/0_1.txt': 'Bad',
  'aclImdb/train/unsup/0_0.txt': 'Either',
  'aclImdb/test/pos/0_9.txt': 'Fine',
}


def _put_imdb(tmp_path):
  path = tmp_path / 'manual' / 'imdb_reviews' / 'aclImdb_v1.tar.gz'
  path.parent.mkdir(parents=True)
  with tarfile.open(path, 'w:gz') as archive:
    for name, text in REVIEWS.items():
      info = tarfile.TarInfo(name)
      info.size = len(text.encode())
      archive.addfile(info, io.BytesIO(text.encode()))
  return path


@pytest.mark.parametrize('unpacked', [False, True])
def test_imdb_from_its_archive_or_its_folder(tmp_path, unpacked):
  path = _put_imdb(tmp_path)
  if unpacked:
    with tarfile.open(path) as archive:
      archive.extractall(path.parent, filter='data')
    path.unlink()
  source = open_set(tmp_path, 'tfds:imdb_reviews:train')
  assert source.row_format == 'text'
  records = list(source.records())
  assert {r.completions for r in records} == {('Good é',), ('Bad',)}
  (record,) = open_set(tmp_path, 'tfds:imdb_reviews:unsupervised').records()
  assert record.completions == ('Either',)
  assert record.comparisons == (types.Comparison(0, 0),)
  assert len(list(open_set(tmp_path, 'tfds:imdb_reviews:test').records())) == 1


def test_truncated_archive_is_refused(tmp_path):
  path = _put_imdb(tmp_path)
  path.write_bytes(path.read_bytes()[:-20])
  assert 'damaged archive' in refused(tmp_path, 'tfds:imdb_reviews:train')
  assert not list((tmp_path / 'tfds').rglob('*array_record*'))
