"""Files and folders written whole, JSON read with checks, digests.

Comes in: paths of this machine or of a bucket, bytes and plain values. Goes
out: JSON objects, sha256 digests, dotted keys, or one line that names the file
and the fix. Every other module that touches a disk or a bucket builds on this
one; it knows no format of this package.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import IO, Any

from dpo_jax import errors
from dpo_jax.storage import (
  buckets,
  faults,
  leftovers,
  readable,
  stores,
  uploads,
)
from dpo_jax.types import InputError

AnyPath = pathlib.Path | buckets.Path

_POINTER = b'version https://git-lfs'  # first bytes of a git-lfs pointer
_BLOCK = 1 << 20  # bytes read at once for a digest
# Four times the largest tokenizer.json that is published. Parsed JSON may take
# twenty times its bytes.
MAX_TEXT_BYTES = 2**27


def at(name: Any) -> AnyPath:
  """Returns the path of a name: of this machine, or of a bucket for a URL.

  Raises:
    InputError: the scheme is not supported, its package is not installed, or
      a slash of the URL is missing.
  """
  if isinstance(name, AnyPath):
    return name
  if buckets.is_url(name):
    return buckets.Path(name)
  if match := re.match(f'({"|".join(stores.SCHEMES)}):/(?!/)', str(name)):
    raise errors.refuse(
      f'{str(name)!r}',
      'has one slash behind the scheme',
      f'write {match[1]}://BUCKET/NAME',
    )
  return pathlib.Path(name)


def absolute(name: Any) -> AnyPath:
  """Returns the path of a name, with the working directory in front."""
  place = at(name)
  if isinstance(place, buckets.Path):
    return place
  return pathlib.Path(os.path.abspath(place))


def is_whole(folder: Any) -> bool:
  """Returns whether a folder is there, and all of it.

  A killed process leaves a part of a `whole_folder` in a bucket only.
  """
  folder = at(folder)
  if isinstance(folder, buckets.Path):
    return uploads.is_whole(folder)
  return folder.exists()


def read_json(
  path: str | os.PathLike, *, fix: str = 'copy it again', if_missing: str = ''
) -> dict[str, Any]:
  """Reads the JSON object in a file.

  Args:
    path: the file, UTF-8 with or without a byte order mark.
    fix: what the user can do about a damaged file.
    if_missing: what the user can do if there is no such file; '' takes `fix`.

  Raises:
    InputError: no such file, unreadable, a git-lfs pointer, not JSON, or not
      an object.
  """
  value = read_json_or_none(path, fix=fix)
  if value is None:
    raise errors.refuse(path, 'no such file', if_missing or fix)
  return value


def read_json_or_none(
  path: str | os.PathLike, *, fix: str = 'copy it again'
) -> dict[str, Any] | None:
  """Reads as `read_json`; None if there is no such file."""
  try:
    text = read_text(path, fix=fix)
  except FileNotFoundError:
    return None
  return parse_json(text, path, fix=fix)


def read_text(path: str | os.PathLike, *, fix: str = 'copy it again') -> str:
  """Reads a UTF-8 text, without its byte order mark.

  Raises:
    FileNotFoundError: no such file; callers know what its absence means.
    InputError: unreadable, not UTF-8, a git-lfs pointer, or too large.
  """
  refuse_stream(path)
  try:
    with at(path).open('rb') as file:
      data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
      raise errors.refuse(
        path,
        f'larger than {readable.size(MAX_TEXT_BYTES)}, which no such file is',
        fix,
      )
    text = data.decode('utf-8-sig')
  # A missing file has its own fix, which only the caller knows.
  except FileNotFoundError:
    raise
  except (OSError, UnicodeDecodeError) as error:
    why = getattr(error, 'strerror', None) or error
    raise errors.refuse(path, f'cannot be read ({why})', fix) from None
  if is_pointer(data):
    raise errors.refuse(
      path, 'a git-lfs pointer, not the file', 'run `git lfs pull`'
    )
  return text


def refuse_stream(path: str | os.PathLike) -> None:
  """Raises InputError for a pipe or a device: a reader may wait for ever."""
  place = at(path)
  is_there = not isinstance(place, buckets.Path) and os.path.exists(place)
  if is_there and not place.is_file() and not place.is_dir():
    raise errors.refuse(path, 'not a regular file', 'put a file in its place')


def is_pointer(start: bytes) -> bool:
  """Returns whether a file that starts so is a git-lfs pointer."""
  return start.startswith(_POINTER)


def parse_json(
  text: str | bytes,
  where: Any,
  *,
  fix: str,
  number: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
  """Parses the text of a JSON object.

  Args:
    text: UTF-8.
    where: the file, or its line, for messages.
    fix: what the user can do if the text is not an object.
    number: makes a value from the text of a number; None gives int and float.

  Raises:
    InputError: not JSON, or not an object.
  """
  # ValueError: not JSON, not UTF-8, or an integer of too many digits.
  try:
    value = json.loads(text, parse_float=number, parse_int=number)
  except (ValueError, RecursionError) as error:
    reason = str(error).splitlines()[0]
    raise errors.refuse(where, f'not JSON ({reason})', fix) from None
  if not isinstance(value, dict):
    kind = type(value).__name__
    raise errors.refuse(where, f'a JSON {kind}, not an object', fix)
  return value


def parse_object(text: str | bytes) -> dict[str, Any] | None:
  """Parses a JSON object; '' gives {}, anything but an object gives None."""
  try:
    return parse_json(text or '{}', '', fix='')
  except InputError:
    return None


def as_json(value: Any) -> Any:
  """Returns the value as it comes back from JSON: tuples become lists."""
  return json.loads(json.dumps(value))


def write_json(
  path: str | os.PathLike, value: Any, *, sort_keys: bool = False
) -> None:
  """Writes a value as indented JSON, whole or not at all.

  Raises:
    InputError: the file cannot be written.
  """
  text = json.dumps(value, indent=2, sort_keys=sort_keys) + '\n'
  with storage_errors(path), atomic_file(path) as file:
    file.write(text.encode())


def refuse_unfinished(folder: AnyPath) -> None:
  """Refuses a folder of a bucket that is not `is_whole`."""
  if isinstance(folder, buckets.Path):
    uploads.refuse_unfinished(folder)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
  """Opens a binary file that is renamed to `path` once it is written.

  A kill at any time leaves the old file or the new one. Missing parent folders
  are made. Raises plain OSErrors; `storage_errors` turns them into InputErrors.
  """
  path = at(path)
  if isinstance(path, buckets.Path):
    with uploads.new_object(path) as file:
      yield file
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch = path.with_name(leftovers.name_of(path.name))
  try:
    with open(scratch, 'wb') as file:
      yield file
      file.flush()
      # Before the rename: a crash of the machine must not leave a new name on
      # bytes that never reached the disk.
      os.fsync(file.fileno())
    os.replace(scratch, path)
  finally:
    scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(
  path: str | os.PathLike, *, may_exist: bool = False
) -> Iterator[pathlib.Path]:
  """Yields an empty folder to fill, renamed to `path` once it is filled.

  A failure or a kill leaves no folder of that name; in a bucket, one that is
  not `is_whole`. Raises plain OSErrors; `storage_errors` turns them into
  InputErrors.

  Args:
    path: the folder to make, with its parents; an empty one may exist.
    may_exist: whether an existing folder of that name is kept instead of the
      new one, also if another process makes it meanwhile. For content that
      follows from the folder's name.

  Raises:
    InputError: the folder exists, is not empty, and `may_exist` is False.
  """
  path = absolute(path)
  if isinstance(path, buckets.Path):
    with uploads.new_folder(path, may_exist=may_exist) as beside:
      yield beside
    return
  if not may_exist and _is_taken(path):
    raise errors.refuse(
      path, 'is there already', 'give another folder, or remove it'
    )
  # Beside its place: a rename is atomic within one file system only.
  leftovers.remove(path.parent)
  beside = path.with_name(leftovers.name_of(path.name, uuid.uuid4().hex[:8]))
  try:
    beside.mkdir(parents=True)
    yield beside
    try:
      # Fails if another process filled the folder meanwhile.
      os.replace(beside, path)
    except OSError:
      if not (may_exist and path.is_dir()):
        raise
  finally:
    shutil.rmtree(beside, ignore_errors=True)


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError on a path into an InputError of one line.

  A StorageError if the disk is at fault, not the command.
  """
  try:
    yield
  except buckets.BucketError:
    raise  # a refusal already
  except OSError as error:
    is_full = faults.is_of_the_disk(error)
    raise (errors.unwritten if is_full else errors.refuse)(
      error.filename or path, error.strerror or error, faults.fix(error)
    ) from error


def remove(path: AnyPath) -> None:
  """Removes a file, a link or a folder."""
  if isinstance(path, buckets.Path):
    path.rmtree()
  elif path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def load_arrays(path: Any) -> Any:
  """Opens an npz file as np.load does; refuses pickled objects."""
  import numpy as np  # slow to import, and most of this needs none

  path = at(path)
  source = path.open('rb') if isinstance(path, buckets.Path) else path
  return np.load(source, allow_pickle=False)


def digest(value: Any) -> str:
  """Returns the sha256, in hex, of a value's canonical JSON.

  Equal JSON values have equal digests: keys are sorted, tuples are lists.
  Digests are on users' disks: in DONE, in the records of checkpoints, in the
  names and seals of token stores and of reference scores. With another
  spelling all of these would be refused or made again.
  """
  return bytes_digest([canonical(value)])


def canonical(value: Any, *, allow_nan: bool = True) -> bytes:
  """Returns the one JSON spelling of a value.

  Raises:
    TypeError: not of JSON types.
    ValueError: NaN or infinity, unless `allow_nan`.
  """
  return json.dumps(value, sort_keys=True, allow_nan=allow_nan).encode()


def bytes_digest(parts: Iterable[Any]) -> str:
  """Returns the sha256, in hex, of parts (bytes or arrays) end to end."""
  total = hashlib.sha256()
  for part in parts:
    total.update(part)
  return total.hexdigest()


def file_digest(*paths: str | os.PathLike, text: str = '') -> str:
  """Returns the sha256, in hex, of the files' bytes end to end, then `text`."""
  return bytes_digest(_blocks(paths, text))


def flatten(
  tree: Any, *, keep: Collection[str] = (), prefix: str = ''
) -> dict[str, Any]:
  """Returns {dotted key: leaf} of nested mappings, in their order.

  Args:
    tree: nested mapping; may be a ConfigDict.
    keep: dotted keys of mappings that stay one leaf.
    prefix: text in front of every key.

  Returns:
    Every leaf; an empty mapping is a leaf.
  """
  leaves = {}
  # A ConfigDict is no collections.abc.Mapping, so items() decides.
  for key, value in tree.items():
    name = f'{prefix}{key}'
    if hasattr(value, 'items') and len(value) and name not in keep:
      leaves |= flatten(value, keep=keep, prefix=f'{name}.')
    else:
      leaves[name] = value
  return leaves


def _is_taken(path: pathlib.Path) -> bool:
  """Returns whether a file or a folder with content has this name."""
  return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _blocks(paths: Iterable[str | os.PathLike], text: str) -> Iterator[bytes]:
  """Yields the files' bytes in blocks, then the text's."""
  for path in paths:
    with at(path).open('rb') as file:
      while block := file.read(_BLOCK):
        yield block
  yield text.encode()
