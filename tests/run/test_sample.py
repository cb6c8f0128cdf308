"""The sampling loop: batches, files, refusals; and training beside it."""

import json
import types

import numpy as np
import pytest

from dpo_jax import config as config_lib
from dpo_jax import main
from dpo_jax.data.text import encoders
from dpo_jax.run import sample
from dpo_jax.types import InputError

EXPERIMENT = 'experiments/stories_dpo.py:runlocal'


def command(workdir, *flags, mode='sample', experiment=EXPERIMENT):
  return main.main(
    [
      f'--config={experiment}',
      f'--workdir={workdir}',
      f'--mode={mode}',
      '--config.sample.max_new_tokens=6',
      *(f'--config.{flag}' for flag in flags),
    ]
  )


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def one_file(workdir, pattern):
  (path,) = (workdir / 'samples').glob(pattern)
  return path


def test_samples_of_a_file_do_not_depend_on_batch_or_neighbours(
  tmp_path, capsys
):
  # One prompt is long: it goes to a batch of its own padded length.
  prompts = ['Hi', 'x' * 40, 'Once', 'upon a time']
  path = tmp_path / 'prompts.jsonl'
  path.write_text(''.join(json.dumps({'prompt': p}) + '\n' for p in prompts))
  flags = f'sample.prompts={path}', 'sample.num_samples=2', 'mesh.tensor=2'
  assert command(tmp_path / 'all', *flags, 'sample.batch_size=8') == 0
  assert '8 of 8 samples' in capsys.readouterr().out
  found = [lines(one_file(tmp_path / 'all', 'step_0_t1_seed0_*'))]
  assert [s['prompt'] for s in found[0]] == list(np.repeat(prompts, 2))
  assert [s['seed'] for s in found[0]] == list(range(8))
  flags += 'sample.num_prompts=1', 'sample.batch_size=4'
  assert command(tmp_path / 'one', *flags) == 0
  found.append(lines(one_file(tmp_path / 'one', 'step_0_*')))
  assert len(found[1]) == 2
  for one, other in zip(*found):
    assert one['token_ids'] == other['token_ids']
    assert len(one['logps']) == one['num_tokens'] == len(one['token_ids'])
    assert one['logp'] == pytest.approx(sum(one['logps']))
  assert len({tuple(s['token_ids']) for s in found[0]}) == 8


def test_samples_at_evaluations_change_no_bit_of_training(tmp_path):
  for name, flags in (('with', ['eval.num_samples=3']), ('without', [])):
    assert command(tmp_path / name, *flags, mode='train') == 0
  metrics = [
    [
      {k: v for k, v in line.items() if 'per_second' not in k}
      for line in lines(tmp_path / name / 'metrics.jsonl')
    ]
    for name in ('with', 'without')
  ]
  for line, other in zip(*metrics, strict=True):
    assert line['loss'] == other['loss']
    assert line.get('grad_norm') == other.get('grad_norm')
  for step in (0, 2):
    assert len(lines(one_file(tmp_path / 'with', f'eval_{step}_*'))) == 3
  assert not (tmp_path / 'without/samples').exists()


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('sample.top_p=1.5', 'config.sample.top_p: 1.5'),
    ('sample.top_p=0', 'config.sample.top_p: 0'),
    ('sample.min_p=1', 'config.sample.min_p: 1'),
    ('sample.max_new_tokens=0', 'config.sample.max_new_tokens: 0'),
    ('sample.temperature=-1', 'config.sample.temperature: -1'),
    ('sample.prompts=/nowhere.jsonl', '/nowhere.jsonl'),
  ],
)
def test_refused_in_one_line_before_anything(tmp_path, capsys, flag, words):
  assert command(tmp_path / 'run', flag) == 2
  message = capsys.readouterr().err
  assert message.count('\n') == 1 and words in message and 'fix:' in message
  assert not (tmp_path / 'run').exists()


def test_greedy_refuses_a_filter_that_it_would_not_use():
  config = config_lib.load(EXPERIMENT, [('sample.temperature', '0')])
  config_lib.validate(config)
  config.sample.top_k = 5
  with pytest.raises(InputError, match='sample.top_k: 5 is not used'):
    config_lib.validate(config)


def test_stop_texts_are_single_tokens():
  tokenizer = encoders.ByteTokenizer()
  assert sample.stop_ids(tokenizer, '') == [257]  # EOS
  assert sample.stop_ids(tokenizer, ('\n', '<|bos|>')) == [10, 256, 257]
  with pytest.raises(InputError, match="'ab' is 2 tokens of byte"):
    sample.stop_ids(tokenizer, 'ab')


def test_learned_positions_are_not_passed():
  class Model:
    learned_positions, max_positions, ropes = True, 10, ()

  config = config_lib.load(EXPERIMENT, [('sample.max_new_tokens', '6')])
  inputs = types.SimpleNamespace(model=Model)
  job = types.SimpleNamespace(config=config, inputs=inputs)
  sample.check_lengths(job, [np.arange(4)])
  with pytest.raises(InputError, match='6 after a prompt of 5 tokens'):
    sample.check_lengths(job, [np.arange(4), np.arange(5)])
