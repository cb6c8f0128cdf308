"""Paths of object stores (gs://bucket/name), with the methods of pathlib.

Comes in: a URL. Goes out: a `Path` that the rest of the package uses like a
pathlib.Path, or one line that says why the store cannot be used. An object is
put whole or not at all. A store has no folders, renames or appends: names with
a common start count as a folder, and `files` and `append` build the rest.

A Path is no os.PathLike on purpose: handing one to `open` or `os` fails at
once, where a URL as text would make a folder named `gs:` on this machine.
"""

import datetime
import errno
import fnmatch
import io
import os
import pathlib
import re
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from dpo_jax import errors
from dpo_jax.storage import stores
from dpo_jax.types import InputError

_URL = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://(.*)', re.DOTALL)
_FIX = 'check the name, the credentials and the network'


class BucketError(OSError, InputError):
  """A store failed: a refusal of one line, and an OSError for who expects it.

  `storage_errors` passes it on as it is.
  """


class Stat(NamedTuple):
  """The part of os.stat_result that a store knows."""

  st_size: int  # bytes
  st_mtime: float  # seconds since the epoch, by the store's clock


def is_url(name: Any) -> bool:
  """Returns whether a name is a URL, of any scheme."""
  return isinstance(name, Path) or bool(_URL.match(str(name)))


class Path:
  """A name in an object store, such as gs://bucket/runs/x.

  Raises:
    InputError: the scheme is not supported, or its package is not installed.
  """

  def __init__(self, url: str):
    """Takes the URL apart; asks the store nothing."""
    match = _URL.fullmatch(url)
    self.scheme = match[1] if match else ''
    self._pure = _normal(match[2].strip('/') if match else '')
    stores.check(url, self.scheme, self._pure)

  def __str__(self) -> str:
    """Returns the URL."""
    return f'{self.scheme}://{self._pure}'

  __repr__ = as_posix = __str__

  def __hash__(self) -> int:
    return hash(str(self))

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, Path) and str(self) == str(other)

  def __lt__(self, other: Any) -> bool:
    return str(self) < str(other)

  def __truediv__(self, name: Any) -> 'Path':
    """Returns a name below this one; '..' leads up, as in pathlib."""
    return self._new(self._pure / str(name))

  @property
  def name(self) -> str:
    """The last part."""
    return self._pure.name

  @property
  def stem(self) -> str:
    """The last part without its suffix."""
    return self._pure.stem

  @property
  def suffix(self) -> str:
    """The suffix of the last part."""
    return self._pure.suffix

  @property
  def parts(self) -> tuple[str, ...]:
    """The scheme with the bucket, and the parts below it."""
    return (f'{self.scheme}://{self._pure.parts[0]}', *self._pure.parts[1:])

  @property
  def parent(self) -> 'Path':
    """The folder around it; a bucket is its own."""
    return self._new(self._pure.parent) if len(self._pure.parts) > 1 else self

  @property
  def parents(self) -> list['Path']:
    """The folders around it, the nearest first, the bucket last."""
    return [self._new(path) for path in self._pure.parents if path.parts]

  def with_name(self, name: str) -> 'Path':
    """Returns the name beside this one."""
    return self._new(self._pure.with_name(name))

  def relative_to(self, other: 'Path') -> pathlib.PurePosixPath:
    """Returns the part below another path of the same bucket."""
    return self._pure.relative_to(other._pure)

  def resolve(self) -> 'Path':
    """Returns itself: a store has no links."""
    return self

  expanduser = absolute = resolve

  def is_symlink(self) -> bool:
    """Returns False: a store has no links."""
    return False

  def exists(self) -> bool:
    """Returns whether there is an object, or one below this name."""
    return self._info() is not None

  def is_file(self) -> bool:
    """Returns whether there is an object of this name."""
    info = self._info()
    return info is not None and info['type'] != 'directory'

  def is_dir(self) -> bool:
    """Returns whether there is an object below this name."""
    info = self._info()
    return info is not None and info['type'] == 'directory'

  def stat(self) -> Stat:
    """Returns size and time; FileNotFoundError if there is none."""
    info = self._info()
    if info is None:
      raise FileNotFoundError(errno.ENOENT, os.strerror(2), str(self))
    return Stat(int(info.get('size') or 0), _seconds(info))

  def version(self) -> str:
    """Returns a text that changes with the object's bytes."""
    info = self._info() or {}
    keys = ('etag', 'ETag', 'generation', 'size', 'mtime', 'created')
    return ' '.join(str(info[key]) for key in keys if key in info)

  def iterdir(self) -> Iterator['Path']:
    """Yields the names directly below; FileNotFoundError if there is none."""
    for path, _ in self.entries():
      yield path

  def entries(self) -> Iterator[tuple['Path', bool]]:
    """Yields as `iterdir`, each with whether it is a folder; one listing."""
    for entry in self._call('ls', detail=True):
      name = str(entry['name']).rstrip('/').rpartition('/')[2]
      # A store may list a folder in itself, as an empty object.
      if name.strip('.') and entry['name'].strip('/') != str(self._pure):
        yield self / name, entry['type'] == 'directory'

  def glob(self, pattern: str) -> Iterator['Path']:
    """Yields what fits, one folder after another; no `**`."""
    first, _, others = pattern.partition('/')
    if not any(c in first for c in '*?['):
      below = [self / first]
    else:
      try:
        listed = list(self.iterdir())
      except FileNotFoundError:
        return
      below = [p for p in listed if fnmatch.fnmatchcase(p.name, first)]
    for path in below:
      if others:
        yield from path.glob(others)
      elif path.exists():
        yield path

  def rglob(self, pattern: str) -> Iterator['Path']:
    """Yields the objects below, at any depth, whose last part fits."""
    for name in self._call('find'):
      path = self._new(pathlib.PurePosixPath(str(name).strip('/')))
      # A name with '..' in it may lead out of this folder.
      inside = path._pure.is_relative_to(self._pure)
      if inside and fnmatch.fnmatchcase(path.name, pattern):
        yield path

  def read_bytes(self) -> bytes:
    """Returns the object; FileNotFoundError if there is none."""
    return self._call('cat_file')

  def read_text(self, encoding: str = 'utf-8') -> str:
    """Returns the object as text."""
    return self.read_bytes().decode(encoding)

  def open(self, mode: str = 'rb') -> IO[Any]:
    """Opens the whole object for reading; memory holds it."""
    if mode not in ('r', 'rb'):
      raise ValueError(f'mode {mode!r}: objects are put whole, see files.py')
    file = io.BytesIO(self.read_bytes())
    return io.TextIOWrapper(file, 'utf-8') if mode == 'r' else file

  def write_bytes(self, data: bytes, *, new: bool = False) -> None:
    """Puts an object in one piece.

    Args:
      data: its bytes.
      new: FileExistsError if there is one already; the store compares, so of
        two processes one fails.
    """
    self._call('pipe_file', data, **({'mode': 'create'} if new else {}))

  def put(self, file: str | os.PathLike) -> None:
    """Puts an object from a file of this machine, whole or not at all."""
    self._call('put_file', first=(os.fspath(file),))

  def fetch(self, file: str | os.PathLike) -> None:
    """Copies the object into a file of this machine."""
    self._call('get_file', os.fspath(file))

  def touch(self) -> None:
    """Puts an empty object; its time is that of the store."""
    self.write_bytes(b'')

  def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
    """Does nothing: a folder is there with its first object."""

  def rmdir(self) -> None:
    """Does nothing: a folder goes with its last object."""

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes the object."""
    try:
      self._call('rm_file')
    except FileNotFoundError:
      if not missing_ok:
        raise

  def copy_to(self, target: 'Path') -> None:
    """Copies all objects below this name to below another, in the store."""
    for path in self.rglob('*'):
      path._call('cp_file', str((target / path.relative_to(self))._pure))

  def rmtree(self) -> None:
    """Removes all objects below this name, if there are any."""
    # Not fsspec's `rm`, to which `*` in a name means other objects too.
    for path in list(self.rglob('*')):
      path.unlink(missing_ok=True)
    self.unlink(missing_ok=True)

  def _new(self, pure: pathlib.PurePosixPath) -> 'Path':
    other = object.__new__(type(self))
    other.scheme = self.scheme
    other._pure = _normal(pure)
    return other

  def _info(self) -> dict[str, Any] | None:
    """What the store says of the name; None if it has none."""
    # Not fsspec's `exists`, which takes every error for an absent object: a
    # run would start over.
    try:
      return self._call('info')
    except FileNotFoundError:
      return None

  def _call(
    self, method: str, *args: Any, first: tuple = (), **keywords: Any
  ) -> Any:
    """Calls a method of the store's file system with this name."""
    system = stores.filesystem(self.scheme)
    call: Callable = getattr(system, method)
    try:
      return call(*first, str(self._pure), *args, **keywords)
    except FileExistsError:
      raise
    except FileNotFoundError as error:
      raise FileNotFoundError(
        errno.ENOENT, 'no such object or bucket', str(self)
      ) from error
    # Every store has errors of its own: HTTP, credentials, sockets.
    except Exception as error:
      raise failed(self, error) from error


def check_checkpoints(path: Path) -> None:
  """Readies a store for Orbax; refuses one to which it does not write."""
  stores.check_name(str(path))
  if not stores.SCHEMES[path.scheme].checkpoints:
    able = [f'{k}://' for k, v in stores.SCHEMES.items() if v.checkpoints]
    raise errors.refuse(
      path,
      f'{path.scheme}:// takes no checkpoints',
      f'give a --workdir of this machine, or of {" or ".join(able)}',
    )
  stores.filesystem(path.scheme)


def check_writes(path: Path) -> None:
  """Puts an object below a path and removes it.

  Raises:
    InputError: no such bucket, no permission, no credentials, or a scheme
      that is read only.
  """
  if not stores.SCHEMES[path.scheme].writes:
    raise errors.refuse(
      path, f'{path.scheme}:// is read only here', 'give another folder'
    )
  probe = path / f'.probe-{uuid.uuid4().hex[:12]}'
  try:
    probe.write_bytes(b'')
    probe.unlink(missing_ok=True)
  except FileNotFoundError:
    raise errors.refuse(
      path,
      f'there is no bucket {path.parts[0]}',
      'make it, or correct the name',
    ) from None


def failed(path: Any, error: BaseException) -> BucketError:
  """Returns the refusal of a call that failed."""
  words = ' '.join(str(error).split())[:160] or type(error).__name__
  return BucketError(
    str(errors.refuse(path, f'the store fails ({words})', _FIX))
  )


def _normal(name: Any) -> pathlib.PurePosixPath:
  """The name without '.' and '..'."""
  return pathlib.PurePosixPath(os.path.normpath(name))


def _seconds(info: dict[str, Any]) -> float:
  """The time of an object, seconds since the epoch; 0 if the store has none."""
  for key in ('mtime', 'LastModified', 'last_modified', 'created'):
    value = info.get(key)
    if isinstance(value, datetime.datetime):
      return value.timestamp()
    if isinstance(value, int | float):
      return float(value)
  return 0.0
