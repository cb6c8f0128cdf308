"""docs/results/: filled by its own commands, small, and only where runs are."""

import importlib.util
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'docs/results'
PAGES = [page for page in sorted(FOLDER.glob('*.md')) if page.stem != 'README']
PAGE = """# A page

```bash
python -m dpo_jax.results runs/mine --out=paper/mine \\
  --metrics=loss --figures=none
python -m dpo_jax.results.optimum runs/mine --key=loss.beta --metrics=-loss
```

A sentence.

<!-- printed -->
old
<!-- end -->

<!-- printed -->
<!-- end -->
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
  """The script, with a folder of pages in place of docs/results/."""
  spec = importlib.util.spec_from_file_location(
    'answers', ROOT / 'scripts/answers.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.FOLDER = tmp_path / 'pages'
  module.FOLDER.mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'argv', ['answers.py'])
  return module


def test_a_page_is_filled_by_its_commands(script, make_run):
  page = script.FOLDER / 'mine.md'
  page.write_text(PAGE)
  script.main()
  assert page.read_text() == PAGE  # its runs are not here
  for beta, loss in ((0.1, 0.5), (0.3, 0.4), (1.0, 0.6)):
    for seed in range(2):
      changes = {'seed': seed, 'loss.beta': beta}
      make_run(f'runs/mine/{beta},{seed}', changes, final=loss + seed / 100)
  script.main()
  text = page.read_text()
  first, second = re.findall(r'(?s)<!-- printed -->\n(.*?)<!-- end -->', text)
  assert '| 0.3  |' in first and 'old' not in text
  assert '| loss | 0.3 |' in second
  # What a person wrote stays, and a second time changes nothing.
  assert text.startswith(PAGE.partition('<!--')[0])
  script.main()
  assert page.read_text() == text


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_the_pages_of_this_repository_are_filled_and_small(page):
  text = page.read_text()
  blocks = re.findall(r'(?s)<!-- printed -->\n(.*?)<!-- end -->', text)
  commands = re.findall(r'(?m)^python -m dpo_jax\.results', text)
  assert len(blocks) == len(commands) > 0
  for block in blocks:
    assert block.strip(), f'{page.name}: run python scripts/answers.py'
  assert len(text) < 100_000
  for figure in re.findall(r'!\[[^]]+\]\((\S+)\)', text):
    assert (FOLDER / figure).stat().st_size < 100_000, figure
  for heading in ('## What it says', '## What it does not say'):
    assert heading in text
  assert re.search(r'\d+ runs of commit [0-9a-f]{7}', ' '.join(text.split()))
