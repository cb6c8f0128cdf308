"""Table, figures and runs -> index.html, one file that opens offline.

Comes in: a `Table`, the figures as SVG with their data, the runs. Goes out: the
bytes of the page, the same for the same runs: tables that sort, the runs,
commits and data behind each cell, figures, the status of a sweep, and examples.
It refers to nothing outside of itself but folders of runs, by relative links.
Writes no file, runs no model and needs no jax.

The script of the page has no data of its own: it reads the JSON blocks that are
made here. A policy in the page (Content-Security-Policy) lets no other script
and no other style run.
"""

import functools
import importlib.resources
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.results import cells, collect, tables
from dpo_jax.results.page import (
  drawings,
  grids,
  markup,
  origins,
  pairs,
  samples,
  stories,
  texts,
)
from dpo_jax.results.page import status as sweep_status

FILE = 'index.html'
MOST_BYTES = 5_000_000
# A larger figure is named, not shown, and so are the numbers behind it.
_MOST_FIGURE = 1_000_000
_MOST_NUMBERS = 150_000
_ABOUT_ABSENT = 1000  # bytes for lines of what is absent


def build(
  runs: Sequence[collect.Run],
  table: cells.Table,
  options: Any,
  figures_svg: Mapping[str, bytes],
  data: Mapping[str, Any],
  *,
  folder: str | os.PathLike,
  others: Mapping[str, cells.Table] | None = None,
) -> dict[str, bytes]:
  """Makes the page.

  Args:
    runs: that the command read.
    table: the report's.
    options: of the report; not read, the table has been made by them.
    figures_svg: SVG by the figure's name.
    data: what each figure shows, as plain values by the figure's name.
    folder: that the page will lie in; links start there.
    others: tables of evaluations on other data, by name.

  Returns:
    {'index.html': bytes}.
  """
  del options
  # Runs that no row of the table has are in no cell either.
  listed = origins.every_run(table)
  listed += [run for run in runs if run.path not in {r.path for r in listed}]
  places = origins.numbers(listed)
  described = origins.describe(listed, folder)
  names = {run.path: described[places[run.path]]['name'] for run in listed}
  details: dict[str, Any] = {}
  sections = {
    'status': ('Sweep', sweep_status.sections(listed, folder)),
    'tables': (
      'Tables',
      _tables(table, others or {}, places, details, folder),
    ),
    'figures': ('Figures', _figures(figures_svg, data)),
    'frontier': ('Reward against KL', stories.frontier(listed, names)),
    'diagnosis': ('Diagnosis', stories.diagnosis(listed, names)),
    'examples': ('Examples', [_browser()]),
    'runs': ('Runs', _runs(described)),
  }
  blocks = {
    'data-runs': described,
    'data-cells': details,
    'data-figures': _small(data),
  }
  made = functools.partial(_page, sections, listed, table)
  lists, finder = pairs.make_lists(table, names), texts.Finder()
  room = max(MOST_BYTES - len(made(blocks)), 0)
  blocks['data-samples'], lines = samples.as_json(listed, names, room // 3)
  room = MOST_BYTES - len(made(blocks)) - _ABOUT_ABSENT
  for _ in range(2):
    blocks['data-pairs'], more = pairs.as_json(lists, finder, max(room, 0))
    sections['examples'] = (
      'Examples',
      [_absent([*more, *lines]), _browser(blocks)],
    )
    whole = made(blocks)
    if len(whole) <= MOST_BYTES:
      break
    # Lines of what is absent took more than was kept for them.
    room -= len(whole) - MOST_BYTES
  return {FILE: whole}


def _page(sections, runs, table: cells.Table, blocks) -> bytes:
  """The whole file."""
  shown = {key: value for key, value in sections.items() if value[1]}
  body = [
    markup.element('section', markup.element('h2', title), *parts, id=key).text
    for key, (title, parts) in shown.items()
  ]
  links = [
    markup.element('a', title, href=f'#{key}')
    for key, (title, _) in shown.items()
  ]
  style, script = _own('page.css'), _own('page.js')
  policy = '; '.join(
    [
      "default-src 'none'",
      f'script-src {markup.content_hash(script)}',
      f'style-src {markup.content_hash(style)}',
      'img-src data:',
      "base-uri 'none'",
      "form-action 'none'",
    ]
  )
  parts = {
    'POLICY': policy,
    'STYLE': style,
    'SCRIPT': script,
    'TITLE': markup.escape(_title(table)),
    'SUMMARY': markup.escape(_summary(runs, table)),
    'NAV': markup.joined(*links).text,
    'SECTIONS': '\n'.join(body),
    'DATA': '\n'.join(
      markup.json_block(name, value).text for name, value in blocks.items()
    ),
  }
  # One pass: a text that looks like a place to fill stays a text.
  filled = re.sub(
    '@([A-Z]+)@', lambda match: parts[match[1]], _own('page.html')
  )
  return filled.encode('ascii', 'xmlcharrefreplace')


def _own(name: str) -> str:
  """A file that comes with the package."""
  place = importlib.resources.files('dpo_jax.results.page') / name
  return place.read_text(encoding='utf-8')


def _title(table: cells.Table) -> str:
  return ', '.join(table.labels.names)


def _summary(runs: Sequence[collect.Run], table: cells.Table) -> str:
  unfinished = sum(not run.done for run in runs)
  more = f', {unfinished} of them unfinished' if unfinished else ''
  return (
    f'{len(runs)} runs in {len(table.rows)} rows{more}. A click on a number '
    'shows the runs, commits, data and files behind it; '
    'python -m dpo_jax.results --verify checks that all of it still follows '
    'from the runs.'
  )


def _tables(table, others, places, details, folder) -> list[markup.Html]:
  """The report's tables, then those of other held-out data, with notes."""
  parts = []
  for name, one in {'': table, **others}.items():
    on = f' on {name}' if name else ''
    if name:
      parts.append(markup.element('h3', 'On other data: ', markup.label(name)))
    grid, numbers = grids.main_grid(one, places, f'Results{on}')
    details |= numbers
    parts.append(grid)
    grid, numbers = grids.difference_grid(
      one, places, f'Differences on the same evaluation comparisons{on}'
    )
    details |= numbers
    parts += [grid] if grid else []
    lines = [markup.element('li', line) for line in tables.notes(one, folder)]
    parts.append(markup.element('ul', *lines, class_='notes'))
  return parts


def _figures(figures_svg, data) -> list[markup.Html]:
  """The drawings, each with its name and a button for its numbers."""
  shown = []
  for name, svg in figures_svg.items():
    button = None
    if name in _small(data):
      button = markup.element(
        'button', 'numbers', type='button', data_figure=name
      )
    words = data.get(name)
    words = words.get('caption') if isinstance(words, Mapping) else None
    caption = markup.element(
      'figcaption',
      markup.label(name),
      ' ',
      button,
      markup.element('p', words) if words else None,
    )
    drawing = _drawing(svg, name)
    wide = 'wide' if _is_wide(drawing.text) else None
    shown.append(
      markup.element(
        'figure', drawing, caption, class_=wide, data_at=f'figure {name}'
      )
    )
  return [markup.element('div', *shown, class_='figures')] if shown else []


def _drawing(svg: bytes, name: str) -> markup.Html:
  try:
    drawing = drawings.inline(svg, name)
  except ValueError as error:
    return markup.element('p', f'not shown: {error}', class_='absent')
  if len(drawing.text) > _MOST_FIGURE:
    size = f'{len(drawing.text) / 1e6:.1f} MB'
    words = f'not shown: {size} of SVG; it is in figures/{name}.pdf'
    return markup.element('p', words, class_='absent')
  return drawing


def _is_wide(drawing: str) -> bool:
  """Whether a drawing is more than twice as wide as high."""
  box = re.search(r'viewBox="\S+ \S+ (\S+) (\S+)"', drawing)
  return bool(box) and float(box[1]) > 2 * float(box[2])


def _small(data: Mapping[str, Any]) -> dict[str, Any]:
  """The numbers of figures that are few enough to show in a page."""
  sizes = {n: len(markup.json_block('', v).text) for n, v in data.items()}
  return {
    name: value for name, value in data.items() if sizes[name] <= _MOST_NUMBERS
  }


def _runs(described) -> list[markup.Html]:
  """A table of all runs, with links to their folders."""
  rows = []
  for entry in described:
    facts = entry['facts']
    link = markup.element(
      'a', markup.label(entry['name']), href=entry['href'], class_='id'
    )
    rows.append(
      [
        markup.element('td', link, data_at=f'run {entry["name"]}'),
        facts.get('seed', '-'),
        facts['state'],
        facts['last evaluation'],
        # Details have all of it.
        facts['commit'] if ' ' in facts['commit'] else facts['commit'][:12],
        entry['data'].get('evaluated on', '-'),
        entry['data'].get('eval_data', '-')[:16],
      ]
    )
  head = ['run', 'seed', 'state', 'last evaluation', 'commit', 'held-out data']
  return [grids.grid([*head, 'fingerprint'], rows, 'Runs')]


_KINDS = {
  pairs.WORST: 'Worst held-out pairs of a run',
  pairs.MISLABELLED: 'Pairs that all runs get wrong (mislabelled?)',
  'samples': 'Samples of two runs side by side',
}


def _browser(blocks: Mapping[str, Any] | None = None) -> markup.Html:
  """The controls of the examples; the script fills the rest."""
  kinds = dict(_KINDS)
  if blocks is not None:
    kept = {one['kind'] for one in blocks['data-pairs']['lists']}
    kept |= {'samples'} if blocks['data-samples']['sets'] else set()
    kinds = {key: words for key, words in kinds.items() if key in kept}
  if not kinds:
    return markup.element('p', 'There are no examples.', class_='absent')
  chosen = [
    markup.element('option', words, value=key) for key, words in kinds.items()
  ]
  controls = [
    markup.element(
      'label', 'Show', markup.element('select', *chosen, id='kind')
    ),
    *(
      markup.element('label', words, markup.element('select', id=key))
      for key, words in (
        ('scope', 'Of'),
        ('left', 'Left'),
        ('right', 'Right'),
      )
    ),
    markup.element(
      'label',
      'With the words',
      markup.element('input', id='words', type='search'),
    ),
  ]
  return markup.joined(
    markup.element('div', *controls, class_='bar'),
    markup.element('div', id='examples-body'),
  )


def _absent(lines: Sequence[str]) -> markup.Html | None:
  """What is not shown, and why."""
  if not lines:
    return None
  items = [markup.element('li', line) for line in lines]
  return markup.element('ul', *items, class_='notes', data_at='what is absent')
