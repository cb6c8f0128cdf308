"""Origin of every number in the tables, and the check that it still holds.

Comes in: runs to report on, or a folder that `write` filled. Goes out: the
report's files (tables, figures, provenance.json), each whole or not at all;
or the list of cells that no longer follow from their runs. Draws no figure.

provenance.json: version; options: of options.py; runs:
[{run, seed, done, torn_lines, sha256: {file: hex}}], paths from the folder that
holds provenance.json; rows: [{row, label: {config key: value}, runs, cells:
{'loss after': {value, se, ...}}}]; differences; evaluations: {name: {rows,
differences}} of evaluations on other data; files: {name: sha256 of the written
bytes}.
"""

import itertools
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Sequence
from typing import Any

from dpo_jax import errors
from dpo_jax.results import cells, collect, options, tables
from dpo_jax.storage import files
from dpo_jax.types import InputError

FILE = 'provenance.json'
_VERSION = 3


def report(
  runs: Sequence[collect.Run],
  folder: str | os.PathLike,
  chosen: options.Options = cells.DEFAULT,
  evaluations: Collection[str] | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
  """Returns the tables' bytes by file name, and the provenance.

  Args:
    runs: the runs to report on.
    folder: the folder that the files will lie in; paths are relative to it.
    chosen: what is shown.
    evaluations: names of evaluations on other data, each of which gets tables
      of its own; None = all that any run has.

  Raises:
    InputError: a metric that no run reports.
  """
  table = cells.make_table(runs, chosen)
  others = _tables_of_others(runs, chosen, evaluations)
  texts = {
    'results.md': tables.markdown(table, folder).encode(),
    'results.tex': tables.latex(table, folder).encode(),
    'results.csv': tables.comma_separated(table).encode(),
  }
  for name, other in others.items():
    data = {
      run.evaluations[name].data for run in runs if name in run.evaluations
    }
    head = f'\n## {name}: {", ".join(sorted(data))}\n\n'
    texts['results.md'] += (head + tables.markdown(other, folder)).encode()
    texts[f'results_{name}.tex'] = tables.latex(other, folder).encode()
    texts[f'results_{name}.csv'] = tables.comma_separated(other).encode()
  document = {
    'version': _VERSION,
    'options': chosen.as_json(),
    'runs': [
      _run_entry(run, folder, others)
      for row in table.rows
      for run in row.group.runs
    ],
    **_entries(table, folder),
    'evaluations': {
      name: _entries(other, folder) for name, other in others.items()
    },
  }
  return texts, document


def _tables_of_others(runs, chosen, names) -> dict[str, cells.Table]:
  """A table per evaluation on other data, of the runs that have it."""
  # An evaluation of the run's own held-out data is in the main table.
  known = sorted(
    {
      name
      for run in runs
      for name, one in run.evaluations.items()
      if one.data != run.config.get('data', {}).get('eval')
    }
  )
  made = {}
  for name in known if names is None else names:
    having = [run for run in runs if name in run.evaluations]
    if having:
      own = [collect.with_evaluation(run, name) for run in having]
      shown = chosen.metrics
      if shown is not None:
        # A metric of training alone is in no other evaluation.
        reported = cells.reported(own)
        shown = tuple(metric for metric in shown if metric in reported) or None
      made[name] = cells.make_table(own, chosen._replace(metrics=shown))
  return made


def write(
  texts: dict[str, bytes],
  document: dict[str, Any],
  folder: str | os.PathLike,
) -> None:
  """Writes the files by rename, and provenance.json after all others.

  Raises:
    InputError: the folder cannot be made or written; nothing is left behind.
  """
  folder = pathlib.Path(folder)
  digests = {name: files.bytes_digest([data]) for name, data in texts.items()}
  texts = {**texts, FILE: _json({**document, 'files': digests})}
  # All files are written before the first one is renamed: a full disk leaves
  # the old report whole.
  staging, made = None, not folder.exists()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    staging = pathlib.Path(tempfile.mkdtemp(prefix='.results-', dir=folder))
    for name, data in texts.items():
      (staging / name).write_bytes(data)
    for name in texts:
      os.replace(staging / name, folder / name)
  except OSError as error:
    raise errors.refuse(
      '--out',
      f'{folder} is not writable ({error.strerror})',
      'name another folder, or mend its permissions',
    ) from error
  finally:
    if staging is not None:
      shutil.rmtree(staging, ignore_errors=True)
    if made and folder.is_dir() and not os.listdir(folder):
      folder.rmdir()


def verify(folder: str | os.PathLike) -> list[str]:
  """Makes the tables of `folder` again from their runs, and compares.

  Returns:
    One line per cell, run or file that does not follow; empty if all do.

  Raises:
    InputError: the folder has no readable provenance.json.
  """
  folder = pathlib.Path(folder)
  document = _load(folder)
  runs, problems = _read_again(document, folder)
  texts = {}
  if not problems:
    texts, fresh = report(
      runs,
      folder,
      options.from_json(document['options']),
      # Older documents, and later evaluations, have no tables here.
      document.get('evaluations', {}),
    )
    fresh = files.as_json(fresh)  # the types of JSON, as in the file
    problems = _changed_runs(document, fresh) + _changed_cells(document, fresh)
  if not problems:
    for name, data in texts.items():
      problems += _changed_lines(folder / name, data)
  # Figures are not drawn again: their bytes depend on matplotlib's version.
  for name, digest in document['files'].items():
    if name not in texts and _digest_of(folder / name) != digest:
      problems.append(f'{folder / name}: not the file that was written')
  return problems


def _load(folder: pathlib.Path) -> dict[str, Any]:
  """Reads provenance.json and checks its form."""
  where = folder / FILE
  document = files.read_json(
    where,
    fix='make the tables again',
    if_missing='name a folder that `python -m dpo_jax.results RUNS... '
    '--out=DIR` wrote',
  )
  try:
    if document['version'] != _VERSION:
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
      f'not a provenance of version {_VERSION} ({type(error).__name__}: '
      f'{error})',
      'make the tables again',
    ) from error
  return document


def _read_again(document, folder: pathlib.Path):
  """Returns the runs of all rows in order, and a line per unreadable run."""
  runs, problems = [], []
  at = options.from_json(document['options']).at
  digests = {run['run']: run['sha256'] for run in document['runs']}
  for row in document['rows']:
    for name in row['runs']:
      try:
        if not (folder / name).is_dir():
          raise errors.refuse(
            f'run {folder / name}', 'the run is not there', 'put it back'
          )
        # The place in the table is the order that `ordered` must give back.
        order, known = len(runs), digests.get(name)
        runs.append(collect.read_run(folder / name, order, at, known))
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


def _changed_lines(path: pathlib.Path, data: bytes) -> list[str]:
  """Lines for the differences between a table's text and a fresh one."""
  if not path.is_file():
    return [f'{path}: no such file']
  separators = {'.md': '|', '.tex': '&', '.csv': ','}
  separator = separators[path.suffix]
  text = path.read_bytes().decode('utf-8', 'replace')
  pairs = itertools.zip_longest(
    text.split('\n'), data.decode().split('\n'), fillvalue=''
  )
  problems = []
  for number, (has, gives) in enumerate(pairs, 1):
    if has != gives:
      parts = [
        (one.strip(), two.strip())
        for one, two in itertools.zip_longest(
          has.split(separator), gives.split(separator), fillvalue=''
        )
        if one.strip() != two.strip()
      ]
      # The first field that differs tells more than the line.
      has, gives = parts[0] if parts else (has, gives)
      row = text.split('\n')[number - 1].split(separator)
      label = next((part.strip() for part in row if part.strip()), '')
      problems.append(
        f'{path}:{number}: row {label!r} reads {has!r}, its runs give {gives!r}'
      )
  return problems


def _run_entry(run: collect.Run, folder, shown) -> dict[str, Any]:
  digests = dict(run.digests)
  for name in shown:
    if name in run.evaluations:
      digests |= run.evaluations[name].digests
  return {
    'run': tables.run_name(run, folder),
    'seed': run.config.get('seed'),
    'done': run.done,
    'torn_lines': run.torn_lines,
    'sha256': digests,
  }


def _entries(table: cells.Table, folder) -> dict[str, Any]:
  """Rows and differences of a table."""
  return {
    'rows': [
      _row_entry(table, index, folder) for index in range(len(table.rows))
    ],
    'differences': [
      {
        'row': tables.row_name(table, each.row),
        'minus': tables.row_name(table, each.baseline),
        'metric': each.metric,
        'seeds': each.num_seeds,
        'over': each.over,
        **_rounded(each.interval._asdict()),
      }
      for each in table.differences
    ],
  }


def _row_entry(table: cells.Table, index: int, folder) -> dict[str, Any]:
  # A single row is labelled by its folder, which is no config key.
  row, names = table.rows[index], table.labels.keys or table.labels.names
  name_of = {measure.label: measure.name for measure in table.measures}
  return {
    'row': tables.row_name(table, index),
    'label': dict(zip(names, row.label)),
    'runs': [tables.run_name(run, folder) for run in row.group.runs],
    'steps': row.steps,
    'cells': {
      f'{label} {when}': {
        'metric': name_of[label],
        **_rounded(row.cells[label, when]._asdict()),
      }
      for label, when in table.columns
    },
  }


def _rounded(numbers: dict[str, Any]) -> dict[str, Any]:
  """Numbers to nine digits, so that a last bit is no change."""
  return {
    key: _round(value) if isinstance(value, float) else value
    for key, value in numbers.items()
  }


def _round(value: float) -> float | str:
  # JSON has no NaN and no infinity.
  return float(f'{value:.9g}') if math.isfinite(value) else repr(float(value))


def _json(document: dict[str, Any]) -> bytes:
  text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
  return f'{text}\n'.encode()


def _digest_of(path: pathlib.Path) -> str | None:
  return files.file_digest(path) if path.is_file() else None
