"""positions: texts that the model has no room for, through the real command."""

import json

import pytest
import small_models
from commands import CONFIG, refuse

from dpo_jax import main as main_lib

MODES = ('train', 'plan', 'evaluate')
LENGTH = '--config.data.max_length=128'


def write_pairs(path, lengths):
  """Pairs whose prompt with the longer answer has so many tokens."""
  rows = [
    # BOS, 4 + n bytes, EOS.
    {'prompt': f'p{i:02d}:', 'chosen': 'a' * (n - 6), 'rejected': 'no'}
    for i, n in enumerate(lengths)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def flags_of(tmp_path, lengths, kind):
  data = write_pairs(tmp_path / 'data.jsonl', lengths)
  model = small_models.write(tmp_path / 'model', kind)
  return [*model, f'--config.data.train={data}', LENGTH]


@pytest.mark.parametrize('mode', MODES)
def test_a_position_table_has_room_for_every_text(tmp_path, capsys, mode):
  flags = flags_of(tmp_path, [64] * 40 + [100] * 20, 'gpt2')
  error = refuse([*flags, f'--mode={mode}'], tmp_path, capsys)
  assert error.startswith('config.data.train: ')
  assert "longer than the model's table of 64 positions" in error
  assert 'has 100 tokens; fix: --config.data.max_length=64' in error
  flags[-1] = '--config.data.max_length=64'  # as the line says
  assert main_lib.main([CONFIG, '--mode=plan', *flags]) == 0


@pytest.mark.parametrize('mode', MODES)
def test_held_out_texts_count_too(tmp_path, capsys, mode):
  flags = flags_of(tmp_path, [64] * 20, 'gpt2')
  held_out = write_pairs(tmp_path / 'eval.jsonl', [20, 65])
  flags += [f'--config.data.eval={held_out}', f'--mode={mode}']
  error = refuse(flags, tmp_path, capsys)
  assert error.startswith('config.data.eval: 1 of 4 texts of data.eval are ')


def test_a_rotary_model_gets_one_line(tmp_path, capsys):
  flags = flags_of(tmp_path, [30] * 20 + [65, 100], 'llama')
  held_out = write_pairs(tmp_path / 'eval.jsonl', [64])
  flags += [f'--config.data.eval={held_out}', '--mode=plan']
  assert main_lib.main([CONFIG, *flags]) == 0
  lines = capsys.readouterr().out.splitlines()
  (line,) = [line for line in lines if 'max_position_embeddings' in line]
  assert line.startswith('2 of 44 texts of data.train are longer than the 64 ')
  assert line.endswith('the longest has 100 tokens')


def test_dynamic_scaling_is_made_for_longer_texts(tmp_path, capsys):
  flags = flags_of(tmp_path, [30] * 40 + [65, 100], 'dynamic')
  assert main_lib.main([CONFIG, *flags, '--mode=plan']) == 0
  assert 'max_position_embeddings' not in capsys.readouterr().out


@pytest.mark.parametrize(
  ('kind', 'words'),
  [
    ('gpt2', 'is more than the 64 positions of the model'),
    ('dynamic', "positions above which rope_type='dynamic' rotates all tokens"),
  ],
)
def test_samples_at_an_evaluation_are_counted_before_the_first_step(
  tmp_path, capsys, kind, words
):
  flags = flags_of(tmp_path, [30] * 40, kind)
  flags += [
    '--config.eval.num_samples=2',
    '--config.sample.max_new_tokens=60',
  ]
  error = refuse(flags, tmp_path, capsys)
  assert error.startswith(
    'config.sample.max_new_tokens: 60 after a prompt of 5'
  )
  assert words in error


def test_mismatched_answers_stay_inside_the_table(tmp_path):
  # KTO reads a prompt with another's answer: together they might not fit.
  rows = [
    {
      'prompt': 'p' * (50 if i % 2 else 5) + str(i),
      'completion': 'a' * (5 if i % 2 else 50),
      'label': bool(i % 3),
    }
    for i in range(40)
  ]
  path = tmp_path / 'kto.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  flags = small_models.write(tmp_path / 'model', 'gpt2')
  flags += [
    f'--config.data.train={path}',
    LENGTH,
    '--config.loss.terms.sigmoid=0',
    '--config.loss.terms.kto=1',
    '--config.data.eval_pairs=8',
  ]
  assert main_lib.main([CONFIG, f'--workdir={tmp_path}/run', *flags]) == 0
  text = (tmp_path / 'run/metrics.jsonl').read_text()
  assert 'NaN' not in text and len(text.splitlines()) == 4
