"""append.py: texts that grow, on a disk and in a bucket."""

import pytest

from dpo_jax.storage import append
from dpo_jax.types import InputError


@pytest.mark.parametrize('place', ['disk', 'bucket'])
def test_lines_are_added_and_kept(place, tmp_path, bucket):
  path = (tmp_path if place == 'disk' else bucket) / 'new' / 'a.txt'
  path.parent.mkdir()
  for line in ('one\n', 'twö\n'):
    with append.open_text(path) as file:
      file.write(line)
      append.sync(file)
      assert path.read_bytes().decode().endswith(line)
      assert file.name == str(path)
  assert path.read_bytes().decode() == 'one\ntwö\n'
  append.close(file)  # again is harmless


def test_nothing_is_put_for_another_process(bucket):
  def taken():
    raise InputError('taken')

  file = append.open_text(bucket / 'a', taken)
  file.write('1')
  for put in (append.sync, append.close):
    with pytest.raises(InputError, match='taken'):
      put(file)
  assert not bucket.exists() and file.closed


def test_an_object_is_put_now_and_then(bucket, monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(append.time, 'monotonic', lambda: clock[0])
  file = append.open_text(bucket / 'a')
  file.write('1')
  file.flush()
  assert not (bucket / 'a').exists()
  clock[0] = 31.0
  file.flush()
  assert (bucket / 'a').read_bytes() == b'1'
  file.write('2')
  file.flush()
  assert (bucket / 'a').read_bytes() == b'1'
  file.close()
  assert (bucket / 'a').read_bytes() == b'12'
