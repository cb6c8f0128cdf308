"""An error of the operating system -> what the user can do about it.

Comes in: an OSError, or what was raised because of one. Goes out: the fix for
its errno, and whether the disk is at fault or the command. Raises nothing.
"""

import errno
import os

_ELSEWHERE = 'or give another folder'
_FULL = f'make room, {_ELSEWHERE}'
_PERMISSIONS = f'mend the permissions (ls -ld, chmod, chown), {_ELSEWHERE}'
_OCCUPIED = (
  f'remove or rename the file that stands in the place of a folder, '
  f'{_ELSEWHERE}'
)
_OPEN_FILES = 'raise the limit on open files (ulimit -n), then try again'
_FIXES = {
  errno.ENOSPC: _FULL,
  errno.EDQUOT: f'make room in your quota, {_ELSEWHERE}',
  errno.EFBIG: f'raise the limit on file sizes (ulimit -f), {_ELSEWHERE}',
  errno.EIO: f'the device failed: check it (dmesg), {_ELSEWHERE}',
  errno.EROFS: f'the disk is read-only: mount it for writing, {_ELSEWHERE}',
  errno.ESTALE: f'the server lost it: mount it again, {_ELSEWHERE}',
  errno.ENOENT: f'it is gone, or a folder above it: put it back, {_ELSEWHERE}',
  errno.EACCES: _PERMISSIONS,
  errno.EPERM: _PERMISSIONS,
  errno.EEXIST: _OCCUPIED,
  errno.ENOTDIR: _OCCUPIED,
  errno.EISDIR: (
    f'remove or rename the folder that stands in the place of a file, '
    f'{_ELSEWHERE}'
  ),
  errno.EMFILE: _OPEN_FILES,
  errno.ENFILE: _OPEN_FILES,
  errno.ENAMETOOLONG: 'give a shorter name',
  errno.ELOOP: f'its links lead in a circle: remove one, {_ELSEWHERE}',
  errno.EBUSY: 'another program uses it: end that one, then try again',
  errno.ENOMEM: 'free memory, then try again',
}
# Of a write: a full disk, a quota, a limit on file sizes, a broken device, a
# disk that became read-only, a server that lost the file.
_OF_THE_DISK = {
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
  *(errno.EROFS, errno.ESTALE, errno.ENOENT),
}


def is_of_the_disk(error: OSError) -> bool:
  """Returns whether the disk is at fault, and not the command."""
  return error.errno in _OF_THE_DISK


def fix(error: BaseException) -> str:
  """Returns what the user can do about an error.

  Args:
    error: an OSError, or one that was raised because of it, or that only
      quotes its text, as libraries do.
  """
  return _FIXES.get(_number(error), f'mend what it says, {_ELSEWHERE}')


def _number(error: BaseException) -> int | None:
  """The errno of an error, of its cause, or of the text that it quotes."""
  seen: list[BaseException] = []
  link: BaseException | None = error
  while link is not None and link not in seen:
    seen.append(link)
    if isinstance(link, OSError) and link.errno is not None:
      return link.errno
    link = link.__cause__ or link.__context__
  text = ' '.join(map(str, seen))
  return next((n for n in _FIXES if os.strerror(n) in text), None)
