"""Samples: which files are read, and what becomes of a damaged one."""

import json

import pytest

from dpo_jax.results import collect
from dpo_jax.results.page import samples


@pytest.fixture
def sampled(make_run, tmp_path):
  """sampled({file name: [completion, ...]}) -> what the page gets."""

  def make(files, room=10**6):
    path = make_run('runs/a')
    (path / 'samples').mkdir()
    for name, texts in files.items():
      lines = [
        json.dumps(
          {
            'prompt': f'p{i}',
            'completion': text,
            'prompt_id': f'{i:02x}',
            'seed': i,
            'model_logp': -2.5,
            'temperature': 1.0,
          }
        )
        for i, text in enumerate(texts)
      ]
      (path / 'samples' / name).write_text('\n'.join([*lines, '']))
    runs = collect.collect([tmp_path / 'runs'])
    names = {run.path: run.path.name for run in runs}
    made, absent = samples.as_json(runs, names, room)
    return made | {'absent': absent}

  return make


def test_the_newest_step_and_the_first_are_shown(sampled):
  made = sampled(
    {
      'step_10_t1.jsonl': ['ten'],
      'step_9_t1.jsonl': ['nine'],
      'step_100_t1.jsonl': ['hundred'],
      'step_0_t1.jsonl': ['zero'],
    }
  )
  assert [one['file'] for one in made['sets']] == [
    'samples/step_100_t1.jsonl',
    'samples/step_0_t1.jsonl',
  ]
  first = made['sets'][0]
  assert first['settings'] == 'temperature 1.0' and first['of'] == 1
  assert first['rows'] == [
    {'prompt': '00', 'text': 'hundred', 'facts': 'seed 0, log-probability -2.5'}
  ]
  assert made['prompts'] == {'00': 'p0'} and made['absent'] == []


def test_the_number_shown_is_said_beside_the_number_there(sampled):
  made = sampled({'step_1.jsonl': [f'text {i}' for i in range(300)]})
  (only,) = made['sets']
  assert len(only['rows']) == samples.MOST == 200 and only['of'] == 300


def test_room_is_shared_by_all_files(sampled):
  texts = ['x' * 500] * 20
  made = sampled({'step_1.jsonl': texts, 'step_0.jsonl': texts}, room=6000)
  counts = [len(one['rows']) for one in made['sets']]
  assert all(2 <= count <= 5 for count in counts) and len(counts) == 2
  assert len(json.dumps(made)) < 7500


def test_a_damaged_file_is_named_and_its_good_lines_are_shown(
  sampled, tmp_path
):
  sampled({'step_1.jsonl': ['good']})
  path = tmp_path / 'runs' / 'a' / 'samples' / 'step_1.jsonl'
  path.write_bytes(path.read_bytes() + b'[1]\n{"prompt": 3}\n\xff{torn')
  runs = collect.collect([tmp_path / 'runs'])
  made, _ = samples.as_json(runs, {run.path: 'a' for run in runs}, 10**6)
  (only,) = made['sets']
  assert [row['text'] for row in only['rows']] == ['good']
  assert only['problem'] == '3 lines are no samples'


def test_without_samples_the_command_that_makes_them_is_named(
  make_run, tmp_path
):
  make_run('runs/a')
  runs = collect.collect([tmp_path / 'runs'])
  made, lines = samples.as_json(runs, {run.path: 'a' for run in runs}, 10**6)
  assert made['sets'] == []
  assert lines == ['no run has samples; fix: --mode=sample --workdir=RUN']
