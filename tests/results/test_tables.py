"""The three texts of a table: padded, escaped, rounded, marked."""

import csv
import io
import math
import re

import numpy as np
import pytest

from dpo_jax.results import cells, collect, tables


def _table(*paths) -> cells.Table:
  return cells.make_table(collect.collect(paths))


def _margins(num=64, mean=3.0):
  return np.random.default_rng(num).normal(mean, 4.0, num)


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
  lines = tables.markdown(table, '/').splitlines()
  cut = [[part.strip() for part in line.split('|')[1:-1]] for line in lines[:4]]
  assert cut[2] == ['sft', '1', '7', '3.200', '1.250', *['-'] * 6]
  assert cut[3][3:5] == ['0.693', '0.400']
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
  assert '|  2†‡§ |' in text.replace('| 2†‡§ |', '|  2†‡§ |')
  assert '† 1 of 3 runs unfinished (no DONE): ../runs/b' in text
  assert 'torn line, left out, in 1 of 3 runs: ../runs/b' in text
  assert 'count as one seed, by their mean: ../runs/b, ../runs/c' in text
  # seed 0 gave 0.4; seed 1 gave 0.4 and 0.5
  cell = table.rows[0].cells['loss', 'after']
  assert cell.value == pytest.approx((0.4 + 0.45) / 2) and cell.num == 2


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
  assert head.startswith('| beta |   n | step | loss before | loss after |')
  assert re.fullmatch(r'\| -+ (\| -+: )+\|', rule)
  assert len({len(line) for line in (head, rule, *rows)}) == 1
  assert '| 0.05 |' in rows[0] and '| 0.5 ' in rows[1]
  assert 'losses do not compare' in text  # beta differs


def test_labels_cannot_break_a_table(make_run, tmp_path):
  make_run('a', {'data.train': 'x|y_50%&#{}~^$\\<z>', 'loss.beta': -0.5})
  make_run('b', {'data.train': 'two\nlines'})
  table = _table(tmp_path)
  rows = tables.markdown(table, '/').split('\n\n')[0].splitlines()
  assert len(rows) == 4
  assert {len(re.findall(r'(?<!\\)\|', row)) for row in rows} == {13}
  tex = tables.latex(table, '/')
  assert (
    r'x\textbar{}y\_50\%\&\#\{\}\textasciitilde{}\textasciicircum{}\$'
    r'\textbackslash{}\textless{}z\textgreater{}' in tex
  )
  (line,) = [line for line in tex.splitlines() if 'y\\_50' in line]
  assert len(re.findall(r'(?<!\\)&', line)) == 11


def test_latex_is_booktabs_with_as_many_columns_as_it_says(
  make_scored_run, tmp_path
):
  gap = _margins()
  make_scored_run('a', margins=gap)
  make_scored_run('b', {'loss.beta': 0.3}, margins=-gap, beta=0.3, done=False)
  tex = tables.latex(_table(tmp_path), tmp_path)
  for environment in re.findall(
    r'\\begin{tabular}{(\w+)}(.*?)\\end{tabular}', tex, re.DOTALL
  ):
    columns, body = environment
    rules = [r'\toprule', r'\midrule', r'\bottomrule']
    assert [body.count(rule) for rule in rules] == [1, 1, 1]
    for line in body.splitlines():
      if line.endswith(r'\\'):
        spans = sum(int(n) - 1 for n in re.findall(r'multicolumn{(\d)}', line))
        assert line.count('&') + spans == len(columns) - 1
  assert r'\cmidrule(lr){4-5}\cmidrule(lr){6-7}' in tex
  assert r'1\textsuperscript{\dag}' in tex and r'$\pm$' in tex
  assert re.search(r'& \$-\$0\.\d+ \$\\pm\$', tex)  # a true minus sign
  assert tex.count('{') == tex.count('}') and '±' not in tex


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


@pytest.mark.parametrize(
  'numbers, want',
  [
    ((0.3754, 0.3704, 0.3804), '0.375 ± 0.005'),
    ((0.3754, 0.37532, 0.37548), '0.37540 ± 0.00008'),
    ((0.6931, 0.6931, 0.6931), '0.693'),
    ((0.6931, None, None), '0.693'),
    ((0.6931, math.nan, math.nan), '0.693'),
    ((1234.56, 1230.0, 1239.12), '1234.6 ± 4.6'),
    ((math.nan, math.nan, math.nan), 'nan'),
    ((-0.02, -0.05, 0.01), '-0.020 ± 0.030'),
  ],
)
def test_digits_follow_the_interval(numbers, want):
  assert tables._plus_minus(*numbers) == want


def test_the_notes_say_what_the_intervals_cover(make_scored_run, tmp_path):
  alone = make_scored_run('a/0', margins=_margins())
  text = tables.markdown(_table(alone), '/')
  assert 'neither covers the seed' in text and 'Differences' not in text
  for seed in range(2):
    for name in ('adamw', 'lion'):
      changes = {'optim.name': name, 'seed': seed}
      make_scored_run(f'b/{name}{seed}', changes, margins=_margins() + seed)
  text = tables.markdown(_table(tmp_path / 'b'), '/')
  assert 'it does not cover other evaluation prompts' in text
  assert 'Differences of rows with several seeds' in text
  assert 'with a row of one seed' not in text


def test_the_sign_of_kl_is_explained_where_there_is_one(
  make_scored_run, make_run
):
  table = _table(make_scored_run('a', margins=_margins()))
  # The fixture's policy made both answers of a positive margin more likely.
  assert table.rows[0].cells['KL', 'after'].value < 0
  for text in (tables.markdown(table, '/'), tables.latex(table, '/')):
    assert 'negative if the policy made them more likely' in text
  lines = [{'step': 1, 'split': 'eval', 'loss': 0.4}]
  table = _table(make_run('b', lines=lines))
  assert 'KL' not in tables.markdown(table, '/')
