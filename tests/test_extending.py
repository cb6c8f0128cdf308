"""README.md: its table of losses is the registry's, its recipe adds one."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import pytest
import test_losses

from dpo_jax import losses
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_table_of_losses_is_the_registry_s():
  stale = 'README.md is stale; run python scripts/loss_table.py'
  assert losses.refresh_table(README) == README, stale


def test_a_stale_table_is_written_anew():
  old = README.replace('| hinge |', '| hinges |').replace('| ipo |', '| io |')
  assert old != README and losses.refresh_table(old) == README
  with pytest.raises(InputError, match='no place for the table of losses'):
    losses.refresh_table('# A README without it\n')


def recipe():
  """(step 1, step 2, what to run) of the README's recipe, as they are."""
  text = README.split('\n### Add a loss\n')[1].split('\n## ')[0]
  parts = re.match(r'\s*1\. (.*?)\n2\. (.*?)\n(?=\S)(.*)', text, re.DOTALL)
  return parts.groups()


def block(text, language):
  """The code of the one block of a language."""
  (code,) = re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)
  return code


def copy(folder):
  """What the recipe edits and runs, without what was compiled of it."""
  ignored = shutil.ignore_patterns('__pycache__')
  for name in ('dpo_jax', 'experiments', 'scripts', 'tests/losses'):
    shutil.copytree(ROOT / name, folder / name, ignore=ignored)
  for name in ('README.md', 'pyproject.toml', 'tests/conftest.py'):
    shutil.copy(ROOT / name, folder / name)


def run(folder, command, code=0):
  """What a command says in the copy, which is the dpo_jax that it imports."""
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


# A command line that chooses no loss, and what reads it without jax.
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
  assert f'| {name} | `' in (tmp_path / 'README.md').read_text()
  assert f'| {name} | `' not in README

  key = re.search(r'`(--config\.\S+=1)`', rest)[1]
  assert key == f'--config.loss.terms.{name}=1'
  taken = run(
    tmp_path, f'python -c "{PARSE}" {RUN} {key} --config.loss.wpo=True'
  )
  assert f"{{'{name}': 1.0}}" in taken
  options = '--config.loss.label_smoothing=0.1'
  refused = run(tmp_path, f'python -m dpo_jax.main {RUN} {key} {options}', 2)
  assert f'0.1 is used by no chosen loss ({name}); fix: ' in refused
