"""datasets: columns of data files, read through a validated config."""

import json

import pytest

from dpo_jax import config as config_lib
from dpo_jax import types
from dpo_jax.data.text import tokenizer
from dpo_jax.run import datasets

PAIR = {'chosen': 'yes', 'rejected': 'no'}


def _rows(num=8, **columns):
  return [{'prompt': f'p{i} '} | PAIR | columns for i in range(num)]


def _read(tmp_path, rows, *overrides):
  """The data and the log of a config that trains on these rows."""
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  config = config_lib.base()
  config.data.train = str(path)
  config.data.eval_pairs = 2
  config.loss.terms = {'sigmoid': 1.0}
  for override in overrides:
    key, _, value = override.partition('=')
    section, _, name = key.partition('.')
    config[section][name] = value
  lines = []
  bytes_ = tokenizer.load('byte')
  data = datasets.read(config, bytes_, tmp_path / 'cache', lines.append)
  return data, lines, config, bytes_


def test_the_cache_does_not_hide_a_row_that_lacks_what_a_loss_reads(tmp_path):
  rows = [*_rows(margin=1.0), {'prompt': 'q'} | PAIR | {'margin': None}]
  data, _, config, bytes_ = _read(tmp_path, rows)
  assert len(data.train.indices) + len(data.evaluation.indices) == 9
  config.loss.terms = {'margin': 1.0}
  with pytest.raises(types.InputError, match="a.jsonl:9: 'margin' is not giv"):
    datasets.read(config, bytes_, tmp_path / 'cache')


def test_renamed_data_is_other_data(tmp_path):
  rows = _rows(system='Be brief.', id=1)
  leave = 'data.columns=-system'
  _, lines, config, bytes_ = _read(tmp_path, rows, leave)
  named = [line for line in lines if 'not read' in line]
  assert named == [f"{config.data.train}: columns that are not read: 'id'"]
  # Another choice of columns is not found in the cache of this one.
  config.data.columns = '-id'
  with pytest.raises(types.InputError, match="column 'system'"):
    datasets.read(config, bytes_, tmp_path / 'cache')


def test_prompts_to_sample_have_the_columns_of_training(tmp_path):
  _, _, config, bytes_ = _read(tmp_path, _rows())
  path = tmp_path / 'prompts.jsonl'
  config.sample.prompts = str(path)
  path.write_text(json.dumps({'q': 'p', 'images': ['x']}))
  config.data.columns = 'prompt=q,-images,chosen=good'
  (ids,) = datasets.read_prompts(config, bytes_)
  assert bytes_.decode(list(ids)).endswith('p')
  config.data.columns = 'prompt=q'
  with pytest.raises(types.InputError, match="column 'images'"):
    datasets.read_prompts(config, bytes_)
