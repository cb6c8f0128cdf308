"""Names of files in the making, and what killed processes left of them.

Comes in: a folder of this machine. Goes out: names that say which process is
writing there; at the next start, what a dead one left is removed. A process
that may be alive, or of another host, keeps its files.
"""

import contextlib
import functools
import os
import pathlib
import re
import shutil

_END = '.tmp'


def name_of(name: str, more: str = '') -> str:
  """Returns the name under which this process makes `name`.

  Args:
    name: of the file or folder that it will be.
    more: tells apart what one process makes at the same time.
  """
  parts = filter(None, (f'.{name}', more, _own(), str(os.getpid())))
  return '.'.join(parts) + _END


def remove(folder: os.PathLike | str) -> None:
  """Removes what processes of this host left in a folder, if they are dead."""
  with contextlib.suppress(OSError):
    for path in pathlib.Path(folder).glob(f'.*{_END}'):
      if _is_dead(path.name):
        if path.is_dir() and not path.is_symlink():
          shutil.rmtree(path, ignore_errors=True)
        else:
          path.unlink(missing_ok=True)


def _is_dead(name: str) -> bool:
  """Whether the process that a name names ran here and is gone."""
  match = re.fullmatch(rf'\..+\.{re.escape(_own())}\.(\d+){_END}', name)
  return bool(match) and not is_running(int(match[1]))


def is_running(number: int) -> bool:
  """Returns whether this machine has a process of that number."""
  try:
    os.kill(number, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except OSError:  # it is another user's
    return True
  return True


@functools.cache
def _own() -> str:
  """The host and the name space of this process's number, without a dot."""
  host = re.sub(r'[^\w-]', '-', os.uname().nodename)[:40]
  # Two containers of one host may count their processes alike.
  space = 0
  with contextlib.suppress(OSError):
    space = os.stat('/proc/self/ns/pid').st_ino
  return f'{host}-{space}'
