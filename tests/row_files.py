"""Data files of cases, and the words for what is read from them."""

import json
import pathlib
from typing import Any

import pyarrow
import pyarrow.parquet
from cases.case import Case

from dpo_jax import types
from dpo_jax.data.sources import source


def write(folder: pathlib.Path, rows: list[dict], kind: str) -> pathlib.Path:
  """Writes rows in one of the formats that a run reads."""
  path = folder / f'data.{kind}'
  table = None if kind == 'jsonl' else pyarrow.Table.from_pylist(rows)
  if table is None:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  elif kind == 'parquet':
    pyarrow.parquet.write_table(table, path)
  else:
    if kind == 'saved':
      path.mkdir()
      (path / 'state.json').write_text('{}')
    file = path / 'data-00000-of-00001.arrow' if kind == 'saved' else path
    new = pyarrow.ipc.new_stream if kind == 'saved' else pyarrow.ipc.new_file
    with (
      pyarrow.OSFile(str(file), 'wb') as sink,
      new(sink, table.schema) as out,
    ):
      out.write_table(table)
  return path


def _words(turns: Any) -> str:
  """Text and calls of a prompt or an answer."""
  if isinstance(turns, str):
    return turns
  return ' / '.join(
    json.dumps(t['tool_calls'][0]['function']['arguments'])
    if t.get('tool_calls')
    else t['content']
    for t in turns
  )


def _record(record: types.PreferenceRecord) -> str:
  """A record as `prompt > answer | answer`, with its labels and tools."""
  answers = ' | '.join(map(_words, record.completions))
  words = f'{_words(record.prompt)} > {answers}'
  if record.labels is not None:
    words += f' ({str(record.labels[0]).lower()})'
  if record.tools is not None:
    words += f' + {json.dumps(record.tools)}'
  return words


def case(
  kind: str,
  words: str,
  right: str,
  rows: list[dict] | dict,
  file: str = 'jsonl',
  **options: Any,
) -> Case:
  """The case of a file; `ours` gives its records, or the refusal."""

  def ours(folder: pathlib.Path) -> str:
    path = write(folder, rows if isinstance(rows, list) else [rows], file)
    lines: list[str] = []
    try:
      opened = source.open_source(path, log=lines.append, **options)
      done = [*map(_record, opened.records()), *lines]
    except types.InputError as error:
      done = [str(error).partition(';')[0]]
    words = '; '.join(done)
    return words.replace(f'{path}: ', '').replace(f'{path}:', '')

  return Case(kind, words, right, ours)


def as_text(rows: list[dict]) -> list[dict]:
  """Rows with every list as JSON text."""
  return [
    {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
    for row in rows
  ]


def as_folder(*names: str) -> Any:
  """A folder of such files, given as data."""

  def ours(folder: pathlib.Path) -> str:
    for name in names:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_text('{}')
    try:
      source.open_source(folder)
    except types.InputError as error:
      return str(error).replace(str(folder), 'F')
    return 'read'

  return ours


def refused_with(row: dict, words: str) -> Any:
  """Whether the refusal of a row has these words."""

  def ours(folder: pathlib.Path) -> str:
    path = write(folder, [row], 'jsonl')
    try:
      source.open_source(path)
    except types.InputError as error:
      return words if words in str(error) else str(error)
    return 'read'

  return ours
