"""Benchmark of the step: it runs, on drawn and given data; FLOPs by hand."""

import json
import pathlib
import subprocess
import sys

import pytest

from dpo_jax.bench import step
from dpo_jax.models import decoder_config, flops
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_flops_of_a_tiny_step_by_hand():
  config = decoder_config.DecoderConfig(
    vocab_size=11,
    width=4,
    mlp_width=6,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_size=2,
  )
  # Prompt of 3 (trunk 2), answers of 1 and 2 tokens: 5 slots; the trunk
  # attends 1 + 2, the branches 3 and 3 + 4 keys; 3 tokens are predicted.
  work = flops.shared_work(3, [1, 2])
  assert work == flops.Work(tokens=5, attended=13, predicted=3)
  per_token = 2 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6)
  expected = 3 * (5 * per_token + 13 * 4 * 4) + 2 * 4 * 11 * 3
  assert flops.forward_flops(config, work) == expected


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
