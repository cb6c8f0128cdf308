"""Table -> sheet: heads, label texts and rounded numbers, before any markup.

Comes in: a `Table`. Goes out: grids of `str` and `Number`, in the order in
which Markdown, LaTeX and the page show them. Rounds; measures and marks up
nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.results import cells, measures

UNFINISHED, TORN, REPEATED = '†', '‡', '§'
_MOST = 6  # decimals
_USUAL = 3


class Number(NamedTuple):
  """A rounded number of a cell."""

  mean: str
  half: str = ''  # half width of the interval
  ends: tuple[str, ...] = ()  # of an interval that is not symmetric
  num: str = ''  # seeds behind it, if fewer than the row has
  bold: bool = False

  def __str__(self) -> str:
    """As plain text."""
    text = self.mean
    if self.half:
      text += f' ± {self.half}'
    if self.ends:
      text += f' [{", ".join(self.ends)}]'
    return f'{text} (n={self.num})' if self.num else text


Entry = str | Number


class Sheet(NamedTuple):
  """A grid: the heads, then the rows."""

  heads: tuple[str, ...]
  rows: tuple[tuple[Entry, ...], ...]
  num_labels: int  # columns that are flush left
  num_facts: int = 0  # first rows that are labels, of a transposed sheet

  def transposed(self, num_facts: int) -> 'Sheet':
    """Columns down; the first label column becomes the heads.

    Args:
      num_facts: columns that are labels too, after the first.
    """
    first, *rest = zip(self.heads, *self.rows)
    heads = tuple(str(each) for each in first)
    return Sheet(heads, tuple(rest), 1, num_facts)


def main(table: cells.Table) -> Sheet:
  """The sheet of the rows, transposed if the options say so."""
  facts = [name for name in ('n', 'step') if shows(table, name)]
  heads = [*table.labels.names, *facts]
  heads += [column_head(table, column) for column in table.shown]
  numbers = [_numbers(table, column) for column in table.shown]
  rows = []
  for index, row in enumerate(table.rows):
    texts = {
      'n': f'{len(row.group.seeds)}{marks(row)}',
      # 10, or 5-10 if the seeds did not come equally far.
      'step': '-'.join(
        str(step) for step in sorted({row.steps[0], row.steps[-1]})
      ),
    }
    rows.append(
      (
        *row.label,
        *(texts[name] for name in facts),
        *(column[index] for column in numbers),
      )
    )
  sheet = Sheet(tuple(heads), tuple(rows), len(table.labels.names))
  if not table.chosen.transpose:
    return sheet
  return sheet.transposed(len(table.labels.names) - 1 + len(facts))


def differences(table: cells.Table) -> Sheet:
  """The sheet of the differences: one row per row and its baseline."""
  metrics = list(dict.fromkeys(each.metric for each in table.differences))
  pairs = {}
  for each in table.differences:
    pairs.setdefault((each.row, each.baseline), {})[each.metric] = each
  shares = _shares(table)
  columns = {
    metric: _rounded(
      [
        (one.interval.mean, one.interval.low, one.interval.high)
        for one in table.differences
        if one.metric == metric
      ],
      _USUAL if metric in shares else 1,
      sign='+',
    )
    for metric in metrics
  }
  rows = []
  for (index, baseline), one_of in pairs.items():
    some = next(iter(one_of.values()))
    # 3, or 3, 5 if the rows have unequal numbers of seeds.
    seeds = ', '.join(str(num) for num in dict.fromkeys(some.num_seeds))
    line: list[Entry] = [*table.rows[index].label]
    if base_of(table) is None:
      line.append(', '.join(table.rows[baseline].label))
    line += [seeds, str(some.interval.num)]
    for metric in metrics:
      # Not every pair has every metric: a run may lack its rewards.
      each = one_of.get(metric)
      line += (
        ['-', '-']
        if each is None
        else [columns[metric].pop(0), p_text(each.p_holm)]
      )
    rows.append(tuple(line))
  heads = [*table.labels.names, *(['minus'] if base_of(table) is None else [])]
  num_labels = len(heads)
  heads += ['seeds', 'prompts']
  for metric in metrics:
    heads += [metric_head(table, metric), 'p']
  return Sheet(tuple(heads), tuple(rows), num_labels)


def base_of(table: cells.Table) -> int | None:
  """The one row that all differences subtract; None if there are several."""
  bases = {each.baseline for each in table.differences}
  return bases.pop() if len(bases) == 1 else None


def shows(table: cells.Table, fact: str) -> bool:
  """Whether `n` or `step` is a column; if not, the notes say it."""
  if fact in table.facts or len(table.rows) == 1:
    return True
  if fact == 'n':
    counts = {len(row.group.seeds) for row in table.rows}
    return len(counts) > 1 or any(marks(row) for row in table.rows)
  steps = {row.steps for row in table.rows}
  is_last = table.chosen.at.kind == 'last'
  return not is_last or len(steps) > 1 or len(table.rows[0].steps) > 1


def column_head(table: cells.Table, column: cells.Column) -> str:
  """'accuracy', or with 'before' and 'after' where both are shown."""
  metric, when = column
  head = metric_head(table, metric)
  both = all((metric, each) in table.shown for each in cells.WHENS)
  return f'{head} {when}' if both or when == 'before' else head


def metric_head(table: cells.Table, label: str) -> str:
  """A metric's label, or what --label says."""
  name = next(each.name for each in table.measures if each.label == label)
  if label == measures.LOSS.label and 'loss.terms' in table.labels.keys:
    return label  # --label loss=... is the column of the losses
  return table.chosen.rename(label, name)


def marks(row: cells.Row) -> str:
  """The signs that send the reader to the notes."""
  runs = row.group.runs
  text = UNFINISHED if not all(run.done for run in runs) else ''
  text += TORN if any(run.torn_lines for run in runs) else ''
  return text + (REPEATED if len(runs) > len(row.group.seeds) else '')


def p_text(p: float) -> str:
  """'0.012', '<0.001', or '-' without a test."""
  if math.isnan(p):
    return '-'
  return '<0.001' if p < 0.001 else f'{p:.3f}'


def value_text(table: cells.Table, column: cells.Column) -> str:
  """The one value that all rows have, rounded."""
  numbers = [row.cells[column].value for row in table.rows]
  value = next(number for number in numbers if number is not None)
  return f'{value:.3f}'.rstrip('0').rstrip('.')


def _numbers(table: cells.Table, column: cells.Column) -> list[Entry]:
  """The entries of a column; '-' where nothing was measured."""
  column_cells = [row.cells[column] for row in table.rows]
  is_share = column[0] in _shares(table)
  present = [
    (cell.value, cell.low, cell.high)
    for cell in column_cells
    if cell.value is not None
  ]
  rounded = iter(_rounded(present, _USUAL if is_share else 1))
  best = table.unbeaten.get(column, frozenset())
  entries: list[Entry] = []
  for index, (row, cell) in enumerate(zip(table.rows, column_cells)):
    if cell.value is None:
      entries.append('-')
      continue
    number = next(rounded)
    if cell.over == 'prompts' and is_share:
      ends = f'{cell.low:.3f}', f'{cell.high:.3f}'
      number = Number(f'{cell.value:.3f}', ends=ends)
    # A seed that did not get this far is not behind the mean.
    if cell.num_seeds != len(row.group.seeds):
      number = number._replace(num=str(cell.num_seeds))
    entries.append(number._replace(bold=index in best))
  return entries


def _shares(table: cells.Table) -> set[str]:
  return {each.label for each in table.measures if each.is_share}


def _rounded(
  numbers: Sequence[tuple], least: int = 1, sign: str = ''
) -> list[Number]:
  """Numbers of one column, with as many decimals as their intervals allow.

  A column has the decimals that its median half width needs, `least` at least
  and three at most; a cell has more where its own half width needs them.
  Without any interval there are three, or one beyond 100.

  Args:
    numbers: (value, low, high) of each; the ends are None without an interval.
    least: fewest decimals.
    sign: '+' to show it.
  """
  halves = [_half(*each) for each in numbers]
  needs = [_need(half) for half in halves if half is not None]
  usual = _USUAL
  if needs:
    usual = min(max(int(np.median(needs)), least), _USUAL)
  rounded = []
  for (value, _, _), half in zip(numbers, halves):
    if half is None:
      decimals = usual if needs or abs(value) < 100 else 1
      rounded.append(Number(f'{value:{sign}.{decimals}f}'))
      continue
    decimals = min(max(usual, _need(half)), _MOST)
    rounded.append(
      Number(f'{value:{sign}.{decimals}f}', f'{half:.{decimals}f}')
    )
  return rounded


def _half(value, low, high) -> float | None:
  """Half the width of an interval; None if it is zero or unknown."""
  half = (high - low) / 2 if low is not None else 0.0
  # NaN, or only rounding varies.
  return half if half > 1e-9 * abs(value) and math.isfinite(half) else None


def _need(half: float) -> int:
  """Decimals that show the first digit of a half width; two digits of 1x, 2x.

  Source: Particle Data Group, "Review of Particle Physics", section 5.3: one
  digit more where the first is small, since rounding takes most there.
  """
  exponent = math.floor(math.log10(half))
  return max(0, -exponent + (half / 10**exponent < 3))
