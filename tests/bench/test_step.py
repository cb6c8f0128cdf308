"""benchmark: it runs, on drawn and on given data."""

import json
import pathlib
import subprocess
import sys

import pytest

from dpo_jax.bench import step as benchmark
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_it_runs_on_a_file(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  rows = [
    {'prompt': f'Q{i}: why?', 'chosen': f' because {i}', 'rejected': ' no'}
    for i in range(8)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  table = benchmark.run(
    benchmark.Options(
      preset='tiny',
      data=str(path),
      variants=('padded+full',),
      batch_size=4,
      max_length=64,
      steps=2,
      rounds=1,
    )
  )
  lines = table.splitlines()
  assert lines[2].startswith('| padded+full | ')
  assert lines[2].split('|')[5].strip() == '1.00'


def test_cached_scores_and_an_adapter_are_options():
  options = benchmark.Options(
    preset='tiny',
    variants=('packed+shared+cached',),
    batch_size=2,
    max_length=32,
    steps=1,
    rounds=1,
    lora=2,
  )
  table = benchmark.run(options)
  assert '| packed+shared+cached | ' in table
  assert 'tiny, LoRA of rank 2, 2 prompts a step' in table


def test_bad_flags_are_one_line():
  with pytest.raises(InputError, match='--data: .*cannot be read'):
    benchmark.run(benchmark.Options(preset='tiny', data='no.jsonl'))
  script = [sys.executable, str(ROOT / 'scripts/benchmark.py')]
  child = subprocess.run(
    [*script, '--variants=fast'], capture_output=True, text=True
  )
  assert child.returncode == 2 and "no 'fast'" in child.stderr
