"""Origin of every number in tables, figures and the page.

Comes in: runs to report on. Goes out: the report's files (tables, figures and
their numbers, the page, provenance.json), each whole or not at all.
verification.py checks them.

provenance.json: version; options: of options.py; runs:
[{run, seed, done, torn_lines, sha256: {file: hex}}], paths from the folder that
holds provenance.json; rows: [{row, label: {config key: value}, runs, cells:
{'loss after': {value, se, ...}}}]; differences; evaluations: {name: {rows,
differences}} of evaluations on other data; files: {name: sha256 of the written
bytes}.
"""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpo_jax import errors
from dpo_jax.results import cells, collect, latex, options, selection, tables
from dpo_jax.storage import buckets, files

FILE, FIGURES = 'provenance.json', 'figures.json'
VERSION = 3


def report(
  runs: Sequence[collect.Run],
  folder: str | os.PathLike,
  chosen: options.Options = cells.DEFAULT,
  evaluations: Collection[str] | None = None,
  drawings: Mapping[str, bytes] | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
  """Returns the bytes of all files by their names, and the provenance.

  Args:
    runs: the runs to report on.
    folder: the folder that the files will lie in; paths are relative to it.
    chosen: what is shown.
    evaluations: names of evaluations on other data, each of which gets tables
      of its own; None = all that any run has.
    drawings: files of figures that are drawn already, by name. The figures are
      then not drawn, and not in the result. None = they are drawn.

  Raises:
    InputError: a metric that no run reports, or a figure that is none.
  """
  table = cells.make_table(runs, chosen)
  # Figures and the page are of the same rows.
  runs = [run for row in table.rows for run in row.group.runs]
  others = _tables_of_others(runs, chosen, evaluations)
  texts = {
    'results.md': tables.markdown(table, folder).encode(),
    'results.tex': latex.latex(table).encode(),
    'results.csv': tables.comma_separated(table).encode(),
    'results.json': tables.as_json(table, folder).encode(),
  }
  for name, other in others.items():
    data = {
      run.evaluations[name].data for run in runs if name in run.evaluations
    }
    head = f'\n## {name}: {", ".join(sorted(data))}\n\n'
    texts['results.md'] += (head + tables.markdown(other, folder)).encode()
    texts[f'results_{name}.tex'] = latex.latex(other, name).encode()
    texts[f'results_{name}.csv'] = tables.comma_separated(other).encode()
    texts[f'results_{name}.json'] = tables.as_json(other, folder).encode()
  if drawings is None:
    drawings, data = _figures(runs, table, chosen, folder)
    texts |= drawings
  else:
    data = _figures_data(runs, table, chosen, folder)
  texts[FIGURES] = as_bytes(data)
  if chosen.html:
    texts |= _page(runs, table, chosen, drawings, data, folder, others)
  document = {
    'version': VERSION,
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
      # A metric of training alone is in no other evaluation.
      reduced = selection.of_others(chosen, cells.reported(own))
      made[name] = cells.make_table(own, reduced, strict=False)
  return made


def _figures(runs, table, chosen, folder):
  """Files of the figures, and what they show; no matplotlib without any."""
  if chosen.figures == ():
    return {}, {}
  from dpo_jax.results import figures  # imports matplotlib

  return figures.draw(runs, table, chosen, folder)


def _figures_data(runs, table, chosen, folder) -> dict[str, Any]:
  """The second part of `_figures`; draws nothing."""
  if chosen.figures == ():
    return {}
  from dpo_jax.results import figures  # imports matplotlib

  return figures.figures_data(runs, table, chosen, folder)


def _page(runs, table, chosen, drawings, data, folder, others):
  """index.html with each figure of one column's width, which fits a phone."""
  from dpo_jax.results.page import page  # reads token caches: imports more

  names = {name: f'figures/{name}.svg' for name in data}
  shown = {n: drawings[file] for n, file in names.items() if file in drawings}
  return page.build(
    runs, table, chosen, shown, data, folder=folder, others=others
  )


def write(
  texts: dict[str, bytes],
  document: dict[str, Any],
  folder: str | os.PathLike,
) -> None:
  """Writes the files by rename, and provenance.json after all others.

  In a bucket one after another: `--verify` notices a report of two halves.

  Raises:
    InputError: the folder cannot be made or written; nothing is left behind.
  """
  folder = files.at(folder)
  digests = {name: files.bytes_digest([data]) for name, data in texts.items()}
  texts = {**texts, FILE: as_bytes({**document, 'files': digests})}
  if isinstance(folder, buckets.Path):
    return _put(folder, texts)
  # All files are written before the first one is renamed: a full disk leaves
  # the old report whole.
  staging, made = None, not folder.exists()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    staging = pathlib.Path(tempfile.mkdtemp(prefix='.results-', dir=folder))
    for name, data in texts.items():
      (staging / name).parent.mkdir(exist_ok=True)
      (staging / name).write_bytes(data)
    for name in texts:
      (folder / name).parent.mkdir(exist_ok=True)
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


def _put(folder: buckets.Path, texts: dict[str, bytes]) -> None:
  """Puts the files in their order."""
  for name, data in texts.items():
    with files.storage_errors(folder / name):
      (folder / name).write_bytes(data)


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
        **tables.rounded(each.interval._asdict()),
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
        **tables.rounded(row.cells[label, when]._asdict()),
      }
      for label, when in table.columns
    },
  }


def as_bytes(document: dict[str, Any]) -> bytes:
  """JSON as this package writes it."""
  text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
  # An unpaired surrogate, as in the name of a folder, becomes its escape.
  return f'{text}\n'.encode(errors='backslashreplace')
