"""lengths: what is measured is what encoding gives; your_pairs uses it."""

import json

import commands
import numpy as np
import pytest

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax.run import inputs, lengths
from dpo_jax.types import InputError

YOURS = f'{commands.ROOT}/experiments/your_pairs.py'


def write(tmp_path, sizes):
  """A file of pairs whose prompts are as long; answers have 3 and 6 bytes."""
  rows = (
    {
      'prompt': 'p' * (n - 4) + f'{i:04d}',
      'chosen': 'yes',
      'rejected': 'no way',
    }
    for i, n in enumerate(sizes)
  )
  path = tmp_path / 'pairs.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def config_of(path):
  config = config_lib.base()
  config.data.train = str(path)
  config.tokenizer = 'byte'
  return config


def test_lengths_are_those_of_the_tokens(tmp_path):
  sizes = [10, 20, 300, 5]
  measured = lengths.measure(config_of(write(tmp_path, sizes)))
  bos, eos = 1, 1
  assert measured.prompts.tolist() == [n + bos for n in sizes]
  assert measured.longest.tolist() == [n + bos + 6 + eos for n in sizes]
  assert measured.together.tolist() == [n + bos + 9 + 2 * eos for n in sizes]
  assert (measured.num_records, measured.num_comparisons) == (4, 4)
  assert measured.quantile(0.5) == 18 and measured.quantile(1.0) == 308
  assert measured.num_longer(28) == 1
  # Cut to 28, the longest record has 28 - 7 + 4 + 7 = 32 with both answers.
  assert measured.row(1.0, 28) == 32


def test_records_beyond_the_limit_are_counted(tmp_path):
  measured = lengths.measure(config_of(write(tmp_path, [10] * 9)), limit=4)
  assert len(measured.prompts) == 4
  assert (measured.num_records, measured.num_comparisons) == (9, 9)


def test_data_without_a_usable_record_is_refused(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  path.write_text('{"prompt": "p", "chosen": "x", "rejected": "x"}\n')
  with pytest.raises(InputError, match='can be used .identical_sides 1.'):
    lengths.measure(config_of(path))


def test_your_pairs_fits_its_lengths_and_says_what_is_cut(tmp_path, capsys):
  sizes = [40] * 90 + [100] * 6 + [1000] * 4  # 95 % have 100 or fewer
  path = write(tmp_path, sizes)
  config = config_lib.load(f'{YOURS}:data={path}')
  assert config.data.max_length == 128  # 100 + 8, in steps of 32
  assert config.data.eval_pairs == 5  # 5 % of 100
  said = capsys.readouterr().out
  assert '48 tokens (median), 108 (95%), 1,008 (longest)' in said
  assert 'cuts 4 of 100 pairs (4.0%); 5 comparisons are held out' in said
  # And so it is: the ledger of the run counts the same.
  config_lib.validate(config)
  data = inputs.read(config, tmp_path / 'cache', lambda line: None)
  assert data.ledger['train']['counters']['truncated_prompts'] == 4
  assert data.ledger['train']['held_out'] == 5
  assert len(data.train.indices) == 95
  longest = np.max(data.train.store.table.prompt_lengths)
  assert longest + 7 == config.data.max_length


@pytest.mark.parametrize('count', [3, 40])
def test_your_pairs_trains_on_few_pairs(count, tmp_path):
  path = write(tmp_path, [20] * count)
  words = [f'--config={YOURS}:data={path}', f'--workdir={tmp_path}/run']
  assert main_lib.main(words) == 0
  steps = [
    json.loads(line)['step']
    for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  ]
  assert max(steps) >= 2


def test_a_file_that_is_not_there_is_refused(capsys, tmp_path):
  words = [f'--config={YOURS}:data=no.jsonl', f'--workdir={tmp_path}/run']
  assert main_lib.main(words) == 2
  assert capsys.readouterr().err.startswith('no.jsonl:0: ')
