"""The named sets from files in their published layout, without TensorFlow.

Each layout was taken from the set's own page (published.py has the address):
rows below have the published columns and made-up text.
"""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import pyarrow
import pyarrow.parquet
import pytest

from dpo_jax import types
from dpo_jax.data.sources import published
from dpo_jax.data.sources import source as sources

HH = [
  {
    'chosen': f'\n\nHuman: {i}?\n\nAssistant: good é',
    'rejected': f'\n\nHuman: {i}?\n\nAssistant: bad',
  }
  for i in range(20)
]
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


def _put(tmp_path, name, rows, opener=open):
  path = tmp_path / 'manual' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  with opener(path, 'wt') as file:
    file.write(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def _put_hh(tmp_path, split='test', rows=HH):
  name = f'hh_rlhf/harmless-base/{split}.jsonl.gz'
  return _put(tmp_path, name, rows, gzip.open)


def _open(tmp_path, name):
  return sources.open_source(
    name, manual_dir=tmp_path / 'manual', data_dir=tmp_path / 'tfds'
  )


def _refused(tmp_path, name):
  with pytest.raises(types.InputError) as caught:
    _open(tmp_path, name)
  message = str(caught.value)
  assert message.isprintable() and '; fix: ' in message
  return message


def test_hh(tmp_path):
  _put_hh(tmp_path)
  name = 'tfds:hh_rlhf/harmless-base:test'
  source = _open(tmp_path, name)
  assert source.row_format == 'pairs'
  found = list(source.records())
  assert [r.prompt for r in found] == [
    f'\n\nHuman: {i}?\n\nAssistant:'
    for i in range(20)  # in file order
  ]
  assert found[3].completions == (' good é', ' bad')
  assert found[3].where == f'{name}[3]' and found[3].source == name
  assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules


def test_slices_and_sums_of_splits(tmp_path):
  _put_hh(tmp_path)
  _put_hh(tmp_path, 'train', HH[:5])
  whole = _open(tmp_path, 'tfds:hh_rlhf/harmless-base:test')
  part = _open(tmp_path, 'tfds:hh_rlhf/harmless-base:test[10%:50%]')
  both = _open(tmp_path, 'tfds:hh_rlhf/harmless-base:train+test')
  assert len(list(part.records())) == 8  # 40 % of 20
  assert len(list(both.records())) == 25
  assert len({s.fingerprint for s in (whole, part, both)}) == 3
  for spec in ('test[5', 'test[:200%]', 'test[:0]'):
    message = _refused(tmp_path, f'tfds:hh_rlhf/harmless-base:{spec}')
    assert f'cannot take {spec!r}' in message


def test_fingerprint_follows_the_rows(tmp_path):
  name = 'tfds:hh_rlhf/harmless-base:test'
  digests = []
  for folder, rows in (('a', HH), ('b', HH), ('c', HH[1:])):
    _put_hh(tmp_path / folder, rows=rows)
    digests.append(_open(tmp_path / folder, name).fingerprint)
  assert digests[0] == digests[1] != digests[2]


def test_shp(tmp_path):
  _put(tmp_path, 'shp/askvet/train.json', [SHP, SHP | {'labels': 1}])
  first, second = _open(tmp_path, 'tfds:shp/askvet:train').records()
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
  source = _open(tmp_path, 'tfds:ultrafeedback_binarized:test_prefs')
  assert source.row_format == 'chat_pairs'
  record = next(source.records())
  assert record.prompt == (user,)
  assert [c[0]['content'] for c in record.completions] == ['Yes', '']
  assert record.scores == (8.5, 4.0)


def test_tldr_splits_by_the_rows_own_column(tmp_path):
  files = published.SETS['tldr_comparisons'].configs['default']['train']
  for file in files:
    _put(tmp_path, f'tldr_comparisons/{file}', [TLDR])
  held_out = TLDR | {'split': 'valid2', 'choice': 0}
  _put(tmp_path, 'tldr_comparisons/comparisons/batch7.json', [TLDR, held_out])
  found = list(_open(tmp_path, 'tfds:tldr_comparisons:train').records())
  assert len(found) == len(files)
  assert found[0].prompt == (
    'SUBREDDIT: r/dogs\n\nTITLE: T\n\nPOST: Long.\n\nTL;DR:'
  )
  assert found[0].completions == (' second', ' first')
  (record,) = _open(tmp_path, 'tfds:tldr_comparisons:valid2').records()
  assert record.completions == (' first', ' second')
  message = _refused(tmp_path, 'tfds:tldr_comparisons:valid1')
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
  source = _open(tmp_path, 'tfds:imdb_reviews:train')
  assert source.row_format == 'text'
  found = list(source.records())
  assert {r.completions for r in found} == {('Good é',), ('Bad',)}
  (record,) = _open(tmp_path, 'tfds:imdb_reviews:unsupervised').records()
  assert record.completions == ('Either',)
  assert record.comparisons == (types.Comparison(0, 0),)
  assert len(list(_open(tmp_path, 'tfds:imdb_reviews:test').records())) == 1


def test_truncated_archive_is_refused(tmp_path):
  path = _put_imdb(tmp_path)
  path.write_bytes(path.read_bytes()[:-20])
  assert 'damaged archive' in _refused(tmp_path, 'tfds:imdb_reviews:train')
  assert not list((tmp_path / 'tfds').rglob('*array_record*'))


@pytest.mark.parametrize(
  'name,parts',
  [
    ('tfds:', ['no data set named']),
    ('tfds:hh:train', ["did you mean 'hh_rlhf'?"]),
    ('tfds:imbd_reviews:train', ["did you mean 'imdb_reviews'?"]),
    ('tfds:hh_rlhf/harmles:test', ["did you mean 'harmless-base'?"]),
    ('tfds:shp/askvet:tarin', ["did you mean 'train'?", 'validation']),
    ('tfds:hh_rlhf', ['no split of hh_rlhf/all named', 'train, test']),
    (
      'tfds:hh_rlhf:train',
      ['hh_rlhf/harmless-base/train.jsonl.gz and 3 more not found', 'curl'],
    ),
    (
      'tfds:ultrafeedback_binarized:train_prefs',
      ['data/train_prefs-00000-of-00001.parquet not found', 'curl -L'],
    ),
  ],
)
def test_wrong_names_and_missing_files(tmp_path, name, parts):
  message = _refused(tmp_path, name)
  assert message.startswith(f'{name}: ')
  for part in parts:
    assert part in message
  assert not (tmp_path / 'tfds').exists()


def test_bad_row_of_a_published_file_names_its_line(tmp_path):
  path = _put_hh(tmp_path, rows=[*HH, {'chosen': 'no dialogue'}])
  message = _refused(tmp_path, 'tfds:hh_rlhf/harmless-base:test')
  assert message.startswith(f"{path}:21: 'rejected' is missing")
  # Nothing is left that the next run would take for a prepared set.
  _put_hh(tmp_path)
  assert _open(tmp_path, 'tfds:hh_rlhf/harmless-base:test')


def test_other_files_than_those_prepared_are_refused(tmp_path):
  name = 'tfds:hh_rlhf/harmless-base:test'
  path = _put_hh(tmp_path)
  _open(tmp_path, name)
  _put_hh(tmp_path, rows=HH[:3])
  assert f'prepared from another {path}' in _refused(tmp_path, name)
  shutil.rmtree(tmp_path / 'manual')  # the raw files are no longer needed
  assert len(list(_open(tmp_path, name).records())) == 20


def test_a_split_whose_file_came_later(tmp_path):
  _put_hh(tmp_path)
  _open(tmp_path, 'tfds:hh_rlhf/harmless-base:test')
  name = 'tfds:hh_rlhf/harmless-base:train'
  assert 'train.jsonl.gz not found' in _refused(tmp_path, name)
  _put_hh(tmp_path, 'train')
  assert 'delete' in _refused(tmp_path, name)


def test_another_process_was_first(tmp_path, monkeypatch):
  """The second of two gets FileExistsError from TFDS and reads the first's."""
  from dpo_jax.data.sources import tfds_builders

  name = 'tfds:hh_rlhf/harmless-base:test'
  _put_hh(tmp_path)
  write = tfds_builders._write

  def write_second(builder):
    write(builder)
    raise FileExistsError('[Errno 17] File exists')

  monkeypatch.setattr(tfds_builders, '_write', write_second)
  assert len(list(_open(tmp_path, name).records())) == 20

  def write_nothing(builder):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(tfds_builders, '_write', write_nothing)
  shutil.rmtree(tmp_path / 'tfds')
  assert 'No space left on device' in _refused(tmp_path, name)


CHILD = """
import sys
from dpo_jax.data.sources import source as sources
source = sources.open_source(
  'tfds:hh_rlhf/harmless-base:test', manual_dir=sys.argv[1],
  data_dir=sys.argv[2],
)
print(source.fingerprint, len(list(source.records())))
assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules
"""


def test_two_processes_prepare_one_set(tmp_path):
  _put_hh(tmp_path, rows=HH * 100)
  command = [sys.executable, '-c', CHILD, tmp_path / 'manual', tmp_path / 'd']
  children = [
    subprocess.Popen(
      list(map(os.fspath, command)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  answers = [child.communicate(timeout=100) for child in children]
  assert [child.returncode for child in children] == [0, 0], answers
  assert answers[0][0] == answers[1][0]
  assert answers[0][0].split()[1] == '2000'
