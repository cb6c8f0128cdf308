"""buckets.py: a URL with the methods of a path, and stores that fail."""

import pytest

from dpo_jax.storage import buckets, files, stores
from dpo_jax.types import InputError


def test_a_bucket_is_used_like_a_folder(bucket):
  run = bucket / 'runs' / 'x'
  assert not run.exists() and not run.is_dir() and run.parent == bucket / 'runs'
  run.mkdir(parents=True)
  (run / 'samples' / 'a.jsonl').write_bytes(b'1\n')
  (run / 'samples' / 'b.txt').write_bytes(b'22')
  (run / 'config.json').write_bytes(b'{}')
  assert run.is_dir() and not run.is_file() and (run / 'config.json').is_file()
  assert sorted(p.name for p in run.iterdir()) == ['config.json', 'samples']
  listed = dict(run.entries())
  assert listed == {run / 'config.json': False, run / 'samples': True}
  assert list((run / 'samples').glob('*.jsonl')) == [run / 'samples/a.jsonl']
  assert list(bucket.glob('runs/*/config.json')) == [run / 'config.json']
  assert len(list(bucket.rglob('*'))) == 3
  file = run / 'samples' / 'b.txt'
  assert (file.name, file.stem, file.suffix) == ('b.txt', 'b', '.txt')
  assert str(file) == 'mem://bkt/runs/x/samples/b.txt'
  assert file.parents[-1] == bucket == bucket.parent
  assert file.read_bytes() == file.open('rb').read() == b'22'
  assert file.stat().st_size == 2 and file.stat().st_mtime > 1e9
  assert str(file.relative_to(run)) == 'samples/b.txt'
  file.unlink()
  file.unlink(missing_ok=True)
  with pytest.raises(FileNotFoundError):
    file.read_bytes()
  run.rmtree()
  run.rmtree()
  assert not run.exists() and list(run.glob('*')) == []


def test_a_new_object_takes_no_place_of_another(bucket):
  (bucket / 'a').write_bytes(b'1', new=True)
  with pytest.raises(FileExistsError):
    (bucket / 'a').write_bytes(b'2', new=True)
  assert (bucket / 'a').read_bytes() == b'1'


def test_two_dots_lead_up(bucket):
  assert bucket / 'a' / '../b' == bucket / 'b'
  assert files.at('mem://bkt/a/../b') == bucket / 'b'
  with pytest.raises(InputError, match='names no bucket'):
    files.at('mem://..')


def test_a_name_with_wildcards_is_no_other_name(bucket):
  # To fsspec's `rm`, 'a*' would mean 'ab' too.
  (bucket / 'a*' / 'x').write_bytes(b'')
  (bucket / 'ab' / 'x').write_bytes(b'')
  (bucket / 'a*').rmtree()
  (bucket / 'a').rmtree()
  assert list(bucket.rglob('*')) == [bucket / 'ab' / 'x']
  with pytest.raises(InputError, match='has a wildcard in it'):
    files.at('mem://bkt/a*')
  with pytest.raises(InputError, match='has a wildcard in it'):
    buckets.check_checkpoints(bucket / 'a[1]')


def test_no_call_of_the_system_takes_one_for_a_file(bucket, tmp_path):
  # As text it would make a folder 'mem:' here, and the run would be lost.
  with pytest.raises(TypeError):
    open(bucket / 'a', 'wb')


@pytest.mark.parametrize(
  'name, words',
  [
    ('foo://a/b', 'foo:// is not supported; fix: use a path'),
    ('gss://a/b', "did you mean 'gs'"),
    ('gs:/a/b', 'has one slash behind the scheme; fix: write gs://'),
    ('gs://', 'names no bucket'),
  ],
)
def test_what_is_no_store_is_refused_at_once(name, words, monkeypatch):
  monkeypatch.setattr(stores.importlib.util, 'find_spec', lambda name: True)
  with pytest.raises(InputError, match=words) as refused:
    files.at(name)
  assert '\n' not in str(refused.value)


def test_a_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(stores.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match="'gs://a/b'.* pip install gcsfs"):
    files.at('gs://a/b')


def test_an_error_of_the_store_is_no_absence(bucket, monkeypatch):
  # fsspec's own `exists` says False here: the run would start over.
  class Failing:
    def info(self, name):
      raise RuntimeError('401\nno credentials')

  monkeypatch.setattr(stores, 'filesystem', lambda scheme: Failing())
  for ask in (bucket.exists, bucket.is_dir, bucket.is_file, bucket.stat):
    with pytest.raises(InputError, match='mem://bkt: the store fails .401 no'):
      ask()
  with pytest.raises(InputError, match='the store fails'):
    with files.storage_errors(bucket):
      bucket.exists()


def test_where_nothing_can_be_written_is_said_first(bucket, monkeypatch):
  buckets.check_writes(bucket / 'runs')
  assert not bucket.exists()
  with pytest.raises(InputError, match='takes no checkpoints'):
    buckets.check_checkpoints(bucket)
  scheme = stores.SCHEMES['mem']._replace(writes=False)
  monkeypatch.setitem(stores.SCHEMES, 'mem', scheme)
  with pytest.raises(InputError, match='read only'):
    buckets.check_writes(bucket)
