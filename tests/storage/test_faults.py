"""faults: each errno has a fix of its own, wherever it is found."""

import errno
import os
import shutil

import pytest

from dpo_jax import types
from dpo_jax.storage import faults, files

_WORDS = {
  errno.ENOSPC: 'make room',
  errno.EDQUOT: 'quota',
  errno.EFBIG: 'ulimit -f',
  errno.EIO: 'dmesg',
  errno.EROFS: 'mount it for writing',
  errno.ESTALE: 'mount it again',
  errno.ENOENT: 'put it back',
  errno.EACCES: 'permissions',
  errno.EPERM: 'permissions',
  errno.ENOTDIR: 'the file that stands',
  errno.EEXIST: 'the file that stands',
  errno.EISDIR: 'the folder that stands',
  errno.EMFILE: 'ulimit -n',
  errno.ENAMETOOLONG: 'shorter',
  errno.ELOOP: 'links',
  errno.EBUSY: 'another program',
}


@pytest.mark.parametrize('number', _WORDS, ids=errno.errorcode.get)
def test_an_errno_has_its_own_fix(number):
  with pytest.raises(types.InputError) as refusal:
    with files.storage_errors('folder'):
      raise OSError(number, os.strerror(number), 'folder/file')
  where, fix = str(refusal.value).split('; fix: ')
  assert where == f'folder/file: {os.strerror(number)}'
  assert _WORDS[number] in fix
  if number not in (errno.ENOSPC, errno.EDQUOT):
    assert 'room' not in fix


def test_an_errno_is_found_in_causes_and_in_quoted_texts():
  full = OSError(errno.ENOSPC, 'x')
  wrapped = ValueError('save failed')
  wrapped.__cause__ = full
  quoted = ValueError("No space left on device [os_error_code='28']")
  for error in (full, wrapped, quoted):
    assert 'make room' in faults.fix(error)
  circle = ValueError('nothing of the system')
  circle.__context__ = circle
  assert 'room' not in faults.fix(circle)


def test_a_folder_that_is_gone_says_so_and_a_full_disk_is_no_bad_input(
  tmp_path,
):
  folder = tmp_path / 'gone'
  folder.mkdir()
  shutil.rmtree(folder)
  with pytest.raises(types.StorageError, match='gone.*put it back'):
    with files.storage_errors(folder):
      (folder / 'file').write_text('x')
  try:
    with open('/dev/full', 'w') as full:
      full.write('x' * 10**5)
  except OSError as error:
    assert faults.is_of_the_disk(error) and 'make room' in faults.fix(error)
  else:
    raise AssertionError('a full disk took it')
  assert not faults.is_of_the_disk(OSError(errno.EACCES, 'x'))
