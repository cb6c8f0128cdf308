"""The recipe for a new loss, executed as it is written on a scratch copy."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import test_losses

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = (ROOT / 'docs/losses.md').read_text(encoding='utf-8')


def recipe():
  """(step 1, step 2, commands) of the section `A loss` of docs/extending.md."""
  page = ROOT / 'docs/extending.md'
  text = (page if page.exists() else ROOT / 'README.md').read_text('utf-8')
  heading = r'^#+ (?:A|Add a) loss\n(.*?)(?=^##|\Z)'
  (section,) = re.findall(heading, text, re.DOTALL | re.MULTILINE)
  parts = re.match(r'\s*1\. (.*?)\n2\. (.*?)\n(?=\S)(.*)', section, re.DOTALL)
  return parts.groups()


def block(text, language):
  """The code of the only block of a language."""
  (code,) = re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)
  return code


def copy(folder):
  """Copies what the recipe edits and runs, without compiled files."""
  ignored = shutil.ignore_patterns('__pycache__')
  for name in ('dpo_jax', 'docs', 'experiments', 'scripts', 'tests/losses'):
    shutil.copytree(ROOT / name, folder / name, ignore=ignored)
  for name in ('pyproject.toml', 'tests/conftest.py'):
    shutil.copy(ROOT / name, folder / name)


def run(folder, command, code=0):
  """The output of a command in the copy, whose dpo_jax it imports."""
  done = subprocess.run(
    command.split(' #')[0].replace('python', sys.executable, 1),
    shell=True,
    cwd=folder,
    env=os.environ | {'PYTHONPATH': str(folder), 'PYTEST_ADDOPTS': '-rA'},
    capture_output=True,
    text=True,
    check=False,
  )
  said = done.stdout + done.stderr
  assert done.returncode == code, said[-3000:]
  return said


# A command line that chooses no loss, and code that prints its terms.
RUN = (
  '--config=experiments/quickstart.py:stage=sft,runlocal --workdir=runs/x '
  '--config.stage=dpo --config.reference.mode=params '
  '--config.loss.terms.nll=0'
)
PARSE = (
  'import sys; from dpo_jax import main; '
  'print(dict(main.parse(sys.argv[1:]).config.loss.terms))'
)


def test_the_recipe_adds_a_loss(tmp_path):
  copy(tmp_path)
  function, golden_row, rest = recipe()
  file = tmp_path / re.search(r'`(dpo_jax/losses/\w+\.py)`', function)[1]
  code = textwrap.dedent(block(function, 'python'))
  name = re.search(r'^def (\w+)\(', code, re.MULTILINE)[1]
  file.write_text(file.read_text() + '\n\n' + code)

  list_name, path = re.search(
    r'to `(\w+)` of\s+`([\w/.]+)`', golden_row
  ).groups()
  row = textwrap.dedent(block(golden_row, 'text'))
  tests = tmp_path / path
  before, head, after = tests.read_text().partition(f'\n{list_name} = [\n')
  assert head, f'{path} has no list {list_name}'
  tests.write_text(before + head + textwrap.indent(row, '  ') + after)

  *_, tested = [
    run(tmp_path, command)
    for command in block(rest, 'bash').strip().splitlines()
  ]
  # Its golden row, and each property of every loss.
  properties = dir(test_losses.TestEveryLoss)
  num_tests = 1 + sum(test.startswith('test_') for test in properties)
  ids = re.findall(rf'PASSED .*\[{name}', tested)
  assert len(ids) == num_tests >= 7, tested
  assert f'| {name} | `' in (tmp_path / 'docs/losses.md').read_text()
  assert f'| {name} | `' not in DOCS

  key = re.search(r'`(--config\.\S+=1)`', rest)[1]
  assert key == f'--config.loss.terms.{name}=1'
  taken = run(
    tmp_path, f'python -c "{PARSE}" {RUN} {key} --config.loss.wpo=True'
  )
  assert f"{{'{name}': 1.0}}" in taken
  options = '--config.loss.label_smoothing=0.1'
  refused = run(tmp_path, f'python -m dpo_jax.main {RUN} {key} {options}', 2)
  assert f'0.1 is used by no chosen loss ({name}); fix: ' in refused
