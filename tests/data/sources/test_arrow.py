"""Parquet and Arrow: the same rows as JSONL, folders, nulls, damage."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from dpo_jax import types
from dpo_jax.data.sources import arrow, files
from dpo_jax.data.sources import source as sources
from dpo_jax.storage import files as storage_files


def _call(name, **arguments):
  function = {'name': name, 'arguments': arguments}
  return {'role': 'assistant', 'tool_calls': [{'function': function}]}


U = {'role': 'user', 'content': 'Hi'}
ROWS = [
  {
    'prompt': [U, _call(f'f{i % 3}', **{f'key{i % 3}': str(i)})],
    'chosen': [{'role': 'assistant', 'content': f'yes {i}'}],
    'rejected': [_call(f'g{i % 2}', deep={f'x{i % 2}': [{f'y{i % 2}': i}]})],
    'tools': [{'function': {'name': 'f', 'parameters': {f'p{i % 3}': 1}}}],
    'margin': float(i),
    'id': i,
  }
  for i in range(600)  # several batches
]


def _write(path, rows, kind):
  if kind == 'jsonl':
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return
  table = pyarrow.Table.from_pylist(rows)
  if kind == 'parquet':
    pyarrow.parquet.write_table(table, path)
    return
  new = pyarrow.ipc.new_file if kind == 'file' else pyarrow.ipc.new_stream
  with pyarrow.OSFile(str(path), 'wb') as sink, new(sink, table.schema) as out:
    out.write_table(table)


def _saved(folder, rows, **state):
  folder.mkdir(parents=True)
  names = [f'data-0000{i}-of-00002.arrow' for i in range(2)]
  for name, part in zip(names, (rows[:200], rows[200:])):
    _write(folder / name, part, 'stream')
  state = {'_data_files': [{'filename': name} for name in names], **state}
  (folder / 'state.json').write_text(json.dumps(state))
  (folder / 'dataset_info.json').write_text('{}')
  return folder


@pytest.mark.parametrize('kind', ['parquet', 'file', 'stream', 'saved'])
def test_every_table_gives_the_records_of_jsonl(tmp_path, kind):
  _write(tmp_path / 'a.jsonl', ROWS, 'jsonl')
  suffix = '.parquet' if kind == 'parquet' else '.arrow'
  path = tmp_path / f'a{suffix}'
  if kind == 'saved':
    path = _saved(tmp_path / 'set', ROWS)
  else:
    _write(path, ROWS, kind)
  wanted = [
    record._replace(where='')
    for record in sources.open_source(tmp_path / 'a.jsonl').records()
  ]
  opened = sources.open_source(path)
  records = list(opened.records())
  assert [record._replace(where='') for record in records] == wanted
  assert records[-1].where == f'{path}:600'
  assert opened.fingerprint == storage_files.file_digest(
    *files.parts(str(path))
  )


def test_a_key_that_is_null_by_itself_is_dropped_and_a_column_stays(tmp_path):
  path = tmp_path / 'a.parquet'
  rows = [{'a': {'b': None, 'c': [None, {'d': None}]}, 'e': None, 'f': 1}]
  schema = pyarrow.schema(
    [
      ('a', pyarrow.struct(
        [('b', pyarrow.string()),
         ('c', pyarrow.list_(pyarrow.struct([('d', pyarrow.string())])))])),
      ('e', pyarrow.string()),
      ('f', pyarrow.int64()),
    ]
  )  # fmt: skip
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path)
  ((_, row),) = arrow.read_rows(str(path), lambda name: True)
  assert row == {'a': {'c': [None, {}]}, 'e': None, 'f': 1}


def test_a_map_is_an_object(tmp_path):
  path = tmp_path / 'a.parquet'
  kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
  table = pyarrow.table({'m': pyarrow.array([[('k', 'v')]], kind)})
  pyarrow.parquet.write_table(table, path)
  ((_, row),) = arrow.read_rows(str(path), lambda name: True)
  assert row == {'m': {'k': 'v'}}


def _refusal(path):
  with pytest.raises(types.InputError) as caught:
    list(sources.open_source(path).records())
  message = str(caught.value)
  assert message.startswith(f'{path}:') and message.count('; fix: ') == 1
  return message


def test_folders_and_files_that_are_refused(tmp_path):
  indices = {'_indices_data_files': [{'filename': 'indices.arrow'}]}
  assert 'flatten_indices' in _refusal(_saved(tmp_path / 'i', ROWS, **indices))
  lost = _saved(tmp_path / 'lost', ROWS)
  (lost / 'data-00001-of-00002.arrow').unlink()
  assert 'lists 2 data files' in _refusal(lost)
  cut = _saved(tmp_path / 'cut', ROWS)
  file = cut / 'data-00001-of-00002.arrow'
  file.write_bytes(file.read_bytes()[:-3000])
  assert 'damaged Arrow file' in _refusal(cut)
  both = tmp_path / 'both'
  _saved(both / 'train', ROWS)
  (both / 'dataset_dict.json').write_text('{}')
  assert f"such as '{both}/train'" in _refusal(both)
  other = tmp_path / 'a.arrow'
  other.write_bytes(b'no arrow file')
  assert 'damaged Arrow file' in _refusal(other)
  twice = tmp_path / 'twice.parquet'
  table = pyarrow.table([['a'], ['b']], names=['prompt', 'prompt'])
  pyarrow.parquet.write_table(table, twice)
  assert "column 'prompt' appears twice" in _refusal(twice)


def test_a_cell_that_is_too_large_is_refused_before_it_is_an_object(tmp_path):
  large = arrow.MAX_ROW_BYTES + 1
  for rows, line in (([large], 1), ([1, 1, large] + [1] * 10, 3)):
    path = tmp_path / f'{line}.parquet'
    table = pyarrow.table(
      {'a': ['x' * n for n in rows], 'b': ['y'] * len(rows)}
    )
    pyarrow.parquet.write_table(table, path, compression='zstd')
    with pytest.raises(
      types.InputError, match=rf'{line}.parquet:{line}: .a. is 8'
    ):
      list(arrow.read_rows(str(path), lambda name: True))
    # A column that is not read may hold what it likes.
    read = list(arrow.read_rows(str(path), lambda name: name == 'b'))
    assert len(read) == len(rows)


def test_many_cells_of_a_row_count_together_as_in_a_line_of_json(tmp_path):
  path = tmp_path / 'wide.parquet'
  cell = 'x' * (arrow.MAX_ROW_BYTES // 2)
  table = pyarrow.table({name: ['y', cell, 'y'] for name in 'abc'})
  pyarrow.parquet.write_table(table, path, compression='zstd')
  with pytest.raises(
    types.InputError, match=r"wide.parquet:2: 'a, b, c' is 12"
  ):
    list(arrow.read_rows(str(path), lambda name: True))
  assert len(list(arrow.read_rows(str(path), lambda name: name == 'a'))) == 3


def test_a_footer_that_claims_too_much_is_refused_before_any_row(tmp_path):
  # The last group is too large, and its footer says so: the file is refused
  # before the first row. Batches measured one by one would give the rows before
  # it, and unpack the large cell to measure it.
  path, before = tmp_path / 'claims.parquet', 2 * 256
  small = pyarrow.table({'a': ['x'] * before, 'b': ['y'] * before})
  large = pyarrow.table({'a': ['x' * (arrow.MAX_ROW_BYTES + 1)], 'b': ['z']})
  with pyarrow.parquet.ParquetWriter(
    path, small.schema, compression='zstd'
  ) as file:
    file.write_table(small)
    file.write_table(large)
  with pytest.raises(types.InputError, match=r'claims.parquet:513: .a. is 8'):
    next(arrow.read_rows(str(path), lambda name: True))
  # A column that is not read may claim what it likes.
  read = list(arrow.read_rows(str(path), lambda name: name == 'b'))
  assert len(read) == before + 1 and read[-1][1]['b'] == 'z'


@pytest.mark.parametrize('kind', ['parquet', 'file'])
def test_a_dictionary_counts_by_the_cells_of_a_row(tmp_path, kind):
  # As pandas writes a categorical column: together the texts are above a row.
  texts = [f'{i} ' + 'x' * 400_000 for i in range(24)]
  path = tmp_path / f'a.{"parquet" if kind == "parquet" else "arrow"}'
  column = pyarrow.array(texts).dictionary_encode()
  table = pyarrow.table({'a': column})
  if kind == 'parquet':
    pyarrow.parquet.write_table(table, path)
  else:
    with pyarrow.ipc.new_file(path, table.schema) as file:
      file.write_table(table)
  read = arrow.read_rows(str(path), lambda name: True)
  assert [row['a'] for _, row in read] == texts
