"""Messages of an Arrow file -> the bytes that they will take unpacked.

Comes in: the metadata and the body of a message of Arrow's IPC format. Goes
out: its rows and its bytes after decompression, as it claims them. Unpacks
nothing: pyarrow has no call that tells them before the bytes are there.
"""

import struct
from typing import NamedTuple

# Of Arrow's Message.fbs and Schema.fbs: places of fields, kinds of a header.
_HEADER_KIND, _HEADER = 1, 2
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3
_DICTIONARY_DATA = 1
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


class Claim(NamedTuple):
  """What a message says of itself."""

  num_rows: int
  num_bytes: int  # 0 of a message that is not compressed


def claim(metadata: bytes, body: memoryview) -> Claim:
  """Returns what a record batch or a dictionary unpacks to.

  Args:
    metadata: flatbuffer of a Message.
    body: its buffers; each begins with its length, if they are compressed.

  Raises:
    struct.error: the metadata ends early.
  """
  message = _Table(metadata, *struct.unpack_from('<I', metadata))
  kind = message.number(_HEADER_KIND, '<B')
  batch = message.table(_HEADER)
  if batch and kind == _DICTIONARY_BATCH:
    batch = batch.table(_DICTIONARY_DATA)
  if not batch or kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
    return Claim(0, 0)
  num_rows = batch.number(_ROWS, '<q')
  if not batch.place(_COMPRESSION):
    return Claim(num_rows, 0)
  total = 0
  for start, length in batch.pairs(_BUFFERS):
    if length:
      # -1: this one is stored as it is.
      (size,) = struct.unpack_from('<q', body, start)
      total += length if size == -1 else size
  return Claim(num_rows, total)


class _Table(NamedTuple):
  """A table of a flatbuffer."""

  data: bytes
  at: int

  def place(self, field: int) -> int:
    """Returns where a field is; 0 = it is left out."""
    vtable = self.at - struct.unpack_from('<i', self.data, self.at)[0]
    size = struct.unpack_from('<H', self.data, vtable)[0]
    slot = 4 + 2 * field
    if slot >= size:
      return 0
    offset = struct.unpack_from('<H', self.data, vtable + slot)[0]
    return self.at + offset if offset else 0

  def number(self, field: int, kind: str) -> int:
    """Returns a number; 0 if it is left out."""
    place = self.place(field)
    return struct.unpack_from(kind, self.data, place)[0] if place else 0

  def table(self, field: int) -> '_Table | None':
    """Returns the table that a field points to."""
    place = self.place(field)
    if not place:
      return None
    step = struct.unpack_from('<I', self.data, place)[0]
    return _Table(self.data, place + step)

  def pairs(self, field: int) -> list[tuple[int, int]]:
    """Returns a vector of pairs of 64-bit numbers."""
    place = self.place(field)
    if not place:
      return []
    start = place + struct.unpack_from('<I', self.data, place)[0]
    (count,) = struct.unpack_from('<I', self.data, start)
    # Sized by the bytes that are there, not by what they say.
    size = min(count, (len(self.data) - start - 4) // 16)
    values = struct.unpack_from(f'<{2 * size}q', self.data, start + 4)
    return list(zip(values[::2], values[1::2]))
