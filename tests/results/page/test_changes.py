"""Changes: a page against itself, and against every edit by hand."""

import re

import pytest

from dpo_jax.results import cells, collect
from dpo_jax.results.page import changes, page
from dpo_jax.storage import caches

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M 1 2.5"/></svg>'


@pytest.fixture
def made(hostile_runs, monkeypatch, tmp_path) -> str:
  monkeypatch.setenv(caches.FOLDER, str(tmp_path / 'user'))
  runs = collect.collect([hostile_runs])
  built = page.build(
    runs,
    cells.make_table(runs),
    None,
    {'beta': SVG},
    {'beta': {'x': [1, 2.5]}},
    folder=tmp_path / 'out',
  )
  return built['index.html'].decode()


def _lines(old, new, is_as_written=False):
  return changes.lines(old, new, 'index.html', is_as_written)


def test_a_page_does_not_differ_from_itself(made):
  assert _lines(made, made) == []


@pytest.mark.parametrize(
  'old, new, said',
  [
    # A number of a table, by eye and by what it sorts by.
    (
      r'(cell &#x27;margin after&#x27;" data-v=")[\d.-]+',
      r'\g<1>9',
      "cell 'margin after' reads 'td data-v=9', its runs give 'td data-v=-",
    ),
    (
      r'(cell &#x27;loss after&#x27;".*?>)0\.\d+',
      r'\g<1>0.111',
      "cell 'loss after' reads '0.111",
    ),
    (r'<bdi>n</bdi>', '<bdi>m</bdi>', "tables reads 'm', its runs give 'n'"),
    # What the details of a cell say.
    (
      r'("value": ")0\.69\d+',
      r'\g<1>0.5',
      'data-cells: Results: row ',
    ),
    (
      r'("commit": ")0123456789abcdef',
      r'\g<1>fedcba9876543210',
      "data-runs: 0 (../runs/javascript:harm,0<b>), facts, commit reads 'fedcb",
    ),
    # A margin, a label's side, a text, a sample.
    (r'-0\.2,', '-0.3,', 'harm,0<b>), items, 0, 1 reads -0.3, its runs give'),
    (r'etalosi', 'ilos', 'data-pairs: pairs, 4, rejected, '),
    (r'"seed 0, tokens 3', '"seed 0, tokens 4', 'rows, 0, facts reads'),
    # A figure, and the numbers behind it.
    (r'M 1 2\.5', 'M 1 3.5', "figure beta reads 'path d=M 1 3.5'"),
    (r'\n2\.5', '\n3.5', 'data-figures: beta, x, 1 reads 3.5, its runs'),
    # The script, the policy, an element more.
    (r"'use strict'", "'use  strict'", 'script reads'),
    (r"default-src 'none'", 'default-src *', 'page reads'),
    ('<main>', '<main><!-- n -->', "page reads '<!-- n -->'"),
  ],
)
def test_every_edit_is_named(made, old, new, said):
  edited = re.sub(old, new, made, count=1)
  assert edited != made
  found = _lines(edited, made)
  assert any(said in line for line in found), found
  assert all(line.startswith('index.html: ') for line in found)
  assert len(found) <= 4


def test_a_row_that_is_gone_is_named(made):
  edited = re.sub(r'<tr data-at="Runs: line 1">.*?</tr>', '', made)
  assert edited != made
  assert any('reads nothing' in line for line in _lines(edited, made))


def test_texts_that_are_at_hand_for_one_only_do_not_count(
  made, hostile_runs, tmp_path
):
  (hostile_runs / 'cache').rename(tmp_path / 'away')
  runs = collect.collect([hostile_runs])
  table = cells.make_table(runs)
  data = {'beta': {'x': [1, 2.5]}}
  without = page.build(
    runs, table, None, {'beta': SVG}, data, folder=tmp_path / 'out'
  )['index.html'].decode()
  assert 'solated' in made and without != made
  assert _lines(made, without) == _lines(without, made) == []
  edited = made.replace('-0.2,', '-0.3,', 1)
  assert len(_lines(edited, without)) == 1


def test_code_of_the_page_may_be_newer_than_a_page_as_it_was_written(made):
  newer = made.replace("'use strict'", "'use  strict'")
  assert _lines(made, newer, is_as_written=True) == []
  assert _lines(made, newer) != []


def test_no_more_than_twenty_lines(made):
  edited = re.sub('data-v="[^"]*"', 'data-v="7"', made)
  edited = re.sub('"(value|standard error)": "[^"]*"', '"\\1": "7"', edited)
  edited = edited.replace('"label', '"labels').replace('chosen', 'x')
  found = _lines(edited, made)
  assert len(found) == 21 and found[-1].endswith('more differences')


@pytest.mark.parametrize(
  'text', ['', '<', '<script id="data-cells">{</script>']
)
def test_a_broken_page_is_no_traceback(made, text):
  assert _lines(text, made)
