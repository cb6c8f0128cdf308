"""Encoded records on disk: tokens in array_record, the rest in one table.

Comes in: encoded records, once, and the hex key of everything that shaped
them. Goes out: a `TokenStore`, read by index. A store is whole or not there:
it is written beside its place and renamed, and it is verified byte for byte
before it is used. Does not encode, and does not choose where stores live.
"""

import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from dpo_jax import errors
from dpo_jax.data.batches import length_table
from dpo_jax.storage import files
from dpo_jax.types import Comparison, EncodedRecord, InputError

FORMAT = 2  # part of the key: another format is another store
_TOKENS = 'tokens.array_record'
_TABLE = 'table.npz'
_META = 'meta.json'


def key(
  data_fingerprints: Sequence[str],
  tokenizer_fingerprint: str,
  template: str | None,
  options: Any,
) -> str:
  """The name of the store that these make, 32 hex digits.

  Args:
    data_fingerprints: one of each source, in order.
    tokenizer_fingerprint: of the tokenizer's files.
    template: the chat template's source, or None.
    options: `encode.EncodeOptions` or another NamedTuple or mapping of plain
      values: whatever else changes the tokens, the mixture's included.
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
  """Writes a store and opens it; leaves nothing behind where that fails.

  Args:
    folder: where it will be. A store that another process put there in the
      meantime is used as it is.
    records: in the order of their indices.
    meta: plain values, returned as `TokenStore.meta`.
  """
  folder = pathlib.Path(folder)
  try:
    with files.whole_folder(folder, may_exist=True) as beside:
      _write_files(beside, list(records), meta)
  except OSError as e:
    raise errors.refuse(
      folder,
      f'the token store cannot be written ({e.strerror or e})',
      'free disk space and write permission there, or another cache folder',
    ) from e
  return open_store(folder)


def open_store(folder: str | os.PathLike) -> 'TokenStore':
  """Opens a store, every byte of it compared with the digests it carries.

  Raises:
    InputError: naming the file, where anything is missing or damaged.
  """
  folder = pathlib.Path(folder)
  fields = _read_seal(folder)
  for name, sha256 in fields['files'].items():
    _verify(folder / name, sha256)
  with np.load(folder / _TABLE, allow_pickle=False) as arrays:
    table = length_table.LengthTable(**arrays)
  return TokenStore(folder / _TOKENS, table, fields['digest'], fields['meta'])


class TokenStore:
  """`store[i] -> EncodedRecord`, `len(store)`, and what needs no tokens.

  `table` is a `LengthTable`; `digest` is a sha256 of all token ids, of where
  each prompt and completion ends, in order, and of which tokens are not
  trained, and of nothing else; `meta` is what `write` was given.
  Threads may share a store.
  """

  def __init__(
    self,
    path: pathlib.Path,
    table: length_table.LengthTable,
    digest: str,
    meta: dict[str, Any],
  ):
    """See open_store, which verifies before it makes one."""
    self.table = table
    self.digest = digest
    self.meta = meta
    self._lock = threading.Lock()
    self._reader = array_record_module.ArrayRecordReader(
      str(path), options='readahead_buffer_size:0,max_parallelism:0'
    )

  def __len__(self) -> int:
    """How many records."""
    return len(self.table.prompt_lengths)

  @property
  def uids(self) -> list[str]:
    """The records' uids, in order."""
    return [uid.decode() for uid in self.table.uids]

  def __getitem__(self, i: int) -> EncodedRecord:
    """Record i, equal to the one that was written."""
    if not 0 <= i < len(self):
      raise IndexError(f'record {i} of a store of {len(self)}')
    table = self.table
    with self._lock:
      data = self._reader.read([i])[0]
    mine = slice(table.offsets[i], table.offsets[i + 1])
    starts = np.cumsum(
      [table.prompt_lengths[i], *table.completion_lengths[mine]]
    )
    tokens = np.frombuffer(data, '<i4', count=starts[-1])
    prompt, *completions = np.split(tokens, starts[:-1])
    mask = np.frombuffer(data, '?', offset=tokens.nbytes)  # empty: all trained
    labels = table.labels[mine]
    scores = table.scores[mine]
    return EncodedRecord(
      prompt=prompt,
      completions=tuple(completions),
      comparisons=self._comparisons(i),
      labels=None if labels[0] < 0 else tuple(map(bool, labels)),
      scores=None if np.isnan(scores[0]) else tuple(scores.tolist()),
      uid=table.uids[i].decode(),
      trained=tuple(np.split(mask, starts[1:-1] - starts[0]))
      if len(mask)
      else None,
    )

  def _comparisons(self, i: int) -> tuple[Comparison, ...]:
    """The comparisons of record i."""
    table = self.table
    mine = slice(table.comparison_offsets[i], table.comparison_offsets[i + 1])
    columns = (table.winner, table.loser, table.weight, table.margin)
    return tuple(
      Comparison(*values)
      for values in zip(*(c[mine].tolist() for c in columns))
    )


def _write_files(
  folder: pathlib.Path,
  records: Sequence[EncodedRecord],
  meta: Mapping[str, Any],
) -> None:
  """Writes the three files of a store; the last one seals the others."""
  digest = files.bytes_digest(_write_tokens(folder / _TOKENS, records))
  table = length_table.make_table(records)
  np.savez(folder / _TABLE, allow_pickle=False, **table._asdict())
  seal = {
    'format': FORMAT,
    'digest': digest,
    'files': {
      name: files.file_digest(folder / name) for name in (_TOKENS, _TABLE)
    },
    'meta': dict(meta),
  }
  seal['seal'] = files.digest(seal)
  (folder / _META).write_bytes(files.canonical(seal, allow_nan=False))


def _write_tokens(
  path: pathlib.Path, records: Iterable[EncodedRecord]
) -> Iterator[bytes]:
  """Writes the records; yields the bytes that the store's digest is of."""
  # One record a group: any record is read without its neighbours.
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  try:
    for record in records:
      pieces = [record.prompt, *record.completions]
      data = np.concatenate(pieces).astype('<i4').tobytes()
      # A negative count says that a mask follows; without, digests stay.
      count = len(pieces) if record.trained is None else -len(pieces)
      if record.trained is not None:
        data += np.concatenate(record.trained).astype('?').tobytes()
      _on_disk(writer.write, data)
      yield np.array([count, *map(len, pieces)], '<i8').tobytes() + data
  finally:
    _on_disk(writer.close)


def _on_disk(call: Callable[..., None], *args: Any) -> None:
  """Calls array_record, whose RuntimeErrors are what the disk refused."""
  try:
    call(*args)
  except RuntimeError as e:
    raise OSError(str(e)) from e


def _read_seal(folder: pathlib.Path) -> dict[str, Any]:
  """The contents of meta.json, verified against its own digest."""
  path = folder / _META
  try:
    fields = json.loads(path.read_bytes())
    seal = fields.pop('seal')
    sound = seal == files.digest(fields)
  except OSError as e:
    raise _unusable(path, e.strerror or str(e)) from e
  except (ValueError, KeyError, TypeError, AttributeError):
    sound = False
  if not sound:
    raise _unusable(path, 'damaged: it does not match its own digest')
  if fields['format'] != FORMAT:
    found = fields['format']
    raise _unusable(path, f'has format {found}, this version reads {FORMAT}')
  return fields


def _verify(path: pathlib.Path, sha256: str) -> None:
  """Refuses a file of other bytes than those that were written."""
  try:
    sound = files.file_digest(path) == sha256
  except OSError as e:
    raise _unusable(path, e.strerror or str(e)) from e
  if not sound:
    raise _unusable(path, 'damaged: its bytes are not those that were written')


def _unusable(path: pathlib.Path, problem: str) -> InputError:
  """The refusal of a store, naming the file and what to do."""
  return errors.refuse(
    path, problem, f'delete the folder {path.parent}, it is made anew'
  )
