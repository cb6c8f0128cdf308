"""Table -> sentences: what its numbers, marks and tests mean.

Comes in: a `Table`. Goes out: one sentence per fact that a reader needs, those
for print first; those that name runs, which a paper has no room for, apart.
Measures nothing.
"""

import os

import numpy as np

from dpo_jax.results import cells, collect, measures, sheet
from dpo_jax.storage import places


def main(table: cells.Table) -> list[str]:
  """Sentences on steps, intervals, tests, seeds, prompts and signs."""
  return [
    *_steps(table),
    *_intervals(table),
    *_bold(table),
    *_columns(table),
    *_marks(table),
  ]


def differences(table: cells.Table) -> list[str]:
  """Sentences on the differences and their tests."""
  if not table.differences:
    return []
  text = 'Differences are those of the cells, paired by evaluation prompt'
  if measures.MARGIN.label in {each.metric for each in table.differences}:
    text += "; margins are in units of each run's own reward"
  lines = [f'{text}.']
  overs = {each.over for each in table.differences}
  if 'seeds and prompts' in overs:
    lines.append(
      'Differences of rows with several seeds: ± is half of the 95 % interval '
      'over seeds and evaluation prompts (two-way); seeds are paired if both '
      'rows have the same.'
    )
  if 'prompts' in overs:
    lines.append(
      'Differences with a row of one seed: ± is half of the 95 % interval over '
      'evaluation prompts (clustered); it does not cover the seed.'
    )
  num = max(
    sum(one.metric == each.metric for one in table.differences)
    for each in table.differences
  )
  lines.append(
    'p: two-sided t test of no difference'
    + (f', Holm over the {num} rows of a column.' if num > 1 else '.')
  )
  return lines


def for_readers(
  table: cells.Table, relative_to: str | os.PathLike
) -> list[str]:
  """All sentences, those that name keys and runs too.

  Args:
    table: of cells.py.
    relative_to: the folder from which the paths of runs start.
  """
  lines = [*main(table), *differences(table)]
  runs = [run for row in table.rows for run in row.group.runs]
  if any(
    run.examples and run.examples.prompt is run.examples.uid for run in runs
  ):
    lines.append(
      'Runs of an older version saved no prompts: each of their records counts '
      'as a prompt of its own.'
    )
  if table.labels.left_out:
    left_out = ', '.join(table.labels.left_out)
    lines.append(f'Differ too, together with the columns shown: {left_out}.')
  if table.labels.implied:
    implied = ', '.join(table.labels.implied)
    lines.append(f'At the defaults of the losses: {implied}.')
  return lines + _runs(runs, table, relative_to)


def run_name(run: collect.Run, relative_to: str | os.PathLike) -> str:
  """The run's path from the output folder."""
  return places.relative(run.path, relative_to)


def at_text(table: cells.Table) -> str:
  """The choice of --at, in words."""
  at = table.chosen.at
  if at.kind == 'best':
    runs = [run for row in table.rows for run in row.group.runs]
    metrics = {
      at.metric or run.config.get('train', {}).get('keep_best') for run in runs
    }
    named = ', '.join(
      f'{"lowest" if metric.startswith("-") else "highest"} '
      f'{metric.removeprefix("-")}'
      for metric in sorted(metrics)
    )
    return f"each run's evaluation of the {named}, chosen on the same data"
  if at.kind == 'tokens':
    return f'the last evaluation within {at.limit:,.0f} training tokens'
  if at.kind == 'kl':
    return f'the last evaluation before |KL| exceeds {at.limit:g} nats'
  return 'the last evaluation'


def _steps(table: cells.Table) -> list[str]:
  """Which evaluation the cells are of, and how many seeds a row has."""
  text = f'Values are of {at_text(table)}'
  if not sheet.shows(table, 'step'):
    text += f' (step {table.rows[0].steps[0]})'
  if any(when == 'before' for _, when in table.shown):
    text += '; before: step 0'
  text += '. '
  if sheet.shows(table, 'n'):
    return [f'{text}n: seeds.']
  num = len(table.rows[0].group.seeds)
  return [f'{text}{num} {"seeds" if num > 1 else "seed"} per row.']


def _intervals(table: cells.Table) -> list[str]:
  shown = [
    (column, row.cells[column]) for row in table.rows for column in table.shown
  ]
  overs = {cell.over for _, cell in shown}
  shares = {each.label for each in table.measures if each.is_share}
  lines = []
  if 'seeds' in overs:
    lines.append(
      "± is half of the 95 % interval over seeds (Student's t), which does not "
      'cover other evaluation prompts.'
    )
  if 'prompts' in overs:
    text = (
      '± is half of the 95 % interval over evaluation prompts (clustered '
      'standard error)'
    )
    if any(c.over == 'prompts' and m in shares for (m, _), c in shown):
      text += ", [low, high] is Wilson's"
    lines.append(f'One seed: {text}; it does not cover the seed.')
  prompts = _prompts(table)
  if prompts:
    lines.append(prompts)
  return lines


def _prompts(table: cells.Table) -> str:
  """How large the evaluation data is, if all runs agree."""
  sizes = {
    (len(np.unique(run.examples.prompt)), len(run.examples.uid))
    for row in table.rows
    for run in row.group.runs
    if run.examples is not None
  }
  if len(sizes) != 1:
    return ''
  prompts, num = sizes.pop()
  return f'Evaluation data: {num} records of {prompts} prompts.'


def _bold(table: cells.Table) -> list[str]:
  """What bold type means, and the columns in which nothing is bold."""
  lines = []
  for (metric, when), best in table.unbeaten.items():
    head = sheet.column_head(table, (metric, when))
    num = table.num_tests[metric, when]
    test = (
      f'{num} paired t tests by prompt{_over(table)}, Holm, level 0.05'
      if num > 1
      else f'paired t test by prompt{_over(table)}, level 0.05'
    )
    if best:
      lines.append(
        f'Bold {head}: no other row is significantly better ({test}).'
      )
    else:
      lines.append(f'{head}: no two rows differ significantly ({test}).')
  return lines


def _over(table: cells.Table) -> str:
  counts = {len(row.group.seeds) for row in table.rows}
  return ' and seed' if min(counts) > 1 else ''


def _columns(table: cells.Table) -> list[str]:
  """What the columns do not show: ties, constants and losses; KL's sign."""
  lines = []
  if cells.starts_equal(table):
    lines.append('Before training policy = reference: accuracy 0, all tie.')
  constant = [
    column
    for column in table.columns
    if column not in table.shown
    and cells.same(table, column)
    and not _is_zero(table, column)
    and (column[0] != measures.LOSS.label or cells.is_comparable(table))
  ]
  # Lengths are the same before and after: one of them is enough.
  texts = {column: sheet.value_text(table, column) for column in constant}
  said = [
    f'{sheet.metric_head(table, metric)} '
    f'{"" if when == "after" else "before "}'
    f'{texts[metric, when]}'
    for metric, when in constant
    if when == 'after' or texts.get((metric, 'after')) != texts[metric, when]
  ]
  if said and len(table.rows) > 1:
    lines.append(f'The same in all rows: {", ".join(said)}.')
  if not cells.is_comparable(table):
    shown = any(metric == measures.LOSS.label for metric, _ in table.shown)
    lines.append(
      'Rows have different loss settings: losses do not compare'
      f'{"" if shown else " and are not shown"}.'
    )
  kl = [row.cells.get((measures.KL.label, 'after')) for row in table.rows]
  is_shown = any(metric == measures.KL.label for metric, _ in table.shown)
  if is_shown and any(each and each.value is not None for each in kl):
    lines.append(
      'KL: mean of log reference - log policy over both answers, in nats, '
      'negative if the policy made them more likely; an estimate of the '
      'divergence only if the reference wrote the answers, else a drift.'
    )
  return lines


def _is_zero(table: cells.Table, column: cells.Column) -> bool:
  """Whether policy = reference says it already."""
  return column[1] == 'before' and all(
    row.cells[column].value in (0, None) for row in table.rows
  )


def _marks(table: cells.Table) -> list[str]:
  """What the marks mean, without the runs that have them."""
  runs = [run for row in table.rows for run in row.group.runs]
  present = {mark for row in table.rows for mark in sheet.marks(row)}
  unfinished = sum(not run.done for run in runs)
  said = {
    sheet.UNFINISHED: f'{unfinished} of {len(runs)} runs unfinished (no DONE)',
    sheet.TORN: 'metrics.jsonl ends in a torn line, left out',
    sheet.REPEATED: 'runs with the same config and seed count as one seed, by '
    'their mean',
  }
  return [f'{mark} {text}.' for mark, text in said.items() if mark in present]


def _runs(runs, table: cells.Table, relative_to) -> list[str]:
  """The runs behind each mark."""
  repeated = [
    run
    for row in table.rows
    for members in row.group.by_seed()
    for run in members
    if len(members) > 1
  ]
  marked = {
    sheet.UNFINISHED: [run for run in runs if not run.done],
    sheet.TORN: [run for run in runs if run.torn_lines],
    sheet.REPEATED: repeated,
  }
  return [
    f'{mark} {len(members)} of {len(runs)} runs: '
    + ', '.join(run_name(run, relative_to) for run in members)
    for mark, members in marked.items()
    if members
  ]
