"""Cells -> HTML tables that sort, and the numbers behind each cell.

Comes in: `Table`s. Goes out: a table element per grid, in which every number is
a button, and a mapping from each button's key to what the details show. Reads
nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpo_jax.results import cells, tables
from dpo_jax.results.page import markup

_NUMBER = ' class="number"'
_BEHIND = 'the cell, and the runs, commits, data and files behind it'


def grid(
  head: Sequence[str],
  rows: Iterable[Sequence[Any]],
  caption: str,
) -> markup.Html:
  """A table that sorts by each column.

  Args:
    head: the columns' names.
    rows: per row one `td` or text per column.
    caption: names the table; unique in the page.
  """
  lines = [
    [part if isinstance(part, markup.Html) else text_cell(part) for part in row]
    for row in rows
  ]
  names = []
  for index, name in enumerate(head):
    is_number = any(_NUMBER in line[index].text for line in lines)
    names.append(
      markup.element(
        'th',
        markup.element('button', markup.label(name), type='button'),
        scope='col',
        class_='number' if is_number else None,
      )
    )
  lines = [
    markup.element('tr', *line, data_at=f'{caption}: line {number}')
    for number, line in enumerate(lines, 1)
  ]
  # Each line in the file is a row: an edit shows in a diff.
  body = markup.Html('\n'.join(line.text for line in lines))
  table = markup.element(
    'table',
    markup.element('caption', markup.element('span', caption)),
    markup.element('thead', markup.element('tr', *names)),
    markup.Html('\n'),
    markup.element('tbody', body),
    class_='sorted',
  )
  return markup.element(
    'div', table, class_='scroll', tabindex=0, role='region', aria_label=caption
  )


def text_cell(text: Any, at: str | None = None) -> markup.Html:
  """A cell of text; numbers in it sort as numbers."""
  return markup.element('td', markup.label(text), data_at=at)


def number_cell(
  text: str, value: float | None, at: str | None = None
) -> markup.Html:
  """A cell that sorts by a number; None sorts last."""
  return markup.element(
    'td', text, class_='number', data_at=at, data_v=_sortable(value)
  )


def cell_button(
  key: str, text: str, value: float | None, best: bool = False
) -> markup.Html:
  """A cell whose details open.

  Args:
    key: of the details; names the cell in the whole page.
    text: that is shown.
    value: to sort by, to nine digits; None sorts last.
    best: whether no other row beats it, which is bold.
  """
  shown = markup.element('b', text) if best else text
  return markup.element(
    'td',
    markup.element('button', shown, type='button', title=_BEHIND),
    class_='number',
    data_at=key,
    data_v=_sortable(value),
  )


def _sortable(value: float | None) -> str | None:
  known = value is not None and math.isfinite(value)
  return f'{value:.9g}' if known else None


def main_grid(
  table: cells.Table, places: Mapping[Any, int], title: str
) -> tuple[markup.Html, dict[str, Any]]:
  """The table of rows and metrics, and the details by cell.

  Args:
    table: of the report.
    places: index in the page's list of runs, by path.
    title: names the table; unique in the page.
  """
  details, rows = {}, []
  # Other columns say nothing, by the rule of the printed tables.
  columns = getattr(table, 'shown', ()) or table.columns
  unbeaten = getattr(table, 'unbeaten', {})
  head = [*table.labels.names, 'n', 'step']
  head += [f'{metric} {when}' for metric, when in columns]
  for index, row in enumerate(table.rows):
    name = tables.row_name(table, index)
    steps = '-'.join(
      str(step) for step in dict.fromkeys((row.steps[0], row.steps[-1]))
    )
    count = f'{len(row.group.seeds)}{"" if _is_done(row) else "†"}'
    line = [text_cell(text, f'{title}: row {name!r}') for text in row.label]
    line += [text_cell(count), text_cell(steps)]
    for metric, when in columns:
      cell = row.cells[metric, when]
      key = f'{title}: row {name!r}, cell {f"{metric} {when}"!r}'
      best = index in unbeaten.get((metric, when), ())
      line.append(cell_button(key, number(cell), cell.value, best))
      details[markup.visible(key)] = {
        'title': markup.visible(f'{metric} {when}: {name}'),
        'numbers': _numbers(cell),
        'runs': [places[run.path] for run in row.group.runs],
      }
    rows.append(line)
  return grid(head, rows, title), details


def difference_grid(
  table: cells.Table, places: Mapping[Any, int], title: str
) -> tuple[markup.Html | None, dict[str, Any]]:
  """The table of differences, and the details by cell."""
  if not table.differences:
    return None, {}
  details, lines = {}, {}
  metrics = list(dict.fromkeys(each.metric for each in table.differences))
  for each in table.differences:
    pair = [tables.row_name(table, i) for i in (each.row, each.baseline)]
    name = ' minus '.join(pair)
    key = f'{title}: row {name!r}, cell {each.metric!r}'
    numbers = _difference_numbers(each)
    details[markup.visible(key)] = {
      'title': markup.visible(f'{each.metric}: {name}'),
      'numbers': numbers,
      'runs': [
        places[run.path]
        for index in (each.row, each.baseline)
        for run in table.rows[index].group.runs
      ],
    }
    interval = each.interval
    text = plus_minus(interval.mean, interval.low, interval.high, '+')
    line = lines.setdefault(name, {'': text_cell(name, f'{title}: {name!r}')})
    line[each.metric] = cell_button(key, text, interval.mean)
  rows = [
    [line[''], *(line.get(metric, text_cell('-')) for metric in metrics)]
    for line in lines.values()
  ]
  return grid(['rows', *metrics], rows, title), details


def number(cell: cells.Cell) -> str:
  """A cell as text: '0.375 ± 0.012', or '-' if nothing was measured."""
  if cell.value is None:
    return '-'
  return plus_minus(cell.value, cell.low, cell.high)


def plus_minus(value, low, high, sign: str = '') -> str:
  """'0.375 ± 0.012', with as many decimals as its half width shows."""
  half = (high - low) / 2 if low is not None and high is not None else 0.0
  decimals = 3 if abs(value) < 100 else 1
  if not half > 1e-9 * abs(value):  # NaN, or only rounding varies
    return f'{value:{sign}.{decimals}f}'
  if math.isfinite(half):
    decimals = min(max(decimals, -math.floor(math.log10(half))), 6)
  return f'{value:{sign}.{decimals}f} ± {half:.{decimals}f}'


def _numbers(cell: cells.Cell) -> dict[str, str]:
  """Everything that is known of a cell, as text."""
  seeds = f'{cell.num_seeds} seed{"" if cell.num_seeds == 1 else "s"}'
  over = {'seeds': 'seeds', 'prompts': 'evaluation prompts'}.get(cell.over)
  if cell.low is not None and over:
    low, high = digits(cell.low), digits(cell.high)
    interval = f'{low} to {high}, over {cell.num} {over}'
  else:
    interval = 'none'
  return {
    'value': digits(cell.value),
    'standard error': digits(cell.se),
    '95 % interval': interval,
    'measured by': seeds,
  }


def _difference_numbers(each: cells.Difference) -> dict[str, str]:
  low, high = digits(each.interval.low), digits(each.interval.high)
  seeds = ' and '.join(map(str, each.num_seeds))
  numbers = {
    'difference': digits(each.interval.mean),
    'standard error': digits(each.interval.se),
    '95 % interval': f'{low} to {high}, over {each.over}',
    'prompts': str(each.interval.num),
    'seeds': seeds,
  }
  for name, words in (('p', 'p'), ('p_holm', "p, Holm's")):
    value = getattr(each, name, None)
    if value is not None and not math.isnan(value):
      numbers[words] = digits(value)
  return numbers


def digits(value: float | None) -> str:
  """A number to nine digits, as provenance.json has it."""
  return '-' if value is None else f'{value:.9g}'


def _is_done(row: cells.Row) -> bool:
  return all(run.done for run in row.group.runs)
