"""docs/python.md: its examples run, on a run that is one of two updates."""

import ast
import re

import numpy as np
import pages
import pytest

from dpo_jax import main as main_lib

PAGE = pages.TEXTS['python.md']
BLOCKS = re.findall(r'^```python\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
EXPERIMENT = f'{pages.ROOT}/experiments/quickstart.py'


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory):
  folder = tmp_path_factory.mktemp('notebook')
  for stage in ('sft', 'dpo'):
    words = [f'--config={EXPERIMENT}:stage={stage},runlocal']
    words += [f'--workdir={folder}/runs/quickstart/{stage}']
    assert main_lib.main(words) == 0
  return folder


def test_the_blocks_run_in_order(quickstart, monkeypatch, capsys):
  monkeypatch.chdir(quickstart)
  capsys.readouterr()
  names = {}
  for block in BLOCKS:
    exec(compile(block, 'docs/python.md', 'exec'), names)
  out = capsys.readouterr().out
  scores = names['policy'].score('Once upon a time, there was', names['texts'])
  assert out.startswith(str(scores.logps))
  assert scores.num_tokens.tolist() == [8, 8, 10, 5] and scores.logps.max() < 0
  assert len(names['samples']) == 4
  expected = (names['margins'] > 0).mean()
  assert out.splitlines()[-1] == f'{expected} 0.1 2'
  assert np.isfinite(names['log_ratios']).all()


def test_four_texts_are_scored_in_five_lines():
  first = ast.parse(BLOCKS[0])
  lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
  assert len(lines) <= 5 and len(first.body) <= 5
  texts = next(node for node in first.body if 'texts' in ast.unparse(node))
  assert len(texts.value.elts) == 4
