"""The folder of caches that runs share: where it is, what it holds, its limit.

Comes in: the environment of the process. Goes out: a folder with `tokens/`
(encoded records), `reference/` (scores of the reference) and `compiled/`
(programs of XLA), its entries, and their removal, the longest unused first.
Everything in it can be made again; nothing in it is read without being
verified by whoever made it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from dpo_jax import errors
from dpo_jax.storage import buckets, files, readable

# {name of a subfolder: its entries, in words}
KINDS = {
  'tokens': 'encoded records',
  'reference': 'scores of a reference',
  'compiled': 'compiled programs',
}
FOLDER = 'DPO_JAX_CACHE'  # environment variable: the folder
LIMIT = 'DPO_JAX_CACHE_LIMIT'  # environment variable: bytes, as in '20GB'
_LIMIT_DEFAULT = '50GB'
_UNITS = {'': 1, 'B': 1, 'KB': 1e3, 'MB': 1e6, 'GB': 1e9, 'TB': 1e12}
# An entry that was used within a day may belong to a run that goes on.
_SAFE_SECONDS = 24 * 3600.0
_USED = (
  '.used'  # in a folder, or behind a file's name: its time is the last use
)


class Entry(NamedTuple):
  """One thing that can be removed by itself."""

  kind: str  # of KINDS
  path: files.AnyPath  # a folder or a file
  num_bytes: int
  used: float  # seconds since the epoch, of the last use


def folder(environ: Mapping[str, str] = os.environ) -> files.AnyPath:
  """The user's cache folder: $DPO_JAX_CACHE, else ~/.cache/dpo_jax."""
  if environ.get(FOLDER):
    return files.absolute(environ[FOLDER])
  home = environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return files.at(home) / 'dpo_jax'


def place(
  given: str, own: files.AnyPath, shared: files.AnyPath | None = None
) -> files.AnyPath:
  """The cache folder of a run.

  Args:
    given: config.data.cache_dir; '' = not set.
    own: the workdir, whose `cache/` is taken if the user's cannot be written.
    shared: of a sweep; None = the user's.
  """
  if given:
    return files.at(given)
  chosen = shared or folder()
  return chosen if usable(chosen) else own / 'cache'


def usable(path: files.AnyPath) -> bool:
  """Whether a folder can be made and written there."""
  if isinstance(path, buckets.Path):
    return True  # known by the first put
  nearest = path
  while not nearest.exists() and nearest != nearest.parent:
    nearest = nearest.parent
  return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def limit(environ: Mapping[str, str] = os.environ) -> int:
  """The most bytes that the folder may hold, of $DPO_JAX_CACHE_LIMIT.

  Raises:
    InputError: it is no number of bytes.
  """
  text = environ.get(LIMIT) or _LIMIT_DEFAULT
  number = text.rstrip('BKMGTbkmgt')
  try:
    size = float(number) * _UNITS[text[len(number) :].upper().strip()]
  except (KeyError, ValueError):
    size = -1.0
  if not 0 <= size < 1e18:
    raise errors.refuse(
      f'${LIMIT}', f'{text!r} is not allowed', 'use a size such as 20GB'
    )
  return int(size)


def compile_settings(
  environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
  """Variables by which jax keeps compiled programs in the folder.

  {} if the user chose a place for them, or the folder cannot be used.
  """
  place = folder(environ) / 'compiled'
  if 'JAX_COMPILATION_CACHE_DIR' in environ or not usable(place):
    return {}
  if isinstance(place, buckets.Path):
    return {'JAX_COMPILATION_CACHE_DIR': str(place)}  # jax trims no bucket
  return {
    'JAX_COMPILATION_CACHE_DIR': str(place),
    'JAX_COMPILATION_CACHE_MAX_SIZE': str(limit(environ)),
  }


def touch(path: files.AnyPath) -> None:
  """Notes that an entry is used now; a folder that is read-only stays so."""
  mark = path / _USED if path.is_dir() else _mark(path)
  try:
    mark.touch()
  except OSError:
    return


def entries(
  path: files.AnyPath, kinds: Collection[str] = tuple(KINDS)
) -> list[Entry]:
  """What a cache folder holds of these kinds, the longest unused first."""
  listed = []
  for kind in kinds:
    for entry in _children(path / kind):
      try:
        listed.append(Entry(kind, entry, _size(entry), _last_use(entry)))
      except OSError:
        continue  # another process removed it
  return sorted(listed, key=lambda entry: entry.used)


def trim(
  path: files.AnyPath,
  most: int,
  log: Callable[[str], None] = print,
  now: float | None = None,
) -> list[Entry]:
  """Removes entries until the folder holds at most `most` bytes.

  What was used within a day stays, whatever its size. Token stores whose
  writer was killed go after a day. Compiled programs are left to jax, which has
  the same limit for them.

  Args:
    path: the cache folder.
    most: bytes.
    log: takes one line if something was removed.
    now: seconds since the epoch; None = the clock's.

  Returns:
    What was removed.
  """
  now = time.time() if now is None else now
  with contextlib.suppress(OSError):  # another process removed one
    for unfinished in _unfinished(path / 'tokens', now - _SAFE_SECONDS):
      files.remove(unfinished)
  listed = entries(path, ('tokens', 'reference'))
  total, removed = sum(entry.num_bytes for entry in listed), []
  for entry in listed:
    if total <= most:
      break
    if now - entry.used < _SAFE_SECONDS:
      continue
    remove(entry)
    total -= entry.num_bytes
    removed.append(entry)
  if removed:
    log(
      f'{path}: {len(removed)} entries removed, the longest unused ones '
      f'(${LIMIT} is {readable.size(most)})'
    )
  return removed


def clear(path: files.AnyPath, kinds: Collection[str]) -> list[Entry]:
  """Removes all entries of these kinds; returns them."""
  removed = entries(path, kinds)
  for entry in removed:
    remove(entry)
  return removed


def remove(entry: Entry) -> None:
  """Removes an entry; a process that has it open keeps what it reads."""
  files.remove(entry.path)
  _mark(entry.path).unlink(missing_ok=True)


def _mark(path: files.AnyPath) -> files.AnyPath:
  return path.with_name(f'.{path.name}{_USED}')


def _children(path: files.AnyPath) -> Iterator[files.AnyPath]:
  """The entries of a subfolder; names with a dot are not whole or no entry."""
  try:
    yield from (p for p in path.iterdir() if not p.name.startswith('.'))
  except OSError:
    return


def _unfinished(path: files.AnyPath, before: float) -> list[files.AnyPath]:
  """Stores that nobody wrote to since then: their writers were killed."""
  folders = [p for p in path.glob('.*') if p.is_dir()]
  written = {p: [p, *p.iterdir()] for p in folders}
  return [
    p for p in folders if max(q.stat().st_mtime for q in written[p]) < before
  ]


def _size(path: files.AnyPath) -> int:
  if not path.is_dir():
    return path.stat().st_size
  return sum(p.stat().st_size for p in path.rglob('*') if p.is_file())


def _last_use(path: files.AnyPath) -> float:
  mark = path / _USED if path.is_dir() else _mark(path)
  return max(p.stat().st_mtime for p in (path, mark) if p.exists())
