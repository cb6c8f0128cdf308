"""step: the benchmark runs on drawn and given data; times are not checked."""

import json
import pathlib
import subprocess
import sys

import pytest

from dpo_jax.bench import step
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_it_runs_on_a_file(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  rows = [
    {'prompt': f'Q{i}: why?', 'chosen': f' because {i}', 'rejected': ' no'}
    for i in range(8)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  table = step.run(
    step.Options(
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
  options = step.Options(
    preset='tiny',
    variants=('packed+shared+cached',),
    batch_size=2,
    max_length=32,
    steps=1,
    rounds=1,
    lora=2,
  )
  table = step.run(options)
  assert '| packed+shared+cached | ' in table
  assert 'tiny, LoRA of rank 2, 2 prompts per step' in table


@pytest.mark.parametrize(
  'line, problem',
  [
    ('{"prompt": "a", "chosen": "b"', 'not JSON'),
    ('["a"]', 'a JSON list, not an object'),
    ('{"prompt": "a", "chosen": "b"}', "no text 'rejected'"),
    ('{"prompt": "a", "chosen": "b", "rejected": 3}', "no text 'rejected'"),
  ],
)
def test_a_bad_line_of_the_file_is_named(tmp_path, line, problem):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(f'{{"prompt": "a", "chosen": "b", "rejected": "c"}}\n{line}')
  with pytest.raises(InputError) as caught:
    step.run(step.Options(preset='tiny', data=str(path)))
  assert str(caught.value).startswith(f'{path}:2: {problem}')


def test_bad_flags_are_one_line():
  with pytest.raises(InputError, match='--data: .*cannot be read'):
    step.run(step.Options(preset='tiny', data='no.jsonl'))
  script = [sys.executable, str(ROOT / 'scripts/benchmark.py')]
  child = subprocess.run(
    [*script, '--variants=fast'], capture_output=True, text=True
  )
  assert child.returncode == 2 and "no 'fast'" in child.stderr
