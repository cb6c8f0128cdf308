"""caches: the folder, what it holds, its limit."""

import os
import pathlib

import pytest

from dpo_jax.run import caches as caches_mode
from dpo_jax.storage import caches
from dpo_jax.types import InputError

DAY = 24 * 3600.0
NOW = 1e9


@pytest.fixture
def folder(tmp_path):
  """Three entries of 1000 bytes, unused for 3, 2 and 0.5 days."""
  for name, age in (('tokens/a', 3), ('reference/b.npz', 2), ('tokens/c', 0.5)):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.startswith('tokens'):
      path.mkdir()
      path = path / 'table'
    path.write_bytes(bytes(1000))
    for each in (path, tmp_path / name):
      os.utime(each, (NOW - age * DAY, NOW - age * DAY))
  # What is being written is no entry.
  (tmp_path / 'tokens' / '.d.1234').mkdir()
  return tmp_path


def names(entries):
  return [entry.path.name for entry in entries]


def test_the_longest_unused_comes_first(folder):
  listed = caches.entries(folder)
  assert names(listed) == ['a', 'b.npz', 'c']
  assert [entry.num_bytes for entry in listed] == [1000] * 3
  caches.touch(folder / 'tokens' / 'a')
  caches.touch(folder / 'reference' / 'b.npz')
  assert names(caches.entries(folder))[0] == 'c'
  assert [entry.num_bytes for entry in listed] == [1000] * 3


@pytest.mark.parametrize(
  ('most', 'left'),
  [
    (3000, ['a', 'b.npz', 'c']),
    (2500, ['b.npz', 'c']),
    (1000, ['c']),
    (0, ['c']),
  ],
)
def test_trimming_keeps_what_was_used_within_a_day(folder, most, left):
  lines = []
  removed = caches.trim(folder, most, lines.append, NOW)
  assert names(caches.entries(folder)) == left
  assert len(removed) == 3 - len(left)
  assert len(lines) == bool(removed)


def test_trimming_removes_stores_of_killed_writers(folder):
  for name, age in (('.k.old', 2), ('.k.new', 0.5)):
    scratch = folder / 'tokens' / name
    scratch.mkdir()
    for path in (scratch / 'tokens.array_record', scratch):
      path.touch()
      os.utime(path, (NOW - age * DAY, NOW - age * DAY))
  caches.trim(folder, 10**9, print, NOW)
  left = [p.name for p in (folder / 'tokens').glob('.k.*')]
  assert left == ['.k.new']


def test_clearing_takes_kinds(folder, capsys):
  assert caches_mode.main(workdir='', clear='') == 0
  assert str(caches.folder()) in capsys.readouterr().out
  removed = caches.clear(folder, ['tokens'])
  assert sorted(names(removed)) == ['a', 'c']
  assert names(caches.entries(folder)) == ['b.npz']
  assert 'reference       1' in caches_mode.describe(folder, NOW)
  with pytest.raises(InputError, match="--clear: 'token'.*'tokens'"):
    caches_mode.main(workdir='', clear='token')


def test_the_folder_follows_the_environment():
  assert caches.folder({'DPO_JAX_CACHE': '/x/y'}) == pathlib.Path('/x/y')
  own = caches.folder({'XDG_CACHE_HOME': '/home/me/c'})
  assert own == pathlib.Path('/home/me/c/dpo_jax')


def test_a_run_s_folder(tmp_path):
  own = pathlib.Path('run')
  assert caches.place('given', own) == pathlib.Path('given')
  assert caches.place('', own, tmp_path) == tmp_path
  (tmp_path / 'file').touch()
  assert caches.place('', own, tmp_path / 'file' / 'x') == own / 'cache'


@pytest.mark.parametrize(
  ('text', 'size'), [('', 5e10), ('20GB', 2e10), ('1.5 MB', 1.5e6), ('7', 7)]
)
def test_the_limit(text, size):
  assert caches.limit({'DPO_JAX_CACHE_LIMIT': text}) == size


@pytest.mark.parametrize('text', ['x', '-1GB', '1PB', 'GB', 'nan'])
def test_a_bad_limit_is_refused(text):
  with pytest.raises(InputError, match=r'\$DPO_JAX_CACHE_LIMIT.*20GB'):
    caches.limit({'DPO_JAX_CACHE_LIMIT': text})


def test_compiled_programs_go_there_unless_the_user_chose(tmp_path):
  settings = caches.compile_settings({'DPO_JAX_CACHE': str(tmp_path)})
  assert settings == {
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled'),
    'JAX_COMPILATION_CACHE_MAX_SIZE': '50000000000',
  }
  assert caches.compile_settings({'JAX_COMPILATION_CACHE_DIR': ''}) == {}


def test_a_cache_in_a_bucket(bucket):
  environ = {caches.FOLDER: 'mem://bkt/cache'}
  folder = caches.folder(environ)
  assert folder == bucket / 'cache' and caches.usable(folder)
  # jax trims no bucket.
  settings = caches.compile_settings(environ)
  assert settings == {'JAX_COMPILATION_CACHE_DIR': 'mem://bkt/cache/compiled'}
  (folder / 'tokens' / 'a' / 'meta.json').write_bytes(b'123')
  (folder / 'reference' / 'b.npz').write_bytes(b'12')
  caches.touch(folder / 'tokens' / 'a')
  caches.touch(folder / 'reference' / 'b.npz')
  listed = {e.path.name: e.num_bytes for e in caches.entries(folder)}
  assert listed == {'a': 3, 'b.npz': 2}
  caches.clear(folder, ['tokens', 'reference'])
  assert not folder.exists()
