"""Data from which losses cannot learn: counted, said or refused."""

import json

import pytest
from commands import EXPERIMENT

from dpo_jax import config as config_lib
from dpo_jax.data.text import encoders
from dpo_jax.run import datasets, show
from dpo_jax.types import InputError

BYTE = encoders.ByteTokenizer()


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def pairs(first, stop, **columns):
  return [
    {'prompt': f'p{i}', 'chosen': f'yes {i}', 'rejected': 'no'} | columns
    for i in range(first, stop)
  ]


def labelled(first, stop, label):
  return [
    {'prompt': f'p{i}', 'completion': f'yes {i}', 'label': label}
    for i in range(first, stop)
  ]


def read(folder, train, held_out, loss='sigmoid', **more):
  """The data, and the lines about judgements."""
  flags = {
    'data.train': write(folder / 'train.jsonl', train),
    'data.eval': write(folder / 'eval.jsonl', held_out),
    'loss.terms.sigmoid': '0',
    f'loss.terms.{loss}': '1',
    **more,
  }
  config = config_lib.load(EXPERIMENT, flags.items())
  config_lib.validate(config)
  lines = []
  data = datasets.read(config, BYTE, folder, log=lines.append)
  words = ('labels', 'comparisons have')
  return data, [line for line in lines if any(w in line for w in words)]


def test_odpo_counts_scores_that_tie_or_are_reversed(tmp_path):
  train = [
    *pairs(0, 40, score_chosen=2, score_rejected=1),
    *pairs(40, 45, score_chosen=1, score_rejected=1),
    *pairs(45, 52, score_chosen=1, score_rejected=3),
  ]
  held_out = pairs(60, 68, score_chosen=1, score_rejected=1)
  for _ in range(2):  # the second time from the token cache
    data, lines = read(tmp_path, train, held_out, 'odpo')
    assert lines == [
      'train: 5 of 52 comparisons have answers with equal scores: odpo gets no '
      'gradient from them',
      'train: 7 of 52 comparisons have the higher score on the rejected '
      'answer: odpo gets no gradient from them',
      'eval: 8 of 8 comparisons have answers with equal scores: odpo gets no '
      'gradient from them',
    ]
    assert data.ledger['train']['tied_scores'] == 5
    assert data.ledger['train']['reversed_scores'] == 7
    assert data.ledger['eval']['tied_scores'] == 8
    (line,) = [
      line
      for line in show.explain('train', data.ledger['train'])
      if ' reversed_scores ' in line
    ]
    assert line.split()[:2] == ['7', 'reversed_scores']
    assert line.endswith('without gradient there')
  _, lines = read(tmp_path, train, held_out, 'reward_aware_rpo')
  assert not lines  # it takes a gap of either sign


def test_labels_of_one_kind_are_said_in_one_line(tmp_path):
  one, other = labelled(0, 40, True), labelled(50, 58, False)
  _, lines = read(tmp_path, one, other, 'bco')
  assert lines == [
    'train: all 40 labels are desirable: no metric that reads undesirable '
    'answers can be given',
    'eval: all 8 labels are undesirable: no metric that reads desirable '
    'answers can be given',
  ]
  _, lines = read(tmp_path, one + other, one + other, 'bco')
  assert not lines


def test_weights_that_are_all_0(tmp_path):
  kept, zero = pairs(0, 40), pairs(50, 58, weight=0)
  _, lines = read(tmp_path, kept, zero)
  assert lines == [
    'eval: 8 of 8 comparisons have weight 0: no metric of comparisons can be '
    'given'
  ]
  with pytest.raises(InputError) as refusal:
    read(tmp_path, pairs(0, 40, weight=0), kept)
  assert str(refusal.value) == (
    "config.data.train: 'weight' is 0 in all 40 comparisons, so no loss "
    'learns; fix: give weights above 0, or leave the column out with '
    'data.columns=-weight'
  )
