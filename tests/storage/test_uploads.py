"""uploads.py: objects and folders that are there whole or not at all."""

import pytest

from dpo_jax.storage import buckets, files, uploads
from dpo_jax.types import InputError


def test_a_file_that_fails_leaves_the_old_one(bucket):
  path = bucket / 'a.json'
  files.write_json(path, {'a': 1})
  with pytest.raises(KeyError), files.atomic_file(path) as file:
    file.write(b'{"a": ')
    raise KeyError
  assert files.read_json(path) == {'a': 1}
  assert [p.name for p in bucket.iterdir()] == ['a.json']


def fill(folder):
  (folder / 'deep').mkdir()
  (folder / 'config.json').write_text('{}')
  (folder / 'deep' / 'x').write_text('1')
  (folder / 'a').write_text('2')


def killed_after(monkeypatch, num_puts):
  """Makes the process stop at a put of a file, as a kill does."""
  put, left = buckets.Path.put, [num_puts]

  def stops(path, file):
    left[0] -= 1
    if left[0] < 0:
      raise KeyboardInterrupt
    put(path, file)

  monkeypatch.setattr(buckets.Path, 'put', stops)


def test_a_folder_is_whole_once_its_last_file_is_there(bucket):
  with files.whole_folder(bucket / 'm') as beside:
    fill(beside)
    assert not (bucket / 'm').exists()
  assert files.is_whole(bucket / 'm')
  names = sorted(str(p.relative_to(bucket)) for p in bucket.rglob('*'))
  assert names == ['m/a', 'm/config.json', 'm/deep/x']
  with pytest.raises(InputError, match='mem://bkt/m: is there already'):
    with files.whole_folder(bucket / 'm') as beside:
      fill(beside)


@pytest.mark.parametrize('num_puts', [0, 1, 2])
def test_a_killed_writer_leaves_what_nobody_reads(
  bucket, monkeypatch, num_puts
):
  with monkeypatch.context() as patch:
    killed_after(patch, num_puts)
    with pytest.raises(KeyboardInterrupt):
      with files.whole_folder(bucket / 'm') as beside:
        fill(beside)
  # The file that readers look for first comes last.
  assert not (bucket / 'm' / 'config.json').exists()
  assert (bucket / 'm').exists() and not files.is_whole(bucket / 'm')
  with pytest.raises(InputError, match='was never finished'):
    files.refuse_unfinished(bucket / 'm')
  with pytest.raises(InputError, match='was never finished'):
    with files.whole_folder(bucket / 'm'):
      pass
  # A cache follows from its name: the next process makes it whole.
  with files.whole_folder(bucket / 'm', may_exist=True) as beside:
    fill(beside)
  assert files.is_whole(bucket / 'm')
  assert not (bucket / 'm' / uploads.UNFINISHED).exists()


def test_of_two_writers_one_is_refused(bucket):
  with pytest.raises(InputError, match='was never finished'):
    with files.whole_folder(bucket / 'm') as beside:
      fill(beside)
      (bucket / 'm' / uploads.UNFINISHED).write_bytes(b'')  # another one's
  assert not (bucket / 'm' / 'a').exists()
