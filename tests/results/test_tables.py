"""The texts of a table: padded, escaped, rounded, marked, and all cells."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest

from dpo_jax.results import cells, collect, options, sheet, tables


def _table(*paths, **chosen) -> cells.Table:
  return cells.make_table(collect.collect(paths), options.Options(**chosen))


def _margins(num=64, mean=3.0):
  return np.random.default_rng(num).normal(mean, 4.0, num)


def _grid(text: str) -> list[list[str]]:
  """The first table of a Markdown text, its head first."""
  head, _, *rows = text.split('\n\n')[0].splitlines()
  return [
    [part.strip() for part in line.split('|')[1:-1]] for line in (head, *rows)
  ]


def test_what_was_not_measured_is_a_dash(make_run):
  sft = make_run(
    'sft',
    {'stage': 'sft'},
    lines=[
      {'step': 0, 'split': 'eval', 'loss': 3.2},
      {'step': 7, 'split': 'eval', 'loss': 1.25, 'kl': None},
    ],
  )
  table = _table(sft, make_run('dpo'))
  head, first, second = _grid(tables.markdown(table, '/'))
  assert head[:3] == ['stage', 'step', 'loss before']
  assert first == ['sft', '7', '3.200', '1.250', *['-'] * 3]
  assert second[2:4] == ['0.693', '0.400']
  alone = _table(sft)
  assert alone.columns == (('loss', 'before'), ('loss', 'after'))


def test_a_run_without_any_evaluation_is_in_the_table(make_run):
  table = _table(make_run('a', lines=[], done=False))
  assert table.rows[0].cells['loss', 'after'].value is None
  assert '| a   |  1† |    0 |' in tables.markdown(table, '/')
  only_before = make_run('b', lines=[{'step': 0, 'split': 'eval', 'loss': 1}])
  assert _table(only_before).rows[0].cells['loss', 'after'].value is None


def test_unfinished_torn_and_repeated_runs_are_marked_and_counted(
  make_run, tmp_path
):
  make_run('runs/a', {'seed': 0})
  make_run('runs/b', {'seed': 1}, done=False, tail='{"step": 11, "spl')
  make_run('runs/c', {'seed': 1}, final=0.5)
  table = _table(tmp_path / 'runs')
  text = tables.markdown(table, tmp_path / 'out')
  assert '| 2†‡§ |' in text
  assert '† 1 of 3 runs unfinished (no DONE).' in text
  assert '† 1 of 3 runs: ../runs/b' in text
  assert '‡ metrics.jsonl ends in a torn line, left out.' in text
  assert '‡ 1 of 3 runs: ../runs/b' in text
  assert 'count as one seed, by their mean.' in text
  assert '§ 2 of 3 runs: ../runs/b, ../runs/c' in text
  # seed 0 gave 0.4; seed 1 gave 0.4 and 0.5
  cell = table.rows[0].cells['loss', 'after']
  assert cell.value == pytest.approx((0.4 + 0.45) / 2) and cell.num == 2


@pytest.mark.parametrize('text', ['{}', 'done'])
def test_a_mark_that_no_run_wrote_is_none(make_run, tmp_path, text):
  run = make_run('runs/a', {'seed': 0})
  (run / 'DONE').write_text(text)
  said = tables.markdown(_table(tmp_path / 'runs'), tmp_path / 'out')
  assert '† 1 of 1 runs unfinished (no DONE).' in said


def test_a_seed_that_did_not_get_there_shows_in_its_cells(make_run, tmp_path):
  for seed in range(2):
    make_run(f'{seed}', {'seed': seed}, final=0.4 + 0.01 * seed)
  make_run('2', {'seed': 2}, lines=[], done=False)
  text = tables.markdown(_table(tmp_path), '/')
  assert '(n=2)' in text and '|  3† | 0-10 |' in text


def test_markdown_reads_as_a_table(make_run, tmp_path):
  make_run('a', {'loss.beta': 0.05})
  make_run('b', {'loss.beta': 0.5, 'seed': 1}, final=0.5)
  text = tables.markdown(_table(tmp_path), tmp_path)
  head, rule, *rows = text.split('\n\n')[0].splitlines()
  # All but the loss are equal in both rows.
  assert head == '| beta | accuracy | margin |'
  assert re.fullmatch(r'\| -+ (\| -+: )+\|', rule)
  assert len({len(line) for line in (head, rule, *rows)}) == 1
  assert '| 0.05 |' in rows[0] and '| 0.5 ' in rows[1]
  assert 'losses do not compare' in text  # beta differs


def test_labels_cannot_break_a_table(make_run, tmp_path):
  make_run('a', {'data.train': 'x|y_50%&#{}~^$\\<z>', 'loss.beta': -0.5})
  make_run('b', {'data.train': 'two\nlines'})
  rows = tables.markdown(_table(tmp_path), '/').split('\n\n')[0].splitlines()
  assert len(rows) == 4
  assert {len(re.findall(r'(?<!\\)\|', row)) for row in rows} == {5}


def test_csv_has_every_number(make_scored_run, tmp_path):
  make_scored_run('a', margins=_margins())
  make_scored_run('b', {'loss.beta': 0.2}, margins=_margins(), beta=0.2)
  table = _table(tmp_path)
  text = tables.comma_separated(table)
  first, second = csv.DictReader(io.StringIO(text))
  assert (first['beta'], second['beta']) == ('0.1', '0.2')
  assert first['n'] == '1' and first['step_max'] == '10'
  cell = table.rows[1].cells['accuracy', 'after']
  for part in ('se', 'low', 'high'):
    value = float(second[f'accuracy_after_{part}'])
    assert value == pytest.approx(getattr(cell, part), rel=1e-8)
  assert second['accuracy_after_over'] == 'prompts'
  assert first['accuracy_before_se'] == ''  # every comparison ties


def test_json_has_every_cell_with_its_runs(make_scored_run, tmp_path):
  for beta in (0.1, 0.2):
    for seed in range(2):
      changes = {'loss.beta': beta, 'seed': seed}
      margins = _margins() + seed + 3 * beta
      make_scored_run(f'r/{beta}{seed}', changes, margins=margins, beta=beta)
  table = _table(tmp_path / 'r', at=options.At('best', metric='kl'))
  document = json.loads(tables.as_json(table, tmp_path / 'out'))
  assert document['at'] == 'best:kl' and document['labels'] == {
    'loss.beta': 'beta'
  }
  assert [row['label'] for row in document['rows']] == [
    {'beta': '0.1'},
    {'beta': '0.2'},
  ]
  row = document['rows'][1]
  assert row['runs'] == ['../r/0.20', '../r/0.21'] and row['seeds'] == [0, 1]
  for entry in row['cells']:
    cell = table.rows[1].cells[entry['label'], entry['when']]
    assert entry['value'] == float(f'{cell.value:.9g}')
    assert (entry['num'], entry['over'], entry['n']) == (
      *(cell.num, cell.over, cell.num_seeds),
    )
  assert len(row['cells']) == len(table.columns)
  accuracy, margin = document['differences']
  assert accuracy['metric'] == 'accuracy' and margin['metric'] == 'margin'
  want = table.differences[1]
  assert margin['row'] == 'beta=0.2' and margin['minus'] == 'beta=0.1'
  assert margin['p'] == float(f'{want.p:.9g}') == margin['p_holm']
  assert margin['n'] == [2, 2] and margin['num'] == 64


@pytest.mark.parametrize(
  'numbers, want',
  [
    ((0.3754, 0.3704, 0.3804), '0.375 ± 0.005'),
    ((0.3754, 0.37534, 0.37546), '0.37540 ± 0.00006'),
    ((0.3754, 0.37523, 0.37557), '0.37540 ± 0.00017'),  # two digits of 1x
    ((0.6931, 0.6931, 0.6931), '0.693'),
    ((0.6931, None, None), '0.693'),
    ((0.6931, math.nan, math.nan), '0.693'),
    ((1234.56, 1230.0, 1239.12), '1234.6 ± 4.6'),
    ((1234.56, None, None), '1234.6'),
    ((math.nan, math.nan, math.nan), 'nan'),
    ((-0.02, -0.055, 0.015), '-0.02 ± 0.04'),
    ((-0.02, -0.05, 0.01), '-0.02 ± 0.03'),
  ],
)
def test_digits_follow_the_interval(numbers, want):
  (number,) = sheet._rounded([numbers])
  assert str(number) == want


def test_a_column_has_the_decimals_of_its_median():
  numbers = [(17.52, 13.3, 21.7), (6.25, 5.9, 6.6), (3.4, 3.36, 3.44)]
  assert [str(each) for each in sheet._rounded(numbers)] == [
    *('17.5 ± 4.2', '6.2 ± 0.3', '3.40 ± 0.04'),
  ]
  shares = sheet._rounded([(0.639, 0.60, 0.68)], 3)
  assert str(shares[0]) == '0.639 ± 0.040'


def test_transposed_rows_are_columns(make_run, tmp_path):
  for loss in ('sigmoid', 'ipo'):
    for beta in (0.1, 0.5):
      changes = {'loss.terms': {loss: 1.0}, 'loss.beta': beta}
      make_run(f'{loss}{beta}', changes, final=beta)
  text = tables.markdown(_table(tmp_path, transpose=True), '/')
  head, betas, *_ = _grid(text)
  assert head == ['Loss', 'DPO', 'DPO', 'IPO', 'IPO']
  assert betas == ['beta', '0.1', '0.5', '0.1', '0.5']


def test_bold_is_the_mean_alone(make_scored_run, tmp_path):
  gap = _margins(200)
  make_scored_run('a', margins=gap)
  make_scored_run('b', {'optim.name': 'lion'}, margins=gap + 6)
  text = tables.markdown(_table(tmp_path), '/')
  first, second = _grid(text)[1:]
  accuracy = _grid(text)[0].index('accuracy')
  assert '**' not in first[accuracy]
  assert re.match(r'\*\*0\.\d+\*\* \[', second[accuracy])
  assert 'no other row is significantly better' in text
