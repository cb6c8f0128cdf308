"""table -> rows: Parquet files, Arrow files, and folders of `save_to_disk`.

Comes in: a path that files.py has looked at. Goes out: rows as dicts, numbered
from 1 over all files of a folder. Nulls that Arrow puts into structs, where
one row has a key that others lack, are left out at every depth; a column that
is null stays in its row. Does not look at the columns.
"""

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

from dpo_jax import errors
from dpo_jax.data.sources import arrow_messages
from dpo_jax.storage import files as storage_files
from dpo_jax.storage import readable
from dpo_jax.types import InputError

MAX_ROW_BYTES = 8 * 2**20  # a larger cell is a mistake, as a larger JSON line
MAX_BATCH_BYTES = 2**31  # of a compressed batch, which is unpacked as a whole
# Rows that are unpacked at once. Cells of MAX_ROW_BYTES that repeat take a few
# hundred bytes of a Parquet file, whose footer does not tell: so only a few.
_BATCH = 32
_ARROW_FILE = b'ARROW1'  # an Arrow file without it is a stream
_STATE = 'state.json'
_NOT_DATA = ('dataset_info.json', 'dataset_dict.json', _STATE)


def read_rows(
  path: str, wanted: Callable[[str], bool], name: str = ''
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (row number, row).

  Args:
    path: a file ending in .parquet or .arrow, or a folder of the latter.
    wanted: takes the name of a column; those that are not wanted are None in
      the rows.
    name: what messages call the path; '' = the path.

  Raises:
    InputError: a damaged file.
  """
  # Imported here: it takes half a second, which JSONL files do not need.
  import pyarrow

  number = 0
  for file in parts(path, name):
    try:
      for batch, names in _batches(file, wanted):
        batch = _decoded(batch)
        _check_sizes(batch, f'{name or path}', number)
        # Columns that are not decoded still count as columns of the row.
        blank = dict.fromkeys(names)
        for row in _rows(batch):
          number += 1
          yield number, blank | row
    except (
      pyarrow.ArrowException,
      OSError,
      ValueError,
      KeyError,
      TypeError,
      struct.error,
    ) as error:
      if isinstance(error, InputError):  # a ValueError too
        raise
      kind = 'Parquet' if file.endswith('.parquet') else 'Arrow'
      raise errors.refuse(
        f'{name or path}:{number}',
        f'damaged {kind} file: {errors.show(str(error), 120)}',
        'copy or download the file again',
      ) from None


def parts(path: str, name: str = '') -> list[str]:
  """Returns the files of a folder that `save_to_disk` wrote, in order.

  A path that is no folder is its own part, and a folder without Arrow files
  has none.

  Raises:
    InputError: the folder lists a file that is not there, or its rows are
      chosen by indices.
  """
  if not os.path.isdir(path):
    return [path]
  where = f'{name or path}:0'
  state = storage_files.read_json_or_none(os.path.join(path, _STATE)) or {}
  for key, value in state.items():
    if 'indices' in key and value:
      raise errors.refuse(
        where,
        f'{_STATE} chooses rows by {key!r}, which is not read',
        'write it again: dataset.flatten_indices().save_to_disk(FOLDER)',
      )
  listed = state.get('_data_files')
  names = sorted(n for n in os.listdir(path) if n.endswith('.arrow'))
  if isinstance(listed, list):
    named = [e.get('filename') for e in listed if isinstance(e, dict)]
    if sorted(map(str, named)) != names:
      raise errors.refuse(
        where,
        f'{_STATE} lists {len(named)} data files, and {len(names)} are there '
        'or have other names',
        'copy the whole folder again',
      )
    names = named
  return [os.path.join(path, name) for name in names]


def data_file_in(folder: str, extensions: tuple[str, ...]) -> str:
  """Returns a data file or a saved data set in a folder, or ''."""
  names = [n for n in sorted(os.listdir(folder)) if n not in _NOT_DATA]
  paths = [os.path.join(folder, name) for name in names]
  files = [p for p in paths if p.endswith(extensions) and os.path.isfile(p)]
  saved = [p for p in paths if os.path.isfile(os.path.join(p, _STATE))]
  return next(iter(files + saved), '')


def _batches(path: str, wanted: Callable[[str], bool]) -> Iterator[tuple]:
  """Yields (batch of at most _BATCH rows, names of all columns)."""
  import pyarrow
  import pyarrow.parquet

  if path.endswith('.parquet'):
    with pyarrow.parquet.ParquetFile(path) as file:
      names = _names(file.schema_arrow, path)
      chosen = list(filter(wanted, names))
      _check_groups(file.metadata, chosen, path)
      for batch in file.iter_batches(batch_size=_BATCH, columns=chosen):
        yield batch, names
    return
  _check_messages(path)
  with pyarrow.OSFile(path, 'rb') as file:
    is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
    file.seek(0)
    if is_file:
      reader = pyarrow.ipc.open_file(file)
      batches = map(reader.get_batch, range(reader.num_record_batches))
    else:
      reader = batches = pyarrow.ipc.open_stream(file)
    names = _names(reader.schema, path)
    chosen = list(filter(wanted, names))
    for batch in batches:
      batch = batch.select(chosen)
      # An offset beyond the data ends the process where it is followed.
      batch.validate(full=True)
      for start in range(0, batch.num_rows, _BATCH):
        yield batch.slice(start, _BATCH), names


def _check_groups(metadata: Any, chosen: list[str], path: str) -> None:
  """Refuses a file by its footer, before anything of it is unpacked."""
  first = 1
  for index in range(metadata.num_row_groups):
    group = metadata.row_group(index)
    for column in map(group.column, range(group.num_columns)):
      # Of a mean above the limit, one cell is above it.
      is_read = column.path_in_schema.partition('.')[0] in chosen
      size = column.total_uncompressed_size
      if is_read and size > MAX_ROW_BYTES * max(group.num_rows, 1):
        raise _too_large(f'{path}:{first}', column.path_in_schema, size)
    first += group.num_rows


def _check_messages(path: str) -> None:
  """Refuses an Arrow file by what its batches claim, before one is unpacked."""
  import pyarrow

  first = 1
  with pyarrow.memory_map(path) as file:
    # A file is a stream between two marks, the first one padded to 8 bytes.
    is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
    file.seek(8 if is_file else 0)
    for message in pyarrow.ipc.MessageReader.open_stream(file):
      claim = arrow_messages.claim(
        message.metadata.to_pybytes(), memoryview(message.body or b'')
      )
      if claim.num_bytes > MAX_ROW_BYTES * max(claim.num_rows, 1):
        raise _too_large(f'{path}:{first}', message.type, claim.num_bytes)
      if claim.num_bytes > MAX_BATCH_BYTES:
        raise errors.refuse(
          f'{path}:{first}',
          f'a batch of {readable.size(claim.num_bytes)} unpacked',
          'write it again in smaller batches (max_chunksize)',
        )
      first += claim.num_rows * (message.type == 'record batch')


def _decoded(batch: Any) -> Any:
  """A batch whose columns are plain: a dictionary's bytes are of all rows."""
  import pyarrow

  columns = [
    c.dictionary_decode() if pyarrow.types.is_dictionary(c.type) else c
    for c in batch.columns
  ]
  return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _check_sizes(batch: Any, path: str, number: int) -> None:
  """Refuses a large row before it becomes Python objects, many times as large.

  Args:
    batch: of Arrow.
    path: of its file, for messages.
    number: rows before the batch.
  """
  if batch.nbytes <= MAX_ROW_BYTES:
    return
  for index in range(batch.num_rows):
    row, where = batch.slice(index, 1), f'{path}:{number + index + 1}'
    # All of a row, as all of a line of JSON.
    if row.nbytes <= MAX_ROW_BYTES:
      continue
    for name, column in zip(batch.schema.names, row.columns):
      if column.nbytes > MAX_ROW_BYTES:
        raise _too_large(where, name, column.nbytes)
    raise _too_large(where, ', '.join(batch.schema.names), row.nbytes)


def _too_large(where: str, name: str, size: int) -> InputError:
  return errors.refuse(
    where,
    f'{errors.show(name)} is {readable.size(size)} in one row',
    f'split or drop this record; at most {MAX_ROW_BYTES // 2**20} MiB are read',
  )


def _names(schema: Any, path: str) -> list[str]:
  """The names of the columns, no two of them equal."""
  names = list(schema.names)
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice is not None:
    raise errors.refuse(
      f'{path}:0',
      f'column {errors.show(twice)} appears twice',
      'write it with one column of each name',
    )
  return names


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
  """The rows of a batch as JSON would hold them."""
  # Large ones become Python objects one by one.
  if batch.num_rows > 1 and batch.nbytes > MAX_ROW_BYTES:
    for index in range(batch.num_rows):
      yield from _rows(batch.slice(index, 1))
    return
  lists = {}
  for field, column in zip(batch.schema, batch.columns):
    values = column.to_pylist(maps_as_pydicts='strict')
    if field.type.num_fields:  # a list, a struct or a map
      values = list(map(_without_nulls, values))
    lists[field.name] = values
  for index in range(batch.num_rows):
    yield {name: values[index] for name, values in lists.items()}


def _without_nulls(value: Any) -> Any:
  """A value without the keys that are null, at every depth."""
  if isinstance(value, dict):
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}
  if isinstance(value, list):
    return [_without_nulls(item) for item in value]
  return value
