"""Encoded records on disk: tokens in array_record, the rest in one table.

Comes in: encoded records, and the hex key of everything that shaped them. Goes
out: a `TokenStore`, read by index. A store is written whole or not at all, and
every byte is verified before it is used. Encodes nothing and does not choose
the folder.
"""

import contextlib
import copy
import itertools
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from dpo_jax import errors
from dpo_jax.data.batches import length_table
from dpo_jax.storage import files, packed_records, scratch
from dpo_jax.types import EncodedRecord, InputError

FORMAT = 2  # part of the key, so stores of other formats are not opened
_TOKENS = 'tokens.array_record'
_TABLE = 'table.npz'
_META = 'meta.json'
# Columns of the table that say which completion is better, and by how much.
_JUDGEMENTS = (
  *('comparison_offsets', 'winner', 'loser', 'weight', 'margin'),
  *('labels', 'scores', 'quantiles'),
)
_CHUNK = 1000  # records that `write` packs at once


def key(
  data_fingerprints: Sequence[str],
  tokenizer_fingerprint: str,
  template: str | None,
  options: Any,
) -> str:
  """Returns the name of a store, 32 hex digits of a sha256 of its inputs.

  Args:
    data_fingerprints: fingerprint of each source, in order.
    tokenizer_fingerprint: fingerprint of the tokenizer's files.
    template: the chat template's source, or None.
    options: everything else that changes the tokens, mixture included:
      `encode.EncodeOptions` or another NamedTuple or mapping of plain values.
  """
  if hasattr(options, '_asdict'):
    options = options._asdict()
  parts = [FORMAT, list(data_fingerprints), tokenizer_fingerprint, template]
  return files.digest([*parts, dict(options)])[:32]


def write(
  folder: str | os.PathLike,
  records: Iterable[EncodedRecord],
  meta: Mapping[str, Any],
) -> 'TokenStore':
  """Writes a store and opens it; a failure leaves nothing behind.

  Args:
    folder: the store's folder. If another process makes it meanwhile, its
      store is used.
    records: the records, in the order of their indices.
    meta: plain values, returned as `TokenStore.meta`.

  Raises:
    InputError: the store cannot be written.
  """
  records = iter(records)
  with draft(folder) as new:
    chunks = iter(lambda: list(itertools.islice(records, _CHUNK)), [])
    new.fill(map(packed_records.pack, chunks))
    new.seal(meta)
  return open_store(folder)


@contextlib.contextmanager
def draft(folder: str | os.PathLike) -> Iterator['Draft']:
  """Yields a store to fill; it gets its name when the context ends well.

  An exception or a kill leaves no store of that name. If another process makes
  it meanwhile, its store stays.

  Raises:
    InputError: the store cannot be written.
  """
  folder = files.at(folder)
  missing = [parent for parent in folder.parents if not parent.exists()]
  try:
    with contextlib.ExitStack() as stack:
      with _refused(folder):
        whole = files.whole_folder(folder, may_exist=True)
        beside = stack.enter_context(whole)
      yield Draft(beside, folder)
      with _refused(folder):
        stack.close()
  except BaseException:
    # Refused data leaves no trace: the folders above go too, if empty.
    with contextlib.suppress(OSError):
      for parent in missing:
        parent.rmdir()
    raise


def open_store(folder: str | os.PathLike) -> 'TokenStore':
  """Opens a store and verifies every byte against the digests in it.

  Raises:
    InputError: a file is missing or damaged; names it.
  """
  folder = files.at(folder)
  fields = _read_seal(folder)
  # Tokens are mapped: of a bucket, a copy is.
  places = {name: _local(folder / name) for name in fields['files']}
  for name, sha256 in fields['files'].items():
    _verify(folder / name, places[name], sha256)
  with np.load(places[_TABLE], allow_pickle=False) as arrays:
    columns = dict(arrays)
  # A store without them, as every one was before there were any.
  columns.setdefault('quantiles', np.full(columns['scores'].shape, np.nan))
  table = length_table.LengthTable(**columns)
  return TokenStore(places[_TOKENS], table, fields['digest'], fields['meta'])


class Draft:
  """A store that is being written, from `draft`: first filled, then sealed.

  Attributes:
    table: `LengthTable` of the records, once it is filled.
  """

  def __init__(self, folder: pathlib.Path, name: files.AnyPath):
    """Called by draft: where the files are, and the store's later name."""
    self.table = length_table.make_table([])
    self._folder = folder
    self._name = name
    self._digest = ''

  def fill(self, parts: Iterable[packed_records.Packed]) -> None:
    """Writes the records of the parts, in order; holds none of their tokens."""
    tables = [self.table]

    def records() -> Iterator[tuple[bytes, bytes]]:
      for part in parts:
        tables.append(part.table)
        yield from zip(part.data, part.sizes, strict=True)

    path = self._folder / _TOKENS
    self._digest = files.bytes_digest(
      _write_tokens(path, records(), self._name)
    )
    self.table = length_table.join(tables)

  def seal(self, meta: Mapping[str, Any]) -> 'TokenStore':
    """Writes the table and the seal over all; returns the store.

    What it reads may be read after the context too, whatever the folder's name.
    """
    table = self.table
    arrays = table._asdict()
    if np.isnan(table.quantiles).all():
      del arrays['quantiles']
    with _refused(self._name):
      np.savez(self._folder / _TABLE, allow_pickle=False, **arrays)
      seal = {
        'format': FORMAT,
        'digest': self._digest,
        'files': {
          name: files.file_digest(self._folder / name)
          for name in (_TOKENS, _TABLE)
        },
        'meta': dict(meta),
      }
      seal['seal'] = files.digest(seal)
      data = files.canonical(seal, allow_nan=False)
      (self._folder / _META).write_bytes(data)
    tokens = self._folder / _TOKENS
    return TokenStore(tokens, table, self._digest, seal['meta'])


class TokenStore:
  """Records by index: `store[i] -> EncodedRecord`, `len(store)`.

  Threads may share a store.

  Attributes:
    table: `LengthTable` of everything but the tokens.
    digest: sha256, in hex, of token ids, ends of prompts and completions, and
      masks of untrained tokens. Labels, scores and uids are not in it.
    meta: the plain values given to `write`.
  """

  def __init__(
    self,
    path: files.AnyPath,
    table: length_table.LengthTable,
    digest: str,
    meta: dict[str, Any],
  ):
    """Called by open_store, after it verified the files."""
    self.table = table
    self.digest = digest
    self.meta = meta
    self._lock = threading.Lock()
    self._reader = array_record_module.ArrayRecordReader(
      str(path), options='readahead_buffer_size:0,max_parallelism:0'
    )

  def __len__(self) -> int:
    """Returns the number of records."""
    return len(self.table.prompt_lengths)

  def with_table(self, table: length_table.LengthTable) -> 'TokenStore':
    """Returns the same tokens under other judgements."""
    other = copy.copy(self)
    other.table = table
    return other

  @property
  def uids(self) -> list[str]:
    """Returns the records' uids, in order."""
    return [uid.decode() for uid in self.table.uids]

  @property
  def judgements(self) -> str:
    """Returns a digest of what is said of the tokens.

    That is comparisons, weights, margins, labels and scores: what `digest`
    leaves out, except the uids.
    """
    table = self.table._asdict()

    def parts() -> Iterator[bytes]:
      for name in _JUDGEMENTS:
        array = np.ascontiguousarray(table[name])
        yield f'{name}{array.dtype.str}{array.shape}'.encode()
        yield array.tobytes()

    return files.bytes_digest(parts())

  def __getitem__(self, i: int) -> EncodedRecord:
    """Reads record i, equal to the one that was written."""
    return self.read_all([i])[0]

  def read_all(self, indices: Sequence[int]) -> list[EncodedRecord]:
    """Reads records at once: each request has a price of its own."""
    for i in indices:
      if not 0 <= i < len(self):
        raise IndexError(f'record {i} of a store of {len(self)}')
    # Threads share the reader, so they take turns.
    with self._lock:
      data = self._reader.read(indices) if indices else []
    table = self.table
    return [packed_records.unpack(table, i, x) for i, x in zip(indices, data)]


def _write_tokens(
  path: files.AnyPath,
  records: Iterable[tuple[bytes, bytes]],
  folder: files.AnyPath,
) -> Iterator[bytes]:
  """Writes (data, sizes) of records; yields what the store's digest covers."""
  # One record per group, so that a record is read without its neighbours.
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  try:
    for data, sizes in records:
      with _refused(folder):
        _on_disk(writer.write, data)
      yield sizes + data
  finally:
    with _refused(folder):
      _on_disk(writer.close)


def _on_disk(call: Callable[..., None], *args: Any) -> None:
  """Calls array_record, which reports errors of the disk as RuntimeError."""
  try:
    call(*args)
  except RuntimeError as e:
    raise OSError(str(e)) from e


@contextlib.contextmanager
def _refused(folder: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError of writing into the refusal of the store."""
  try:
    yield
  except OSError as e:
    raise errors.refuse(
      folder,
      f'the token store cannot be written ({e.strerror or e})',
      'free disk space and write permission there, or another cache folder',
    ) from e


def _read_seal(folder: files.AnyPath) -> dict[str, Any]:
  """Reads meta.json and verifies it against its own digest."""
  path = folder / _META
  try:
    fields = files.parse_object(path.read_bytes()) or {}
  except OSError as e:
    raise _unusable(path, e.strerror or str(e)) from e
  if fields.pop('seal', None) != files.digest(fields):
    raise _unusable(path, 'damaged: it does not match its own digest')
  if fields['format'] != FORMAT:
    raise _unusable(
      path, f'has format {fields["format"]}, this version reads {FORMAT}'
    )
  return fields


def _local(path: files.AnyPath) -> pathlib.Path:
  """The file, or a copy of the object."""
  try:
    return scratch.copy(path)
  except FileNotFoundError as e:
    raise _unusable(path, e.strerror) from e


def _verify(path: files.AnyPath, place: pathlib.Path, sha256: str) -> None:
  """Raises InputError unless the file holds the bytes that were written."""
  try:
    sound = files.file_digest(place) == sha256
  except OSError as e:
    raise _unusable(path, e.strerror or str(e)) from e
  if not sound:
    raise _unusable(path, 'damaged: its bytes are not those that were written')


def _unusable(path: files.AnyPath, problem: str) -> InputError:
  """Returns the refusal of a store; names the damaged file."""
  return errors.refuse(
    path, problem, f'delete the folder {path.parent}, it is made anew'
  )
