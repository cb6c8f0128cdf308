"""Cells -> text: the comparison table as Markdown, LaTeX (booktabs) and CSV.

Comes in: a `Table`. Goes out: its text, the same for the same table. Measures
nothing and reads and writes no files.
"""

import csv
import io
import math
import os
import pathlib
import re

from dpo_jax.results import cells, collect, measures

_UNFINISHED, _TORN, _REPEATED = '†', '‡', '§'
_TEX_SPECIAL = {
  **{character: f'\\{character}' for character in '&%$#_{}'},
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '<': r'\textless{}',
  '>': r'\textgreater{}',
  '|': r'\textbar{}',
  '±': r'$\pm$',
  _UNFINISHED: r'\textsuperscript{\dag}',
  _TORN: r'\textsuperscript{\ddag}',
  _REPEATED: r'\textsuperscript{\S}',
}


def markdown(table: cells.Table, relative_to: str | os.PathLike) -> str:
  """The table, the differences between rows, and the notes, as Markdown.

  Columns are padded, so that the text reads well in a terminal too. Notes name
  runs by their path from `relative_to`.
  """
  blocks = [_markdown_grid(_grid(table), len(table.labels.names))]
  if table.differences:
    blocks += [
      'Differences on the same evaluation comparisons:',
      _markdown_grid(_difference_grid(table), 1),
    ]
  lines = [f'- {_markdown_text(note)}' for note in notes(table, relative_to)]
  return '\n\n'.join([*blocks, '\n'.join(lines)]) + '\n'


def latex(table: cells.Table, relative_to: str | os.PathLike) -> str:
  r"""The same tables and notes as LaTeX; needs \usepackage{booktabs}."""
  num_labels = len(table.labels.names)
  grid = _grid(table)
  head = [_tex_text(text) for text in [*table.labels.names, 'n', 'step']]
  head += [when for _, when in table.columns]
  # Number of the first measured column, counted from 1: after the labels come
  # n and step.
  start = num_labels + 3
  groups = [' & ' * (num_labels + 1)]
  rules = []
  for index, metric in enumerate(dict.fromkeys(m for m, _ in table.columns)):
    first = start + 2 * index
    groups.append(rf' & \multicolumn{{2}}{{c}}{{{_tex_text(metric)}}}')
    rules.append(rf'\cmidrule(lr){{{first}-{first + 1}}}')
  lines = [
    '% made by python -m dpo_jax.results; provenance.json names the runs',
    *_tex_tabular(
      [f'{"".join(groups)} \\\\', ''.join(rules), _tex_line(head)],
      grid[1:],
      num_labels,
    ),
  ]
  if table.differences:
    head, *rows = _difference_grid(table)
    head = [_tex_text(text) for text in head]
    lines += ['', r'\medskip', '']
    lines += _tex_tabular([_tex_line(head)], rows, 1)
  lines += ['', r'\smallskip', '', r'{\footnotesize']
  lines += [f'{_tex_text(note)}\\par' for note in notes(table, relative_to)]
  return '\n'.join([*lines, '}', ''])


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


def notes(table: cells.Table, relative_to: str | os.PathLike) -> list[str]:
  """Sentences on the numbers and marks, with the runs behind the marks."""
  runs = [run for row in table.rows for run in row.group.runs]
  lines = ['before: step 0; after: the last evaluation (step); n: seeds.']
  overs = {cell.over for row in table.rows for cell in row.cells.values()}
  if 'seeds' in overs:
    lines.append(
      "± is half of the 95% interval over seeds (Student's t); it does not "
      'cover other evaluation prompts.'
    )
  if 'prompts' in overs:
    lines.append(
      'n = 1: ± is half of the 95% interval over evaluation prompts (clustered '
      "standard error), [low, high] is Wilson's; neither covers the seed."
    )
  column = measures.ACCURACY.label, 'before'
  before = [row.cells.get(column) for row in table.rows]
  if any(cell is not None and cell.value == 0 for cell in before):
    lines.append('accuracy 0 before: policy = reference, all comparisons tie.')
  if any(
    cell.value is not None
    for row in table.rows
    for (metric, _), cell in row.cells.items()
    if metric == measures.KL.label
  ):
    lines.append(
      'KL: mean of log reference - log policy over both answers, in nats: '
      'negative if the policy made them more likely. It estimates the '
      'divergence only if the reference wrote the answers; else it is a drift.'
    )
  lines += _difference_notes(table.differences)
  if any(
    run.examples and run.examples.prompt is run.examples.uid for run in runs
  ):
    lines.append(
      'Runs of an older version saved no prompts: each of their records counts '
      'as a prompt of its own.'
    )
  losses = {repr(run.config.get('loss')) for run in runs}
  if len(losses) > 1:
    lines.append('Rows with different loss settings: losses do not compare.')
  if table.labels.left_out:
    left_out = ', '.join(table.labels.left_out)
    lines.append(f'Differ too, together with the columns shown: {left_out}.')
  return lines + _run_notes(runs, table, relative_to)


def run_name(run: collect.Run, relative_to: str | os.PathLike) -> str:
  """The run's path from the output folder."""
  base = pathlib.Path(relative_to).resolve()
  return pathlib.Path(os.path.relpath(run.path, base)).as_posix()


def _difference_notes(differences) -> list[str]:
  """Sentences on the intervals of the differences."""
  if not differences:
    return []
  lines = [
    'Differences are those of the cells, paired by evaluation prompt; margins '
    "are in units of each run's own reward."
  ]
  overs = {each.over for each in differences}
  if 'seeds and prompts' in overs:
    lines.append(
      'Differences of rows with several seeds: ± is half of the 95% interval '
      'over seeds and evaluation prompts (two-way); seeds are paired if both '
      'rows have the same.'
    )
  if 'prompts' in overs:
    lines.append(
      'Differences with a row of one seed: ± is half of the 95% interval over '
      'evaluation prompts (clustered); it does not cover the seed.'
    )
  return lines


def _run_notes(runs, table: cells.Table, relative_to) -> list[str]:
  """One sentence per mark, with the runs that have it."""

  def named(members):
    return ', '.join(run_name(run, relative_to) for run in members)

  lines = []
  unfinished = [run for run in runs if not run.done]
  if unfinished:
    lines.append(
      f'{_UNFINISHED} {len(unfinished)} of {len(runs)} runs unfinished (no '
      f'DONE): {named(unfinished)}'
    )
  torn = [run for run in runs if run.torn_lines]
  if torn:
    lines.append(
      f'{_TORN} metrics.jsonl ends in a torn line, left out, in {len(torn)} of '
      f'{len(runs)} runs: {named(torn)}'
    )
  repeated = [
    run
    for row in table.rows
    for members in row.group.by_seed()
    for run in members
    if len(members) > 1
  ]
  if repeated:
    lines.append(
      f'{_REPEATED} runs with the same config and seed count as one seed, by '
      f'their mean: {named(repeated)}'
    )
  return lines


def _grid(table: cells.Table) -> list[list[str]]:
  """Header and rows of the main table, as plain text."""
  head = [*table.labels.names, 'n', 'step']
  head += [f'{metric} {when}' for metric, when in table.columns]
  shares = {each.label for each in table.measures if each.is_share}
  rows = []
  for row in table.rows:
    # 10, or 5-10 if the seeds did not come equally far.
    steps = '-'.join(
      str(step) for step in sorted({row.steps[0], row.steps[-1]})
    )
    count = f'{len(row.group.seeds)}{_marks(row)}'
    values = [
      _cell_text(row.cells[label, when], len(row.group.seeds), label in shares)
      for label, when in table.columns
    ]
    rows.append([*row.label, count, steps, *values])
  return [head, *rows]


def _difference_grid(table: cells.Table) -> list[list[str]]:
  """Header and rows of the differences, one row per pair of rows."""
  metrics = list(dict.fromkeys(each.metric for each in table.differences))
  pairs = {}
  for each in table.differences:
    pairs.setdefault((each.row, each.baseline), {})[each.metric] = each
  rows = []
  for (index, baseline), differences in pairs.items():
    names = [row_name(table, i) for i in (index, baseline)]
    some = next(iter(differences.values()))
    # 3, or 3, 5 if the rows have unequal numbers of seeds.
    seeds = ', '.join(str(num) for num in dict.fromkeys(some.num_seeds))
    texts = []
    for metric in metrics:
      each = differences.get(metric)
      # Not every pair has every metric: a run may lack its rewards.
      texts.append(
        '-'
        if each is None
        else _plus_minus(
          each.interval.mean, each.interval.low, each.interval.high, '+'
        )
      )
    rows.append([' minus '.join(names), seeds, str(some.interval.num), *texts])
  return [['rows', 'seeds', 'prompts', *metrics], *rows]


def row_name(table: cells.Table, index: int) -> str:
  """A row as 'beta=0.1, loss=ipo', for messages and differences."""
  pairs = zip(table.labels.names, table.rows[index].label)
  return ', '.join(f'{name}={value}' for name, value in pairs)


def _marks(row: cells.Row) -> str:
  """The signs that send the reader to the notes."""
  runs = row.group.runs
  marks = _UNFINISHED if not all(run.done for run in runs) else ''
  marks += _TORN if any(run.torn_lines for run in runs) else ''
  return marks + (_REPEATED if len(runs) > len(row.group.seeds) else '')


def _cell_text(cell: cells.Cell, num_seeds: int, is_share: bool) -> str:
  if cell.value is None:
    return '-'
  if cell.over == 'prompts' and is_share:
    text = f'{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]'
  else:
    text = _plus_minus(cell.value, cell.low, cell.high)
  # A seed that did not get this far is not behind the mean.
  return text if cell.num_seeds == num_seeds else f'{text} (n={cell.num_seeds})'


def _plus_minus(value, low, high, sign: str = '') -> str:
  """'0.375 ± 0.012'; only the mean if its variation is zero or unknown."""
  half = (high - low) / 2 if low is not None else 0.0
  decimals = 3 if abs(value) < 100 else 1
  if not half > 1e-9 * abs(value):  # NaN, or only rounding varies
    return f'{value:{sign}.{decimals}f}'
  # As many decimals as show the first digit of the half width.
  decimals = min(max(decimals, -math.floor(math.log10(half))), 6)
  return f'{value:{sign}.{decimals}f} ± {half:.{decimals}f}'


def _markdown_grid(grid: list[list[str]], num_labels: int) -> str:
  """Padded lines: labels flush left, numbers flush right."""
  grid = [[_markdown_text(text) for text in line] for line in grid]
  widths = [max(3, *(len(text) for text in column)) for column in zip(*grid)]
  head, *rows = [
    [
      text.ljust(width) if index < num_labels else text.rjust(width)
      for index, (text, width) in enumerate(zip(line, widths))
    ]
    for line in grid
  ]
  rule = [
    '-' * width if index < num_labels else '-' * (width - 1) + ':'
    for index, width in enumerate(widths)
  ]
  return '\n'.join(f'| {" | ".join(line)} |' for line in [head, rule, *rows])


def _markdown_text(text: str) -> str:
  # Characters that would end a cell, or start emphasis, code or HTML.
  return re.sub(r'([\\|*`<])', r'\\\1', text)


def _tex_tabular(heads: list[str], rows, num_labels: int) -> list[str]:
  columns = 'l' * num_labels + 'r' * (len(rows[0]) - num_labels)
  body = [
    _tex_line(
      [_tex_text(text) for text in row[:num_labels]]
      + [_tex_number(text) for text in row[num_labels:]]
    )
    for row in rows
  ]
  return [
    rf'\begin{{tabular}}{{{columns}}}',
    r'\toprule',
    *heads,
    r'\midrule',
    *body,
    r'\bottomrule',
    r'\end{tabular}',
  ]


def _tex_line(parts: list[str]) -> str:
  return ' & '.join(parts) + r' \\'


def _tex_text(text: str) -> str:
  return ''.join(_TEX_SPECIAL.get(character, character) for character in text)


def _tex_number(text: str) -> str:
  # A hyphen before a digit is a minus sign, unless it joins two numbers.
  return re.sub(r'(?<![\w.])-(?=\d)', '$-$', _tex_text(text))


def _plain(part) -> str:
  """A field of the CSV."""
  if part is None or (isinstance(part, float) and math.isnan(part)):
    return ''
  return f'{part:.9g}' if isinstance(part, float) else str(part)
