"""arrow_messages: what files claim is refused before anything is unpacked."""

import struct
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from dpo_jax import types
from dpo_jax.data.sources import arrow, arrow_messages


def _peak(path):
  """Bytes that a child took to read or refuse a file, and what it said."""
  code = f"""
import pathlib, re
import pyarrow.parquet
from dpo_jax.data.sources import arrow
def most():
  status = pathlib.Path('/proc/self/status').read_text()
  return 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', status)[1])
before = most()
try:
  rows = sum(1 for _ in arrow.read_rows({str(path)!r}, lambda name: True))
except ValueError as error:
  rows = error
print(most() - before, rows)
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  peak, _, rows = done.stdout.partition(' ')
  return int(peak), rows.strip()


@pytest.mark.parametrize('kind', ['file', 'stream'])
def test_a_compressed_batch_is_refused_before_it_is_unpacked(tmp_path, kind):
  path = tmp_path / 'bomb.arrow'
  new = {'file': pyarrow.ipc.new_file, 'stream': pyarrow.ipc.new_stream}[kind]
  options = pyarrow.ipc.IpcWriteOptions(compression='zstd')
  small = pyarrow.table({'a': ['x', 'y']})
  large = pyarrow.table({'a': ['x' * 200_000_000]})
  with new(path, small.schema, options=options) as file:
    file.write_table(small)
    file.write_table(large)
  assert path.stat().st_size < 100_000
  peak, line = _peak(path)
  assert 'bomb.arrow:3: ' in line and '200 MB in one row; fix: split' in line
  assert peak < 4 * arrow.MAX_ROW_BYTES


def test_a_batch_of_many_rows_is_bounded_as_a_whole(tmp_path, monkeypatch):
  path = tmp_path / 'rows.arrow'
  options = pyarrow.ipc.IpcWriteOptions(compression='lz4')
  table = pyarrow.table({'a': ['word' * 30] * 1000})
  with pyarrow.ipc.new_stream(path, table.schema, options=options) as file:
    file.write_table(table)
  assert len(list(arrow.read_rows(str(path), lambda name: True))) == 1000
  monkeypatch.setattr(arrow, 'MAX_BATCH_BYTES', 100_000)
  with pytest.raises(types.InputError, match='rows.arrow:1: a batch of 124 kB'):
    next(arrow.read_rows(str(path), lambda name: True))


def test_a_cell_that_repeats_is_unpacked_a_few_times_at_once(tmp_path):
  # 100 rows of one text: a few hundred bytes, whose footer claims one text.
  path = tmp_path / 'again.parquet'
  cell = pyarrow.array(['x' * (6 * 2**20)])
  keys = pyarrow.array([0] * 100, pyarrow.int32())
  table = pyarrow.table({'a': pyarrow.DictionaryArray.from_arrays(keys, cell)})
  pyarrow.parquet.write_table(table, path, compression='zstd')
  assert path.stat().st_size < 10_000
  peak, rows = _peak(path)
  assert rows == '100'
  assert peak < 64 * arrow.MAX_ROW_BYTES


_SPOIL = """
import pathlib, sys
from dpo_jax import types
from dpo_jax.data.sources import arrow
path = pathlib.Path(sys.argv[1])
whole, refused = path.read_bytes(), 0
for place in range(0, len(whole), 5):
  data = bytearray(whole)
  data[place] ^= 0xFF
  path.write_bytes(data)
  try:
    list(arrow.read_rows(str(path), lambda name: True))
  except types.InputError:
    refused += 1
print(refused)
"""


@pytest.mark.parametrize('compression', [None, 'zstd'])
def test_a_spoilt_byte_is_read_or_refused(tmp_path, compression):
  # In a child: an offset beyond the data is a segmentation fault.
  path = tmp_path / 'a.arrow'
  options = pyarrow.ipc.IpcWriteOptions(compression=compression)
  columns = {'a': ['word' * 30] * 5, 'b': [1] * 5, 'c': [[{'x': 'a'}]] * 5}
  table = pyarrow.table(columns)
  with pyarrow.ipc.new_file(path, table.schema, options=options) as file:
    file.write_table(table)
  done = subprocess.run(
    [sys.executable, '-c', _SPOIL, path], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) > 150


def test_metadata_that_ends_early_raises_one_kind_of_error():
  table = pyarrow.table({'a': [1]})
  sink = pyarrow.BufferOutputStream()
  with pyarrow.ipc.new_stream(sink, table.schema) as file:
    file.write_table(table)
  stream = pyarrow.BufferReader(sink.getvalue())
  *_, message = pyarrow.ipc.MessageReader.open_stream(stream)
  metadata = message.metadata.to_pybytes()
  assert arrow_messages.claim(metadata, b'') == (1, 0)  # not compressed
  for size in range(0, 40, 3):
    try:
      arrow_messages.claim(metadata[:size], memoryview(b''))
    except struct.error:
      pass
