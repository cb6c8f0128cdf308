r"""Table -> LaTeX: floats that fit a column, a page, or a turned page.

Comes in: a `Table`. Goes out: LaTeX source to \input as it is. Nothing is
compiled here: widths are estimated from those of Computer Modern, which is at
least as wide as the typefaces of the usual templates. A table goes into the
narrowest place that holds it; one that no place holds is split, by columns and
then by rows.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dpo_jax.results import cells, notes, sheet, tables


class Place(NamedTuple):
  """Where a float goes."""

  environment: str
  width: float  # pt
  height: float  # pt


class Size(NamedTuple):
  """A type size and the space between columns."""

  command: str
  scale: float  # width of a character, 1 at 10 pt
  line: float  # pt from line to line
  gap: float  # \tabcolsep, pt


# The narrowest of each among article, ACL, ICML and NeurIPS, less a margin; a
# turned table has the height of the text for its width.
COLUMN = Place('table', 215.0, 520.0)
TEXT = Place('table*', 392.0, 520.0)
TURNED = Place('sidewaystable*', 535.0, 330.0)
# article at 10 pt; the fonts of small sizes are wider than in proportion.
SIZES = (
  Size(r'\small', 0.926, 11.0, 6.0),
  Size(r'\footnotesize', 0.851, 9.5, 4.0),
  Size(r'\scriptsize', 0.815, 8.0, 3.0),
)
# Widths of cmr10 in em of 10 pt (its TFM), rounded up.
_WIDTHS = {
  character: width
  for width, characters in (
    (0.28, " !',.:;[]`il"),
    (0.31, 'fj'),
    (0.34, '-'),
    (0.40, '()rstI'),
    (0.45, 'cez'),
    (0.5, '/0123456789ago'),
    (0.52, '"*_{}$~^\\?J'),
    (0.56, 'Sbdhnpukqvxy†‡§'),
    (0.69, 'ZLFEPB'),
    (0.79, 'CTwRAHNUVXYD&+=@GKOQ±<>|'),
    (1.03, '#%mMW'),
  )
  for character in characters
}
# Places and sizes in the order in which they are tried, by --width.
_TRIES = {
  '': [(COLUMN, 2), (TEXT, 2), (TURNED, 2), (TEXT, 3), (TURNED, 3)],
  'column': [(COLUMN, 3)],
  'text': [(TEXT, 2), (TURNED, 2), (TEXT, 3), (TURNED, 3)],
}
_BOLD = 1.16  # cmbx10, of cmr10
_SPACES = 0.5  # em on both sides of ± in maths
_RULES = 14.0  # pt, of the three rules and their spaces
_SPECIAL = {
  **{character: f'\\{character}' for character in '&%$#_{}'},
  '\\': r'$\backslash$',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '<': r'$<$',
  '>': r'$>$',
  '|': r'$|$',
  '±': r'$\pm$',
  sheet.UNFINISHED: r'$^\dagger$',
  sheet.TORN: r'$^\ddagger$',
  sheet.REPEATED: r'$^\mathsection$',
}
_GREEK = ('alpha', 'beta', 'gamma', 'delta', 'epsilon', 'tau')
_NUMBER = re.compile(r'(-?\d+(?:\.\d+)?)(?:e([-+]?)0*(\d+))?')


def latex(table: cells.Table, name: str = 'results') -> str:
  r"""Floats of the rows and of the differences, each with its notes.

  Args:
    table: of cells.py.
    name: in \label{tab:NAME}.
  """
  caption = f'Held-out metrics of {notes.at_text(table)}.'
  lines = [
    '% made by python -m dpo_jax.results; provenance.json names the runs',
  ]
  body = _floats(table, sheet.main(table), name, caption, notes.main(table))
  if table.differences:
    base = sheet.base_of(table)
    of_base = '' if base is None else f' from {tables.row_name(table, base)}'
    body += _floats(
      table,
      sheet.differences(table),
      f'{name}-differences',
      f'Differences{of_base} on the same held-out comparisons.',
      notes.differences(table),
    )
  packages = ['booktabs']
  packages += ['rotating'] if any('sideways' in each for each in body) else []
  needs = '% needs ' + ' '.join(rf'\usepackage{{{each}}}' for each in packages)
  return '\n'.join([*lines, needs, *body, ''])


def _floats(
  table: cells.Table,
  content: sheet.Sheet,
  name: str,
  caption: str,
  sentences: Sequence[str],
) -> list[str]:
  """The lines of the floats of one sheet; the last one has the notes."""
  place, size, parts = _fit(table, content, ' '.join(sentences))
  lines = []
  for number, part in enumerate(parts, 1):
    label = name if number == 1 else f'{name}-{number}'
    text = _text(caption)
    if len(parts) > 1:
      text += f' Part {number} of {len(parts)}.'
    lines += [
      '',
      rf'\begin{{{place.environment}}}',
      r'\centering',
      # A part has the number of its table.
      *([r'\addtocounter{table}{-1}'] if number > 1 else []),
      rf'\caption{{{text}}}\label{{tab:{label}}}',
      r'\par\smallskip',
      size.command,
      rf'\setlength{{\tabcolsep}}{{{size.gap:g}pt}}',
      *_tabular(part, place, size),
    ]
    if number == len(parts) and sentences:
      lines += [
        r'\par\smallskip',
        r'\begin{minipage}{\linewidth}\footnotesize\raggedright',
        *(_text(sentence) for sentence in sentences),
        r'\end{minipage}',
      ]
    lines.append(rf'\end{{{place.environment}}}')
  return lines


def _fit(
  table: cells.Table, content: sheet.Sheet, sentences: str
) -> tuple[Place, Size, list[sheet.Sheet]]:
  """The first place and size that hold all columns; else columns are split."""
  tries = _TRIES[table.chosen.width]
  for place, num_sizes in tries:
    for size in SIZES[:num_sizes]:
      if _width(content, size) <= place.width:
        return place, size, list(_by_rows(content, place, size, sentences))
  place, size = tries[0][0], SIZES[1]
  if not table.chosen.width:
    place = TEXT
  parts = [
    rows
    for columns in _by_columns(content, place, size)
    for rows in _by_rows(columns, place, size, sentences)
  ]
  return place, size, parts


def _by_columns(
  content: sheet.Sheet, place: Place, size: Size
) -> Iterator[sheet.Sheet]:
  """Parts with all labels and as many other columns as fit, one at least."""
  num = content.num_labels

  def part(columns: Sequence[int]) -> sheet.Sheet:
    chosen = [*range(num), *columns]
    lines = [
      tuple(line[index] for index in chosen)
      for line in (content.heads, *content.rows)
    ]
    return content._replace(heads=lines[0], rows=tuple(lines[1:]))

  columns: list[int] = []
  for index in range(num, len(content.heads)):
    wider = part([*columns, index])
    if columns and _width(wider, size, place) > place.width:
      yield part(columns)
      columns = []
    columns.append(index)
  yield part(columns)


def _by_rows(
  content: sheet.Sheet, place: Place, size: Size, sentences: str
) -> Iterator[sheet.Sheet]:
  """Parts of as many rows as a page holds beside caption and notes."""
  # Caption of three lines at 10 pt; the notes are in \footnotesize.
  small = SIZES[1]
  lines_of_notes = math.ceil(
    1.1 * _text_width(sentences) * small.scale / place.width
  )
  free = place.height - _RULES - 3 * 12 - 12 - lines_of_notes * small.line
  num_rows = max(
    8, int(free / size.line / _lines_per_row(content, place, size))
  )
  num_parts = math.ceil(len(content.rows) / num_rows)
  # Parts of equal length.
  each = math.ceil(len(content.rows) / max(num_parts, 1))
  for start in range(0, len(content.rows), max(each, 1)):
    yield content._replace(rows=content.rows[start : start + each])


def _tabular(content: sheet.Sheet, place: Place, size: Size) -> list[str]:
  num = content.num_labels
  caps = _caps(content, place, size)
  columns = 'l' * num + 'r' * (len(content.heads) - num)
  lines = [
    rf'\begin{{tabular}}{{@{{}}{columns}@{{}}}}',
    r'\toprule',
    _line([_head(text) for text in content.heads]),
    r'\midrule',
  ]
  for index, row in enumerate(content.rows):
    if index and index == content.num_facts:
      lines.append(r'\midrule')
    elif index and _starts_block(content, index):
      lines.append(r'\addlinespace')
    lines.append(_line([_entry(entry, cap) for entry, cap in zip(row, caps)]))
  return [*lines, r'\bottomrule', r'\end{tabular}']


def _starts_block(content: sheet.Sheet, index: int) -> bool:
  """Whether a row begins another value of the first of several labels."""
  firsts = [row[0] for row in content.rows]
  return (
    content.num_labels > 1
    and len(set(firsts)) < len(firsts)
    and firsts[index] != firsts[index - 1]
  )


def _line(parts: Sequence[str]) -> str:
  return ' & '.join(parts) + r' \\'


def _head(text: str) -> str:
  # Names of hyper-parameters as papers write them.
  return rf'$\{text}$' if text in _GREEK else _text(text.replace('_', ' '))


def _entry(entry: sheet.Entry, cap: float | None = None) -> str:
  if isinstance(entry, str):
    if entry == '-':
      return '--'
    number = _NUMBER.fullmatch(entry)
    if number:
      mantissa, sign, exponent = number.groups()
      power = rf' \times 10^{{{sign.strip("+")}{exponent}}}' if exponent else ''
      return f'${mantissa}{power}$'
    if re.fullmatch(r'\d+-\d+', entry):  # steps
      return entry.replace('-', '--')
    if cap is not None:
      text = _text(entry, breaks=True)
      return rf'\parbox[t]{{{cap:.0f}pt}}{{\raggedright {text}\strut}}'
    return _text(entry)
  # The sign before the number is in maths too.
  mean = rf'\mathbf{{{entry.mean}}}' if entry.bold else entry.mean
  text = f'{mean} \\pm {entry.half}' if entry.half else mean
  if entry.ends:
    text += rf'\ [{", ".join(entry.ends)}]'
  return f'${text}$' + (f' (n={entry.num})' if entry.num else '')


def _text(text: str, *, breaks: bool = False) -> str:
  """Text with its special characters escaped.

  Args:
    text: plain text.
    breaks: whether long words may break, after marks and every 12 characters.
  """
  parts, run = [], 0
  for character in text:
    # What no font of a plain LaTeX has would stop it.
    known = character in _SPECIAL or ord(character) < 0x180
    parts.append(_SPECIAL.get(character, character if known else '?'))
    run = run + 1 if character.isalnum() else 0
    if breaks and character != ' ' and (not run or run % 12 == 0):
      parts.append(r'\allowbreak{}')
  return ''.join(parts)


def _width(
  content: sheet.Sheet, size: Size, place: Place | None = None
) -> float:
  """Width of a sheet in pt; with a place, its long labels are broken."""
  caps = [None] * len(content.heads)
  if place is not None:
    caps = _caps(content, place, size)
  columns = zip(content.heads, *content.rows)
  widths = [
    max(_entry_width(entry, size) for entry in column) if cap is None else cap
    for column, cap in zip(columns, caps)
  ]
  return sum(widths) + 2 * size.gap * (len(widths) - 1)


def _caps(content: sheet.Sheet, place: Place, size: Size) -> list[float | None]:
  """Widths of the label columns that must break, in pt; None = as it is."""
  num = content.num_labels
  caps: list[float | None] = [None] * len(content.heads)
  if _width(content, size) <= place.width:
    return caps
  widest = place.width / 2 / max(num, 1)
  for index in range(num):
    column = [content.heads[index], *(row[index] for row in content.rows)]
    if max(_entry_width(entry, size) for entry in column) > widest:
      caps[index] = widest
  return caps


def _lines_per_row(content: sheet.Sheet, place: Place, size: Size) -> int:
  """Lines of the highest row."""
  caps = _caps(content, place, size)
  return max(
    (
      math.ceil(1.3 * _entry_width(entry, size) / cap)
      for row in content.rows
      for entry, cap in zip(row, caps)
      if cap is not None
    ),
    default=1,
  )


def _entry_width(entry: sheet.Entry, size: Size) -> float:
  """Estimated width in pt."""
  if isinstance(entry, str):
    # '5e-07' is printed as 5 x 10^-7.
    more = 2.0 if re.fullmatch(_NUMBER, entry) and 'e' in entry else 0.0
    return size.scale * (_text_width(entry) + 10 * more)
  mean = _text_width(entry.mean)
  # A minus sign is 0.78 em wide, a hyphen 0.33.
  signs = sum(4.5 for each in (entry.mean, *entry.ends) if each[0] == '-')
  mean = mean * (_BOLD if entry.bold else 1.0)
  rest = _text_width(str(entry)) - _text_width(entry.mean)
  spaces = 10 * _SPACES if entry.half or entry.ends else 0.0
  return size.scale * (mean + rest + signs + spaces)


def _text_width(text: str) -> float:
  """Width at 10 pt, in pt."""
  return 10 * sum(_WIDTHS.get(character, 1.0) for character in text)
