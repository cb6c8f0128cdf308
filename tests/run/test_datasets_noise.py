"""data.flip_share through the real reader, and through a real run."""

import json

import numpy as np
import pytest
from commands import EXPERIMENT, build, refuse

from dpo_jax import config as config_lib
from dpo_jax.data.text import encoders
from dpo_jax.run import datasets, inputs, show
from dpo_jax.run import job as job_lib

BYTE = encoders.ByteTokenizer()


def pairs(num):
  return ''.join(
    json.dumps({'prompt': f'p{i}', 'chosen': f'yes {i}', 'rejected': 'no'})
    + '\n'
    for i in range(num)
  )


@pytest.fixture
def path(tmp_path):
  file = tmp_path / 'pairs.jsonl'
  file.write_text(pairs(300))
  return file


def read(path, parts=('train', 'eval'), **more):
  """The data, its log lines and its config."""
  values = {f'data.{key}': value for key, value in more.items()}
  config = config_lib.load(
    EXPERIMENT, {'data.train': str(path), **values}.items()
  )
  config_lib.validate(config)
  lines = []
  data = datasets.read(config, BYTE, path.parent, lines.append, parts=parts)
  return data, lines, config


def winners(part):
  """{answer that counts as chosen: number} of a part, by its first letter."""
  texts = []
  for i in part.indices:
    record = part.store[int(i)]
    winner = record.completions[record.comparisons[0].winner]
    texts.append(BYTE.decode([int(t) for t in winner])[:1])
  return {letter: texts.count(letter) for letter in sorted(set(texts))}


def test_training_data_is_swapped_and_held_out_data_is_not(path):
  clean, _, _ = read(path)
  noisy, lines, _ = read(path, flip_share=0.4)
  assert winners(clean.train) == {'y': 284}
  assert winners(clean.evaluation) == winners(noisy.evaluation) == {'y': 16}
  flipped = winners(noisy.train)['n']
  # A binomial of 284 draws: standard deviation 8.3; four of them.
  assert abs(flipped - 113.6) < 33
  assert noisy.ledger['train']['flipped'] == flipped
  assert 'flipped' not in clean.ledger['train']
  (line,) = [line for line in lines if 'loser swapped' in line]
  assert line.startswith(f'train: {flipped} of 284 comparisons (')
  explained = show.explain('train', noisy.ledger['train'])
  assert any(
    line.split()[:2] == [str(flipped), 'flipped'] for line in explained
  )
  # One store of tokens; digests tell the judgements apart.
  assert len([*(path.parent / 'tokens').iterdir()]) == 1
  assert clean.train.store.digest == noisy.train.store.digest
  digests = [
    (data.train.store.judgements, data.evaluation.store.judgements)
    for data in (clean, noisy)
  ]
  assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]


def test_runs_of_other_shares_are_other_runs(path):
  clean, noisy, other = (
    read(path, **more)[2]
    for more in ({}, {'flip_share': 0.4}, {'flip_share': 0.4, 'flip_seed': 1})
  )
  assert len({config_lib.graph(c) for c in (clean, noisy, other)}) == 3
  seen = [
    inputs.read(config, path.parent, log=lambda line: None).fingerprints
    for config in (clean, noisy, other)
  ]
  assert len({s['judgements'] for s in seen}) == 3
  assert len({s['data'] for s in seen}) == 1


def test_a_command_that_reads_no_training_data_swaps_nothing(path):
  data, lines, _ = read(path, parts=('eval',), flip_share=0.4)
  assert winners(data.evaluation) == {'y': 16}
  assert not [line for line in lines if 'loser swapped' in line]


def test_batches_have_the_swapped_sides(path):
  given = [('data.train', str(path)), ('data.flip_share', 0.4)]
  job = build(path.parent, given)
  swapped = seen = 0
  for t in range(10):
    batch = job_lib.host_batch(job.train_plan, job.inputs.train, t)
    chosen = batch.comparisons
    # A row of pairs has the chosen answer first: an odd number is a swap.
    swapped += int((chosen.winner % 2).sum())
    seen += int((chosen.winner + chosen.loser > 0).sum())
    np.testing.assert_array_equal(
      chosen.winner // 2, np.arange(len(chosen.winner))
    )
    np.testing.assert_array_equal(chosen.winner ^ 1, chosen.loser)
  assert seen == 80 and 16 < swapped < 48  # 32 expected, deviation 4.4
  held_out = job_lib.host_batch(job.eval_plan, job.inputs.evaluation, 0)
  assert not (held_out.comparisons.winner % 2).any()


@pytest.mark.parametrize(
  'flags,words',
  [
    (
      ['--config.data.flip_share=1'],
      'config.data.flip_share: 1.0 is not allowed; fix: use a number in [0, 1)',
    ),
    (
      [
        '--config.data.flip_share=0.2',
        '--config.loss.terms.sigmoid=0',
        '--config.loss.terms.odpo=1',
      ],
      'config.data.flip_share: 0.2 swaps the sides of comparisons, and odpo '
      'reads the scores of their answers; fix: set it to 0, or use a loss '
      'without scores',
    ),
  ],
)
def test_what_label_noise_cannot_be(flags, words, tmp_path, capsys):
  assert words in refuse(flags, tmp_path, capsys)


def test_sft_has_no_comparisons_to_swap(tmp_path, capsys):
  flags = [
    '--config.stage=sft',
    '--config.reference.mode=none',
    *('--config.loss.terms.sigmoid=0', '--config.loss.terms.nll=1'),
    *('--config.loss.beta=None', '--config.data.flip_share=0.2'),
  ]
  assert 'data.train has none' in refuse(flags, tmp_path, capsys)


def test_swapped_arrays_are_int32(path):
  table = read(path, flip_share=0.4)[0].train.store.table
  assert table.winner.dtype == table.loser.dtype == np.int32
