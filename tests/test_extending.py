"""docs/extending.md: each recipe, executed as written on a copy.

A python block is appended to the file that is named before it, or is that file
if it is new. A text block goes to the head of the list that is named before it.
A diff block is an edit in place. The commands of the bash block then succeed.
"""

import os
import re
import shutil
import subprocess
import sys
import textwrap

import pages
import pytest
import test_losses

PAGE = pages.TEXTS['extending.md']
SECTIONS = dict(
  re.findall(
    r'^## (An? [^\n]+)\n(.*?)(?=^## |\Z)', PAGE, re.DOTALL | re.MULTILINE
  )
)
# Recipe -> (limit of edited files, its test included; pattern of the output).
RECIPES = {
  'A loss': (2, r'PASSED .*\[squared_margin'),
  'An option': (2, r'PASSED .*\[sigmoid-max_ratio'),
  'A metric': (2, r'KTO .*\d\.\d+ \|\n\| BCO .*\d\.\d+ \|\n'),
  'An optimizer': (2, r'PASSED .*test_sgd'),
  'A command': (2, r'--mode=count[\s\S]*step 0: 117,248 parameters'),
  'A row format': (2, r'PASSED .*best_of'),
  'A mesh axis': (3, r'replica=2, data=4, fsdp=1, tensor=1'),
}
BLOCK = re.compile(r'^ *```(\w+)\n(.*?)^ *```$', re.DOTALL | re.MULTILINE)


def test_each_recipe_has_a_test():
  assert list(SECTIONS) == list(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_the_recipe_works(name, tmp_path):
  said = follow(name, tmp_path)
  assert re.search(RECIPES[name][1], said), said[-3000:]
  if name == 'A loss':
    check_the_loss(tmp_path, said)


def follow(name, folder):
  """The output of a recipe's commands, on a copy with the recipe's edits."""
  copy(folder)
  section, most_files = SECTIONS[name], RECIPES[name][0]
  edited, said = set(), ''
  for block in BLOCK.finditer(section):
    language, code = block[1], textwrap.dedent(block[2])
    if language == 'bash':
      said += ''.join(run(folder, line) for line in code.splitlines())
      continue
    before = section[: block.start()]
    file = re.findall(r'`([\w/]+\.py)`', before)[-1]
    edited.add(file)
    path = folder / file
    old = path.read_text() if path.exists() else ''
    if language == 'text':
      list_name = re.findall(r'`([A-Z]+)` of\s+`', before)[-1]
      path.write_text(with_entry(old, list_name, code))
    elif language == 'diff':
      path.write_text(patched(old, code))
    else:
      path.write_text(old + '\n\n' * bool(old) + code)
  assert len(edited) <= most_files
  return said


# A command line that chooses no loss, and code that prints its terms.
NO_LOSS = (
  '--config=experiments/quickstart.py:stage=sft,runlocal --workdir=runs/x '
  '--config.stage=dpo --config.reference.mode=params '
  '--config.loss.terms.nll=0'
)
TERMS = (
  'import sys; from dpo_jax import main; '
  'print(dict(main.parse(sys.argv[1:]).config.loss.terms))'
)


def check_the_loss(folder, said):
  """A new loss brings its key, refusals, options, documentation and tests."""
  name = 'squared_margin'
  # Its golden row, and each property of every loss.
  properties = dir(test_losses.TestEveryLoss)
  num_tests = 1 + sum(test.startswith('test_') for test in properties)
  ids = re.findall(rf'PASSED .*\[{name}', said)
  assert len(ids) == num_tests >= 7, said
  assert f'| {name} | `' in (folder / 'docs/losses.md').read_text()
  assert f'| {name} | `' not in pages.TEXTS['losses.md']
  key = f'--config.loss.terms.{name}=1'
  assert f'`{key}`' in PAGE
  taken = f'python -c "{TERMS}" {NO_LOSS} {key} --config.loss.wpo=True'
  assert f"{{'{name}': 1.0}}" in run(folder, taken)
  smoothed = f'{NO_LOSS} {key} --config.loss.label_smoothing=0.1'
  refused = run(folder, f'python -m dpo_jax.main {smoothed}', code=2)
  assert f'0.1 is used by no chosen loss ({name}); fix: ' in refused


def copy(folder):
  """Copies what a recipe edits and runs, without compiled files."""
  ignored = shutil.ignore_patterns('__pycache__')
  for name in ('dpo_jax', 'docs', 'experiments', 'scripts', 'tests'):
    shutil.copytree(pages.ROOT / name, folder / name, ignore=ignored)
  shutil.copy(pages.ROOT / 'pyproject.toml', folder)


def with_entry(text, name, entry):
  """A module's text with an entry at the head of one of its lists."""
  head = re.search(rf'^{name}\b.* = [\[({{]\n', text, re.MULTILINE)
  assert head, f'no list {name}'
  entry = textwrap.indent(entry, '  ')
  return text[: head.end()] + entry + text[head.end() :]


def patched(text, diff):
  """A module's text after an edit; it holds the old lines exactly once."""
  lines = diff.splitlines(keepends=True)
  old = ''.join(line[1:] for line in lines if line[0] != '+')
  new = ''.join(line[1:] for line in lines if line[0] != '-')
  assert f'\n{text}'.count(f'\n{old}') == 1, old
  return f'\n{text}'.replace(f'\n{old}', f'\n{new}')[1:]


def run(folder, command, code=0):
  """The output of a command in the copy, whose dpo_jax it imports."""
  environment = os.environ | {
    'PYTHONPATH': str(folder),
    'PYTEST_ADDOPTS': '-rA',
  }
  if 'pytest' not in command:  # one device compiles in half the time
    environment['XLA_FLAGS'] = environment['XLA_FLAGS'].replace('=8', '=1')
  done = subprocess.run(
    command.partition(' #')[0].replace('python', sys.executable, 1),
    shell=True,
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  said = done.stdout + done.stderr
  assert done.returncode == code, f'{command}\n{said[-3000:]}'
  return said
