"""The page: what is in it, that it is one file, and always the same bytes."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from dpo_jax.results import cells, collect
from dpo_jax.results.page import markup, page
from dpo_jax.storage import caches

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M1 2"/></svg>'
ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv(caches.FOLDER, str(tmp_path / 'user'))


def _build(path, folder, **figures) -> str:
  runs = collect.collect([path])
  table = cells.make_table(runs)
  data = {name: {'label': name, 'x': [1, 2]} for name in figures}
  made = page.build(runs, table, None, figures, data, folder=folder)
  return made['index.html'].decode('ascii')


def _block(text: str, name: str):
  return json.loads(re.search(f'id="{name}">\n(.*?)\n</script>', text, re.S)[1])


def test_each_cell_leads_to_runs_commits_data_and_files(hostile_runs, tmp_path):
  text = _build(hostile_runs, tmp_path / 'out')
  details, runs = _block(text, 'data-cells'), _block(text, 'data-runs')
  keys = re.findall(r'<td class="number" data-at="(.*?)"', text)
  # The loss before and after; accuracy, margin and KL after.
  assert len(keys) == 5 and len(details) == 5
  (cell,) = [d for key, d in details.items() if "'loss after'" in key]
  assert cell['runs'] == [0, 1] and cell['numbers']['measured by'] == '2 seeds'
  for index in cell['runs']:
    run = runs[index]
    assert run['facts']['commit'] == '0123456789abcdef'
    assert re.fullmatch('[0-9a-f]{64}', run['data']['eval_data'])
    assert set(run['files']) == {
      'config.json',
      'metrics.jsonl',
      'per_example/eval_10.npz',
    }
  # The folder's name is `javascript:harm,0<b>`.
  assert runs[0]['href'] == './../runs/javascript%3Aharm%2C0%3Cb%3E'


def test_nothing_refers_outside_but_links_to_folders_of_runs(
  hostile_runs, tmp_path
):
  text = _build(hostile_runs, tmp_path / 'out', curves=SVG)
  blocks = re.findall('<script type="application/json".*?</script>', text, re.S)
  bare = text
  for block in blocks:
    bare = bare.replace(block, '')
  links = re.findall(r'(?:href|src|action|data|poster)="([^"]*)"', bare)
  runs = [link for link in links if link.startswith('./')]
  assert len(runs) == 2
  assert all(re.match(r'(#|data:,$|\./\.\./runs/)', link) for link in links)
  assert not re.search(r'https?:|url\(|@import|fetch|XMLHttp', bare)
  # Only the page's own script and style.
  assert bare.count('<script') == 1 and bare.count('<style') == 1
  assert not re.search(r'<[^>]* (on\w+|style)=', bare)


def test_the_policy_allows_the_pages_own_script_and_style_only(
  hostile_runs, tmp_path
):
  text = _build(hostile_runs, tmp_path / 'out')
  policy = re.search('Content-Security-Policy" content="(.*?)"', text)[1]
  policy = policy.replace('&#x27;', "'")
  script = re.search(r'<script>(.*?)</script>', text, re.S)[1]
  style = re.search(r'<style>(.*?)</style>', text, re.S)[1]
  assert policy.split('; ') == [
    "default-src 'none'",
    f'script-src {markup.content_hash(script)}',
    f'style-src {markup.content_hash(style)}',
    'img-src data:',
    "base-uri 'none'",
    "form-action 'none'",
  ]


def test_texts_never_become_html_in_the_script():
  script = (ROOT / 'dpo_jax/results/page/page.js').read_text()
  for word in ('innerHTML', 'outerHTML', 'insertAdjacent', 'write(', 'eval'):
    assert word not in script
  assert '.style' not in script  # the policy would refuse it


def test_the_same_runs_give_the_same_bytes(hostile_runs, tmp_path):
  one = _build(hostile_runs, tmp_path / 'out', curves=SVG)
  two = _build(hostile_runs, tmp_path / 'out', curves=SVG)
  assert one == two


def test_a_page_says_what_it_has_not(make_run, tmp_path):
  make_run('runs/a')
  text = _build(tmp_path / 'runs', tmp_path / 'out')
  assert 'There are no examples.' in text
  assert 'no per_example file of its last evaluation' in text
  assert 'no run has samples' in text
  (run,) = _block(text, 'data-runs')
  assert run['facts']['commit'] == 'not known: no env.json'


def test_figures_are_inline_with_their_numbers(make_run, tmp_path, monkeypatch):
  make_run('runs/a')
  given = {'beta': SVG, '<b>': b'no drawing'}
  text = _build(tmp_path / 'runs', tmp_path / 'out', **given)
  assert text.count('<figure') == 2 and '<path d="M1 2"></path>' in text
  assert 'data-figure="&lt;b&gt;"' in text and 'not shown: no SVG' in text
  assert _block(text, 'data-figures')['beta']['x'] == [1, 2]
  monkeypatch.setattr(page, '_MOST_FIGURE', 10)
  monkeypatch.setattr(page, '_MOST_NUMBERS', 10)
  text = _build(tmp_path / 'runs', tmp_path / 'out', **given)
  assert '<path' not in text and 'it is in figures/beta.pdf' in text
  assert _block(text, 'data-figures') == {}


def test_the_frontier_is_shown_where_it_was_measured(make_run, tmp_path):
  make_run('runs/a')
  runs = collect.collect([tmp_path / 'runs'])
  measured = {
    'reward': 'lexicon',
    'num_samples': 256,
    'metrics': {
      'reward': {'mean': 2.5, 'se': 0.25},
      'kl': {'mean': 4.5, 'se': None},
    },
  }
  run = runs[0]._replace(frontier={25: measured})
  table = cells.make_table([run])
  made = page.build([run], table, None, {}, {}, folder=tmp_path)
  text = made['index.html'].decode()
  assert 'id="frontier"' in text and '>2.500 &#177; 0.250<' in text
  assert '>4.500<' in text and '>lexicon<' in text


def test_the_page_stays_below_its_limit(hostile_runs, tmp_path, monkeypatch):
  whole = _build(hostile_runs, tmp_path / 'out')
  num_pairs = len(_block(whole, 'data-pairs')['pairs'])
  for most in (len(whole) - 1000, len(whole) - 5000):
    monkeypatch.setattr(page, 'MOST_BYTES', most)
    text = _build(hostile_runs, tmp_path / 'out')
    assert len(text) <= most
  assert len(_block(text, 'data-pairs')['pairs']) < num_pairs


def test_the_files_of_the_page_come_with_the_package():
  own = {file.name for file in (ROOT / 'dpo_jax/results/page').iterdir()}
  given = (ROOT / 'pyproject.toml').read_text()
  patterns = re.search(r'"dpo_jax.results.page" = \[(.*?)\]', given)[1]
  endings = {text.strip(' "*') for text in patterns.split(',')}
  assert {os.path.splitext(name)[1] for name in own} - {'', '.py'} == endings
  for name in own:
    if not name.endswith('.py') and name != '__pycache__':
      assert page._own(name).isascii(), name


def test_the_page_needs_no_jax():
  code = (
    'import sys; from dpo_jax.results.page import page; '
    'sys.exit("jax" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
