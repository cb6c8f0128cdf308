"""Evaluation by the weights of ranked rows."""

import json
import math
import pathlib

from dpo_jax import main as main_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = f'--config={ROOT}/experiments/quickstart.py:stage=dpo,runlocal'


def ranked(i, count, weight):
  answers = [f'{k} of {count}' for k in range(count)]
  return {
    'prompt': f'p{i}',
    'completions': answers,
    'scores': list(range(count)),
    'weight': weight,
  }


def first_loss(folder, loss, held_out, *keys):
  """The held-out loss before training, where policy and reference agree."""
  train = [ranked(i, 3, 1) for i in range(20, 60)]
  flags = [CONFIG, f'--workdir={folder / "run"}']
  for name, lines in (('train', train), ('eval', held_out)):
    path = folder / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in lines))
    flags.append(f'--config.data.{name}={path}')
  keys += ('loss.terms.sigmoid=0', f'loss.terms.{loss}=1')
  keys += ('train.num_steps=1', 'eval.batch_size=3')
  assert main_lib.main([*flags, *(f'--config.{key}' for key in keys)]) == 0
  lines = (folder / 'run' / 'metrics.jsonl').read_text().splitlines()
  entries = map(json.loads, lines)
  return next(entry['loss'] for entry in entries if entry['split'] == 'eval')


def test_held_out_rows_of_weight_0_count_for_nothing(tmp_path):
  # Where policy and reference agree, infonca's loss is log K.
  rows = [ranked(i, 2, 0) for i in range(5)]
  rows += [ranked(i, 4, 3) for i in range(5, 7)] + [ranked(8, 3, 1)]
  expected = (6 * math.log(4) + math.log(3)) / 7
  assert abs(first_loss(tmp_path, 'infonca', rows) - expected) < 1e-5


def test_held_out_prompts_weigh_once_each(tmp_path):
  # Where policy and reference agree, odpo's loss is log(1 + score gap): log 2
  # for a pair, and over three answers the mean of log 2, log 2 and log 3.
  rows = [
    ranked(0, 3, 1),
    ranked(1, 2, 1),
    ranked(1, 2, 1) | {'scores': [1, 0]},
  ]
  expected = (math.log(2) + math.log(12) / 3) / 2
  loss = first_loss(tmp_path, 'odpo', rows, 'data.weigh_prompts=True')
  assert abs(loss - expected) < 1e-5
