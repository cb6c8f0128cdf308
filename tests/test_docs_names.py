"""README.md and docs/: links, names of files and keys, and counts are true."""

import ast
import re
import textwrap

import pages
import pytest

from dpo_jax import config, losses
from dpo_jax.config import rules

# `model.safetensors` is a file, not a key of the section model.
SUFFIXES = ('json', 'jsonl', 'md', 'py', 'safetensors')
SPINE = (
  'types.py',
  'data/batches/rows.py',
  'losses/pairwise.py',
  'losses/objective.py',
  'scoring.py',
  'train_step.py',
  'train.py',
)


@pytest.mark.parametrize('page', pages.TEXTS)
def test_links_lead_somewhere(page):
  own = pages.ROOT / ('' if page == 'README.md' else 'docs') / page
  for target in re.findall(r'\]\(([^)\s]+)\)', pages.prose(pages.TEXTS[page])):
    if target.startswith('https://'):
      continue
    path, _, anchor = target.partition('#')
    file = own.parent / path if path else own
    assert file.exists(), f'{page}: {target}'
    if anchor:
      docs = (pages.ROOT / 'docs').resolve()
      other = file.resolve()
      is_docs = docs in other.parents
      name = str(other.relative_to(docs)) if is_docs else other.name
      assert anchor in pages.anchors(pages.TEXTS[name]), f'{page}: {target}'


@pytest.mark.parametrize('page', pages.TEXTS)
def test_the_files_that_it_names_exist(page):
  folders = 'dpo_jax|tests|experiments|scripts|docs'
  written = re.findall(r'Write `(\S+)`', pages.TEXTS[page])  # by a recipe
  for span in pages.spans(pages.TEXTS[page]):
    # A name in capitals is a placeholder.
    path = re.match(rf'(({folders})/[a-z_0-9/.]*)(?=:|$)', span)
    if path and path[1] not in written:
      assert (pages.ROOT / path[1]).exists(), f'{page}: {span}'


@pytest.mark.parametrize('page', pages.TEXTS)
def test_the_keys_that_it_names_exist(page):
  known = rules.flatten(config.base())
  sections = {key.partition('.')[0] for key in known}
  # Recipes name keys that they add, and cases keys that are wrong.
  own = page in ('extending.md', 'cases.md')
  for span in pages.spans(pages.TEXTS[page]):
    key = re.match(r'(--config\.)?(\w+)\.(\w+)(\.\w+)?(?==|$)', span)
    if not key or own or key[2] not in sections or key[3] in SUFFIXES:
      continue
    if key[3] == 'terms':
      known_terms = ('', '.NAME', *(f'.{name}' for name in losses.names()))
      assert (key[4] or '') in known_terms, f'{page}: {span}'
    else:
      assert f'{key[2]}.{key[3]}' in known and not key[4], f'{page}: {span}'


def test_the_readme_counts_the_lines_of_the_spine():
  counts = {
    name: len((pages.ROOT / 'dpo_jax' / name).read_text().splitlines())
    for name in SPINE
  }
  row = r'\| \[(.+)\]\(dpo_jax/\1\) \| (\d+) \|'
  named = {name: int(lines) for name, lines in re.findall(row, pages.README)}
  assert list(named.items()) == list(counts.items())
  total = sum(counts.values())
  assert f'| in all | {total:,} |' in pages.README, f'{total:,} lines in all'
  assert total <= 2300
  assert len(pages.README.splitlines()) <= 180


def test_the_tree_of_the_readme_is_the_package():
  tree = pages.README.partition('```\ndpo_jax/')[2].partition('```')[0]
  inside, *others = re.split(r'^(?=\w)', tree, flags=re.MULTILINE)
  named = []
  for line in inside.splitlines()[1:]:
    names, comment = re.fullmatch(r'  (\S+(?: \S+)*) {2,}(\S.*)', line).groups()
    named += names.replace('/', '').split()
    assert comment
  package = [
    path.stem
    for path in (pages.ROOT / 'dpo_jax').iterdir()
    if path.name[0] not in '_.'
  ]
  assert sorted(named) == sorted(package)
  folders = [line.partition('/')[0] for line in others]
  assert folders == ['experiments', 'scripts', 'tests', 'docs']
  assert all((pages.ROOT / folder).is_dir() for folder in folders)


def test_the_readme_links_to_every_page():
  linked = set(re.findall(r'\]\(docs/(\w+\.md)\)', pages.README))
  others = {page for page in pages.TEXTS if page.startswith('results/')}
  assert linked == set(pages.TEXTS) - {'README.md'} - others
  # The answers of experiments have an index of their own.
  index = 'results/README.md'
  assert f']({index})' in pages.TEXTS['results.md']
  linked = set(re.findall(r'\]\((\w+\.md)\)', pages.TEXTS[index]))
  assert linked == {page.rpartition('/')[2] for page in others - {index}}


def test_the_numbers_of_the_readme():
  assert f'{len(losses.names())} losses' in ' '.join(pages.README.split())
  pinned = re.findall(r"'jax\[\w+\]==([\d.]+)'", pages.TEXTS['pods.md'])
  requirements = (pages.ROOT / 'requirements.in').read_text().splitlines()
  assert pinned and all(f'jax=={version}' in requirements for version in pinned)


def test_the_loss_of_the_readme_is_that_of_the_recipe():
  (short,) = functions(pages.README)
  recipe = functions(pages.TEXTS['extending.md'])[0]
  del recipe.body[0]  # the docstring
  assert ast.dump(short) == ast.dump(recipe)


def functions(text):
  """The functions that a page defines in its Python blocks."""
  blocks = re.findall(r'^ *```python\n(.*?)^ *```$', text, re.DOTALL | re.M)
  nodes = [
    n for block in blocks for n in ast.parse(textwrap.dedent(block)).body
  ]
  return [node for node in nodes if isinstance(node, ast.FunctionDef)]
