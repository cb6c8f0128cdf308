"""provenance.json -> what no longer follows: the check --verify.

Comes in: a folder that the command wrote. Goes out: a line per cell, number,
run or file that its runs do not give. Reads the runs again and makes tables,
the numbers of figures and the page from them; draws no figure, because its
bytes depend on matplotlib's version, and compares sha256 instead.
"""

import os
from typing import Any

from dpo_jax import errors
from dpo_jax.results import collect, differences, options, provenance
from dpo_jax.results.page import changes
from dpo_jax.storage import files, places
from dpo_jax.types import InputError

_SEPARATORS = {'.md': '|', '.tex': '&', '.csv': ','}


def verify(folder: str | os.PathLike) -> list[str]:
  """Makes the files of `folder` again from their runs, and compares.

  Returns:
    One line per cell, number, run or file that does not follow; empty if all
    do.

  Raises:
    InputError: the folder has no readable provenance.json.
  """
  folder = files.at(folder)
  document = _load(folder)
  runs, problems = _read_again(document, folder)
  texts = {}
  if not problems:
    texts, fresh = provenance.report(
      runs,
      folder,
      options.from_json(document['options']),
      # Older documents, and later evaluations, have no tables here.
      document.get('evaluations', {}),
      drawings=_drawings(document, folder),
    )
    fresh = files.as_json(fresh)  # the types of JSON, as in the file
    problems = _changed_runs(document, fresh) + _changed_cells(document, fresh)
  if not problems:
    for name, data in texts.items():
      problems += _changed_file(folder / name, data, document['files'][name])
  for name, digest in document['files'].items():
    if name not in texts and _digest_of(folder / name) != digest:
      problems.append(f'{folder / name}: not the file that was written')
  return problems


def _load(folder: files.AnyPath) -> dict[str, Any]:
  """Reads provenance.json and checks its form."""
  where = folder / provenance.FILE
  document = files.read_json(
    where,
    fix='make the tables again',
    if_missing='name a folder that `python -m dpo_jax.results RUNS... '
    '--out=DIR` wrote',
  )
  try:
    if document['version'] != provenance.VERSION:
      raise ValueError(f'version {document["version"]}')
    # Reads every entry that `verify` will read, before it does any work.
    options.from_json(document['options'])
    for row in document['rows']:
      _ = row['row'], row['cells'].items(), [str(name) for name in row['runs']]
    for run in document['runs']:
      _ = run['run'], run['done'], run['sha256'].items()
    _ = document['files'].items(), document['differences']
    for other in document.get('evaluations', {}).values():
      _ = [row['cells'].items() for row in other['rows']], other['differences']
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.refuse(
      where,
      f'not a provenance of version {provenance.VERSION} '
      f'({type(error).__name__}: {error})',
      'make the tables again',
    ) from error
  return document


def _read_again(document, folder: files.AnyPath):
  """Returns the runs of all rows in order, and a line per unreadable run."""
  runs, problems = [], []
  at = options.from_json(document['options']).at
  digests = {run['run']: run['sha256'] for run in document['runs']}
  for row in document['rows']:
    for name in row['runs']:
      try:
        path = places.join(folder, name)
        if not path.is_dir():
          raise errors.refuse(
            f'run {path}', 'the run is not there', 'put it back'
          )
        # The place in the table is the order that `ordered` must give back.
        order, known = len(runs), digests.get(name)
        runs.append(collect.read_run(path, order, at, known))
      except InputError as error:
        problems.append(f'row {row["row"]!r}, all cells: {error}')
  return runs, problems


def _changed_runs(document, fresh) -> list[str]:
  """Lines for runs whose files changed since they were read."""
  row_of = {
    name: row['row'] for row in document['rows'] for name in row['runs']
  }
  now = {run['run']: run for run in fresh['runs']}
  problems = []
  for run in document['runs']:
    name = run['run']
    old, new = run['sha256'], now.get(name, {}).get('sha256', {})
    changed = sorted(
      file for file in {*old, *new} if old.get(file) != new.get(file)
    )
    # DONE has no digest: only whether it counts is in the tables.
    if name in now and run['done'] != now[name]['done']:
      changed.append('DONE')
    if changed:
      problems.append(
        f'row {row_of.get(name)!r}: run {name} changed: {", ".join(changed)}'
      )
  return problems


def _changed_cells(document, fresh) -> list[str]:
  """Lines for cells and differences that the runs no longer give."""
  problems = []
  old = {_cell_name(*key): value for key, value in _cells(document)}
  new = {_cell_name(*key): value for key, value in _cells(fresh)}
  for name in dict.fromkeys([*old, *new]):
    if old.get(name) != new.get(name):
      problems.append(
        f'{name}: the table has {_said(old.get(name))}, its runs give '
        f'{_said(new.get(name))}'
      )
  return problems


def _cells(document):
  """Yields ((row, cell name), numbers) for every cell of both tables."""
  others = document.get('evaluations', {})
  for name, part in (('', document), *others.items()):
    on = f', {name}' if name else ''
    for row in part['rows']:
      for cell, numbers in row['cells'].items():
        yield (row['row'], f'{cell}{on}'), numbers
    for each in part['differences']:
      rows = f'{each["row"]} minus {each["minus"]}'
      yield (rows, f'{each["metric"]}{on}'), each


def _cell_name(row: str, column: str) -> str:
  return f'row {row!r}, cell {column!r}'


def _said(numbers: dict[str, Any] | None) -> str:
  if numbers is None:
    return 'no such cell'
  shown = ('value', 'mean', 'low', 'high')
  return ' '.join(f'{key} {numbers[key]}' for key in shown if key in numbers)


def _drawings(document, folder: files.AnyPath) -> dict[str, bytes]:
  """The figures that the page shows, as they lie there."""
  drawings = {}
  for name in document['files']:
    path = folder / name
    if name.endswith('.svg') and path.is_file():
      drawings[name] = path.read_bytes()
  return drawings


def _changed_file(path: files.AnyPath, data: bytes, digest: str) -> list[str]:
  """Lines for the differences between a file and a fresh one."""
  if not path.is_file():
    return [f'{path}: no such file']
  has = path.read_bytes()
  is_as_written = files.bytes_digest([has]) == digest
  text, fresh = has.decode('utf-8', 'replace'), data.decode()
  if path.suffix == '.html':
    problems = changes.lines(text, fresh, path, is_as_written)
  elif path.suffix == '.json':
    problems = _changed_values(path, has, data)
  else:
    problems = [
      f'{path}:{number}: row {label!r} reads {one!r}, its runs give {two!r}'
      for number, label, one, two in differences.of_lines(
        text, fresh, _SEPARATORS.get(path.suffix, '|')
      )
    ]
  if not problems and not is_as_written:
    problems.append(f'{path}: not the file that was written')
  return problems


def _changed_values(path: files.AnyPath, has: bytes, data: bytes) -> list[str]:
  """Lines for the values of a JSON file that do not follow."""
  old = files.parse_object(has)
  if old is None:
    return [f'{path}: not a JSON object']
  return [
    f'{path}: {", ".join(name)} reads {differences.show(one)}, its runs give '
    f'{differences.show(two)}'
    for name, one, two in differences.of_values(old, files.parse_object(data))
  ]


def _digest_of(path: files.AnyPath) -> str | None:
  return files.file_digest(path) if path.is_file() else None
