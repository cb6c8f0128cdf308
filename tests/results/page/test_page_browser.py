"""The page in a headless Chromium: what readers see and what nothing may do.

With DPO_JAX_REAL_PARTS=1 in the environment a Chromium must be installed
(Debian: apt-get install chromium); pictures go to $DPO_JAX_PICTURES if that is
set.
"""

import os
import pathlib

import browser
import numpy as np
import pytest

from dpo_jax.results import __main__ as command
from dpo_jax.storage import caches

pytestmark = pytest.mark.skipif(
  not os.environ.get('DPO_JAX_REAL_PARTS'),
  reason='set DPO_JAX_REAL_PARTS=1 to open the page in a Chromium',
)
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
  assert browser.PROGRAM, 'no chromium is installed'
  with browser.Browser(tmp_path_factory.mktemp('profile')) as opened:
    yield opened


@pytest.fixture
def pages(hostile_runs, make_told_run, tmp_path, monkeypatch, capsys):
  """Two rows with figures: one of hostile texts, one of plain ones."""
  monkeypatch.setenv(caches.FOLDER, str(tmp_path / 'user'))
  texts = [(f'Pick {i}.', f' yes {i}', f' no {i}') for i in range(45)]
  for beta in (0.4, 10.0):
    make_told_run(
      f'more/{beta}',
      {'loss.beta': beta},
      texts=texts,
      margins=np.linspace(-3, 4, 45),
      beta=beta,
    )
  arguments = [str(hostile_runs), str(tmp_path / 'more')]
  arguments += [f'--out={tmp_path / "out"}', '--html', '--figures=margins']
  assert command.main(arguments) == 0
  capsys.readouterr()
  return tmp_path / 'out' / 'index.html'


def _picture(chromium, name):
  folder = os.environ.get('DPO_JAX_PICTURES')
  if folder:
    chromium.picture(pathlib.Path(folder) / f'{name}.png', whole=True)


def _choose(name: str, value: str) -> str:
  return (
    f'{{const node = document.getElementById("{name}"); node.value = "{value}";'
    'node.dispatchEvent(new Event("change")); node.value}'
  )


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('size', [PHONE, DESKTOP])
def test_nothing_runs_and_nothing_is_wider_than_the_window(
  chromium, pages, size, dark
):
  chromium.open(pages, *size, dark=dark)
  kinds = chromium.ask(
    '[...document.querySelector("#kind").options].map(each => each.value)'
  )
  assert kinds == ['worst', 'mislabelled', 'samples']
  for kind in kinds:
    chromium.ask(_choose('kind', kind))
    shown = chromium.ask('document.querySelectorAll("article").length')
    assert shown >= (8 if kind == 'samples' else 4)
    _picture(chromium, f'{kind}-{size[0]}-{"dark" if dark else "light"}')
    width = chromium.ask('document.documentElement.scrollWidth')
    assert width == size[0]
  # The texts are there, as texts.
  words = chromium.ask('document.body.innerText')
  assert '<script>window.harm = 1</script>' in words
  assert '\\u202egnirts desrever' in words and '@SCRIPT@' in words
  assert chromium.ask('window.harm === undefined')
  assert chromium.ask('document.querySelectorAll("main img").length') == 0
  assert chromium.console == []
  # The page itself, and its icon of no bytes.
  others = [url for url in chromium.requests if url != 'data:,']
  assert others == [pages.resolve().as_uri()]


def _column(index: int) -> str:
  return (
    '[...document.querySelector("#tables table").tBodies[0].rows].map('
    f'row => row.cells[{index}].innerText)'
  )


def test_tables_sort_by_mouse_and_by_keyboard(chromium, pages):
  chromium.open(pages, *DESKTOP)
  given = chromium.ask(_column(0))
  assert sorted(given, key=float) == ['0.1', '0.4', '10']
  head = 'document.querySelector("#tables th button")'
  orders = []
  for _ in range(3):
    chromium.ask(f'{head}.click()')
    sort = chromium.ask(f'{head}.parentNode.getAttribute("aria-sort")')
    orders.append((sort, chromium.ask(_column(0))))
  # As numbers: as texts, 10 would be before 2.
  assert orders == [
    ('ascending', ['0.1', '0.4', '10']),
    ('descending', ['10', '0.4', '0.1']),
    (None, given),
  ]
  # The margin of the last evaluation, a number with an interval in its text.
  chromium.ask(f'{head}.focus()')
  heads = chromium.ask(
    '[...document.querySelectorAll("#tables table:first-of-type th")].map('
    'each => each.innerText)'
  )
  margin = next(head for head in heads if head.startswith('margin'))
  index = heads.index(margin)
  for _ in range(index):
    chromium.press('Tab', 9)
  focused = 'document.activeElement.innerText'
  assert chromium.ask(focused) == margin
  chromium.press('Enter', 13)
  margins = [float(text.split()[0]) for text in chromium.ask(_column(index))]
  assert margins == sorted(margins) and len(set(margins)) == 3


def test_a_number_leads_to_its_run(chromium, pages):
  chromium.open(pages, *DESKTOP)
  chromium.ask(
    '[...document.querySelectorAll("td[data-at] > button")].find(each => '
    'each.parentNode.dataset.at.includes("margin after")).focus()'
  )
  chromium.press('Enter', 13)
  assert chromium.ask('document.getElementById("details").open')
  said = chromium.ask('document.getElementById("details").textContent')
  assert '0123456789abcdef' in said and 'per_example/eval_10.npz' in said
  links = chromium.ask(
    '[...document.querySelectorAll("#details a")].map(each => each.href)'
  )
  root = pages.parent.parent.resolve().as_uri()
  assert links and all(link.startswith(f'{root}/') for link in links)
  folders = [pathlib.Path(link.removeprefix('file://')) for link in links]
  assert all('%3A' in f.name or f.is_dir() for f in folders)
  _picture(chromium, 'details')
  chromium.press('Escape', 27)
  assert not chromium.ask('document.getElementById("details").open')
  # Behind a figure are its numbers.
  chromium.ask('document.querySelector("button[data-figure]").click()')
  said = chromium.ask('document.getElementById("details").textContent')
  assert 'panels' in said and chromium.console == []


def test_more_examples_come_on_request_and_words_filter(chromium, pages):
  chromium.open(pages, *DESKTOP)
  count = 'document.querySelectorAll("article").length'
  chromium.ask(
    '{const all = [...document.getElementById("scope").options];'
    'document.getElementById("scope").value = all.at(-1).value;'
    'document.getElementById("scope").dispatchEvent(new Event("change"))}'
  )
  counts = [chromium.ask(count)]
  for _ in range(2):
    chromium.ask('document.querySelector("button.more").click()')
    counts.append(chromium.ask(count))
  assert counts == [20, 40, 45]
  assert chromium.ask('document.querySelector("button.more").hidden')
  chromium.ask(
    '{const node = document.getElementById("words"); node.value = "YES 12";'
    'node.dispatchEvent(new Event("input"))}'
  )
  assert chromium.ask(count) == 1
  marked = chromium.ask(
    '[...document.querySelectorAll("article mark")].map(m => m.textContent)'
  )
  # The first token of the rejected answer, a space, is no target.
  assert marked == [' yes 12', 'no 12']


def test_the_policy_stops_a_script_that_was_put_in_by_hand(chromium, pages):
  text = pages.read_text()
  bad = '<script>window.harm = 1</script><img src=x onerror="window.harm = 2">'
  pages.write_text(text.replace('<main>', f'<main>{bad}'))
  chromium.open(pages, *DESKTOP)
  assert chromium.ask('window.harm === undefined')
  assert any('Content Security Policy' in line for line in chromium.console)
