"""Prepared sets: slices, fingerprints, changed files, several processes."""

import os
import shutil
import subprocess
import sys

from published_files import HH, open_set, put_hh, refused


def test_slices_and_sums_of_splits(tmp_path):
  put_hh(tmp_path)
  put_hh(tmp_path, 'train', HH[:5])
  every = open_set(tmp_path, 'tfds:hh_rlhf/harmless-base:test')
  part = open_set(tmp_path, 'tfds:hh_rlhf/harmless-base:test[10%:50%]')
  both = open_set(tmp_path, 'tfds:hh_rlhf/harmless-base:train+test')
  assert len(list(part.records())) == 8  # 40 % of 20
  assert len(list(both.records())) == 25
  assert len({s.fingerprint for s in (every, part, both)}) == 3
  for spec in ('test[5', 'test[:200%]', 'test[:0]'):
    message = refused(tmp_path, f'tfds:hh_rlhf/harmless-base:{spec}')
    assert f'cannot take {spec!r}' in message


def test_fingerprint_follows_the_rows(tmp_path):
  name = 'tfds:hh_rlhf/harmless-base:test'
  digests = []
  for folder, rows in (('a', HH), ('b', HH), ('c', HH[1:])):
    put_hh(tmp_path / folder, rows=rows)
    digests.append(open_set(tmp_path / folder, name).fingerprint)
  assert digests[0] == digests[1] != digests[2]


def test_bad_row_of_a_published_file_names_its_line(tmp_path):
  path = put_hh(tmp_path, rows=[*HH, {'chosen': 'no dialogue'}])
  message = refused(tmp_path, 'tfds:hh_rlhf/harmless-base:test')
  assert message.startswith(f"{path}:21: 'rejected' is missing")
  # Nothing is left that the next run could take for a prepared set.
  put_hh(tmp_path)
  assert open_set(tmp_path, 'tfds:hh_rlhf/harmless-base:test')


def test_other_files_than_those_prepared_are_refused(tmp_path):
  name = 'tfds:hh_rlhf/harmless-base:test'
  path = put_hh(tmp_path)
  open_set(tmp_path, name)
  put_hh(tmp_path, rows=HH[:3])
  assert f'prepared from another {path}' in refused(tmp_path, name)
  shutil.rmtree(tmp_path / 'manual')  # the raw files are no longer needed
  assert len(list(open_set(tmp_path, name).records())) == 20


def test_a_split_whose_file_came_later(tmp_path):
  put_hh(tmp_path)
  open_set(tmp_path, 'tfds:hh_rlhf/harmless-base:test')
  name = 'tfds:hh_rlhf/harmless-base:train'
  assert 'train.jsonl.gz not found' in refused(tmp_path, name)
  put_hh(tmp_path, 'train')
  assert 'delete' in refused(tmp_path, name)


def test_another_process_was_first(tmp_path, monkeypatch):
  """The second process gets FileExistsError and reads the set of the first."""
  from dpo_jax.data.sources import tfds_sets

  name = 'tfds:hh_rlhf/harmless-base:test'
  put_hh(tmp_path)
  write = tfds_sets._write

  def write_second(builder):
    write(builder)
    raise FileExistsError('[Errno 17] File exists')

  monkeypatch.setattr(tfds_sets, '_write', write_second)
  assert len(list(open_set(tmp_path, name).records())) == 20

  def write_nothing(builder):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(tfds_sets, '_write', write_nothing)
  shutil.rmtree(tmp_path / 'tfds')
  assert 'No space left on device' in refused(tmp_path, name)


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
  put_hh(tmp_path, rows=HH * 100)
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
