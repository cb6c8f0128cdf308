"""Table -> text: the comparison table as Markdown, CSV and JSON.

Comes in: a `Table`. Goes out: its text, the same for the same table; latex.py
makes the one for print. Measures nothing and reads and writes no files.
"""

import csv
import io
import json
import math
import os
import re
from typing import Any

from dpo_jax.results import cells, collect, labels, sheet
from dpo_jax.results import notes as notes_lib

JSON_VERSION = 1


def markdown(table: cells.Table, relative_to: str | os.PathLike) -> str:
  """The table, the differences between rows, and the notes, as Markdown.

  Columns are padded, so that the text reads well in a terminal too. Notes name
  runs by their path from `relative_to`.
  """
  blocks = [_markdown_grid(sheet.main(table))]
  if table.differences:
    base = sheet.base_of(table)
    of_base = '' if base is None else f', minus {row_name(table, base)}'
    blocks += [
      _markdown_text(
        f'Differences on the same evaluation comparisons{of_base}:'
      ),
      _markdown_grid(sheet.differences(table)),
    ]
  lines = [f'- {_markdown_text(note)}' for note in notes(table, relative_to)]
  return '\n\n'.join([*blocks, '\n'.join(lines)]) + '\n'


def comma_separated(table: cells.Table) -> str:
  """One line per row: every cell with its error, its ends and their source.

  Numbers have nine significant digits; an empty field means no number.
  """
  head = [*table.labels.names, 'n', 'unfinished', 'step_min', 'step_max']
  for metric, when in table.columns:
    name = f'{metric}_{when}'
    head += [name, *(f'{name}_{part}' for part in cells.Cell._fields[1:])]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(head)
  for row in table.rows:
    runs = row.group.runs
    line = [*row.label, len(row.group.seeds)]
    line += [sum(not run.done for run in runs), row.steps[0], row.steps[-1]]
    for column in table.columns:
      line += [_plain(part) for part in row.cells[column]]
    writer.writerow(line)
  return text.getvalue()


def as_json(table: cells.Table, relative_to: str | os.PathLike) -> str:
  """All cells, differences and tests as JSON, to nine digits.

  {version, at, labels: {config key: name}, metrics: {label: name}, shown:
  [[label, when]], rows: [{row, label: {name: text}, runs, seeds, steps, cells:
  [{metric, label, when, value, se, low, high, num, over, n, bold}]}],
  differences: [{row, minus, metric, mean, se, low, high, num, over, n, test, p,
  p_holm}], notes}. Paths of runs start at `relative_to`; numbers that are not
  finite are texts.
  """
  document = {
    'version': JSON_VERSION,
    'at': str(table.chosen.at),
    'labels': dict(zip(table.labels.keys, table.labels.names)),
    'metrics': {each.label: each.name for each in table.measures},
    'shown': table.shown,
    'rows': [
      _row_entry(table, index, relative_to) for index in range(len(table.rows))
    ],
    'differences': [
      {
        'row': row_name(table, each.row),
        'minus': row_name(table, each.baseline),
        'metric': each.metric,
        **rounded(each.interval._asdict()),
        'over': each.over,
        'n': each.num_seeds,
        'test': 't, paired by prompt',
        **rounded({'p': each.p, 'p_holm': each.p_holm}),
      }
      for each in table.differences
    ],
    'notes': notes(table, relative_to),
  }
  return (
    json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + '\n'
  )


def notes(table: cells.Table, relative_to: str | os.PathLike) -> list[str]:
  """Sentences on the numbers and marks, with the runs behind the marks."""
  return notes_lib.for_readers(table, relative_to)


def run_name(run: collect.Run, relative_to: str | os.PathLike) -> str:
  """The run's path from the output folder."""
  return notes_lib.run_name(run, relative_to)


def row_name(table: cells.Table, index: int) -> str:
  """A row as 'Loss=IPO, beta=0.1', for messages and differences."""
  return labels.joined(table.labels.names, table.rows[index].label)


def _row_entry(table: cells.Table, index: int, relative_to) -> dict[str, Any]:
  row = table.rows[index]
  name_of = {measure.label: measure.name for measure in table.measures}
  entries = []
  for column in table.columns:
    cell = row.cells[column]
    numbers = cell._asdict()
    n = numbers.pop('num_seeds')
    entries.append(
      {
        'metric': name_of[column[0]],
        'label': column[0],
        'when': column[1],
        **rounded(numbers),
        'n': n,
        'bold': index in table.unbeaten.get(column, ()),
      }
    )
  return {
    'row': row_name(table, index),
    'label': dict(zip(table.labels.names, row.label)),
    'runs': [run_name(run, relative_to) for run in row.group.runs],
    'seeds': row.group.seeds,
    'steps': row.steps,
    'cells': entries,
  }


def rounded(numbers: dict[str, Any]) -> dict[str, Any]:
  """Numbers to nine digits, so that a last bit is no change."""
  return {
    key: _round(value) if isinstance(value, float) else value
    for key, value in numbers.items()
  }


def _round(value: float) -> float | str:
  # JSON has no NaN and no infinity.
  return float(f'{value:.9g}') if math.isfinite(value) else repr(float(value))


def _markdown_grid(content: sheet.Sheet) -> str:
  """Padded lines: labels flush left, numbers flush right."""
  grid = [
    [_markdown_entry(entry) for entry in line]
    for line in (content.heads, *content.rows)
  ]
  widths = [max(3, *(len(text) for text in column)) for column in zip(*grid)]
  head, *rows = [
    [
      text.ljust(width) if index < content.num_labels else text.rjust(width)
      for index, (text, width) in enumerate(zip(line, widths))
    ]
    for line in grid
  ]
  rule = [
    '-' * width if index < content.num_labels else '-' * (width - 1) + ':'
    for index, width in enumerate(widths)
  ]
  return '\n'.join(f'| {" | ".join(line)} |' for line in [head, rule, *rows])


def _markdown_entry(entry: sheet.Entry) -> str:
  text = _markdown_text(str(entry))
  if isinstance(entry, sheet.Number) and entry.bold:
    return text.replace(entry.mean, f'**{entry.mean}**', 1)
  return text


def _markdown_text(text: str) -> str:
  # Characters that would end a cell, or start emphasis, code or HTML.
  return re.sub(r'([\\|*`<])', r'\\\1', text)


def _plain(part) -> str:
  """A field of the CSV."""
  if part is None or (isinstance(part, float) and math.isnan(part)):
    return ''
  return f'{part:.9g}' if isinstance(part, float) else str(part)
