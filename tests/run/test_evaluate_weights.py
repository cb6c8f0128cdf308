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


def test_held_out_rows_of_weight_0_count_for_nothing(tmp_path):
  # Where policy and reference agree, infonca's loss is log K.
  rows = [ranked(i, 2, 0) for i in range(5)]
  rows += [ranked(i, 4, 3) for i in range(5, 7)] + [ranked(8, 3, 1)]
  train = [ranked(i, 3, 1) for i in range(20, 60)]
  flags = [CONFIG, f'--workdir={tmp_path / "run"}']
  for name, lines in (('train', train), ('eval', rows)):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in lines))
    flags.append(f'--config.data.{name}={path}')
  keys = ('loss.terms.sigmoid=0', 'loss.terms.infonca=1', 'train.num_steps=1')
  keys += ('eval.batch_size=3',)
  assert main_lib.main([*flags, *(f'--config.{key}' for key in keys)]) == 0
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  first = next(
    entry for entry in map(json.loads, lines) if entry['split'] == 'eval'
  )
  expected = (6 * math.log(4) + math.log(3)) / 7
  assert abs(first['loss'] - expected) < 1e-5
