"""LaTeX: floats that fit, what is escaped, and a real TeX that is content."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from dpo_jax.results import cells, collect, latex, options, sheet

DOCUMENT = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs}
\usepackage{rotating}
\hfuzz=1pt
\begin{document}
Tables \ref{tab:results} and \ref{tab:results-differences}.
\input{results}
\end{document}
"""


def _table(*paths, **chosen) -> cells.Table:
  return cells.make_table(collect.collect(paths), options.Options(**chosen))


def _sheet(num_rows=9, num_columns=4, label='0.1', **number) -> sheet.Sheet:
  entry = sheet.Number(**({'mean': '0.652', 'half': '0.013'} | number))
  row = (label, *[entry] * num_columns)
  heads = ('beta', *[f'metric {index}' for index in range(num_columns)])
  return sheet.Sheet(heads, (row,) * num_rows, 1)


def _places(content, width='') -> list[str]:
  table = cells.Table((), (), (), (), (), options.Options(width=width))
  lines = latex._floats(table, content, 'a', 'Caption.', ['A note.'])
  return re.findall(r'\\begin\{(\w+\*?)\}\n', '\n'.join(lines))


@pytest.mark.parametrize(
  'columns, rows, width, places',
  [
    (2, 9, '', ['table']),
    (5, 9, '', ['table*']),
    (8, 9, '', ['sidewaystable*']),
    (24, 9, '', ['table*'] * 4),  # no place holds it: by columns
    (2, 60, '', ['table'] * 2),  # by rows
    (5, 60, '', ['table*'] * 2),
    (5, 9, 'column', ['table'] * 2),
    (2, 9, 'text', ['table*']),
  ],
)
def test_a_table_goes_into_the_narrowest_place(columns, rows, width, places):
  assert _places(_sheet(rows, columns), width) == places


def test_parts_hold_every_cell_and_repeat_the_labels():
  content = sheet.Sheet(
    ('beta', *(f'm{index}' for index in range(24))),
    tuple(
      (f'b{row}', *(sheet.Number(f'{row}.{i:03}', '0.01') for i in range(24)))
      for row in range(60)
    ),
    1,
  )
  table = cells.Table((), (), (), (), ())
  _, _, parts = latex._fit(table, content, 'A note.')
  seen = [
    (row[0], str(entry))
    for part in parts
    for row in part.rows
    for entry in row[1:]
  ]
  want = [(row[0], str(entry)) for row in content.rows for entry in row[1:]]
  assert sorted(seen) == sorted(want)
  for part in parts:
    assert latex._width(part, latex.SIZES[1]) <= latex.TEXT.width


def test_labels_cannot_break_a_table(make_run, tmp_path):
  make_run('a', {'data.train': 'x|y_50%&#{}~^$\\<z>', 'loss.beta': -0.5})
  make_run('b', {'data.train': 'two\nlines', 'loss.beta': 5e-7})
  tex = latex.latex(_table(tmp_path))
  assert (
    r'x$|$y\_50\%\&\#\{\}\textasciitilde{}\textasciicircum{}\$'
    r'$\backslash$$<$z$>$' in tex
  )
  (line,) = [line for line in tex.splitlines() if 'y\\_50' in line]
  assert len(re.findall(r'(?<!\\)&', line)) == 3
  assert '$-0.5$' in tex and r'$5 \times 10^{-7}$' in tex
  assert latex._text('é 語') == 'é ?'  # no font of a plain LaTeX has it


def test_numbers_and_marks_are_maths(make_scored_run, tmp_path):
  gap = np.random.default_rng(1).normal(3, 4, 200)
  for seed in range(2):
    for name, shift in (('adamw', 0), ('lion', 4)):
      make_scored_run(
        f'{name}{seed}',
        {'optim.name': name, 'seed': seed},
        margins=gap + shift + seed / 10,
        done=name == 'lion',
      )
  tex = latex.latex(_table(tmp_path))
  assert r'\mathbf{0.9' in tex and r'\mathbf{0.7' not in tex
  assert re.search(r'& \$-\d\.\d+ \\pm ', tex)  # KL, with a true minus sign
  assert r'2$^\dagger$' in tex and '±' not in tex
  assert tex.count('{') == tex.count('}')
  for columns, body in re.findall(
    r'begin{tabular}{@{}(\w+)@{}}(.*?)\\end{tabular}', tex, re.DOTALL
  ):
    rules = [r'\toprule', r'\midrule', r'\bottomrule']
    assert [body.count(rule) for rule in rules] == [1, 1, 1]
    lines = [line for line in body.splitlines() if line.endswith(r'\\')]
    assert {line.count('&') for line in lines} == {len(columns) - 1}


def test_blocks_of_one_loss_are_apart_and_packages_are_named(
  make_run, tmp_path
):
  for loss in ('sigmoid', 'ipo'):
    for beta in (0.1, 0.5):
      changes = {'loss.terms': {loss: 1.0}, 'loss.beta': beta}
      make_run(f'{loss}{beta}', changes, final=beta)
  tex = latex.latex(_table(tmp_path), 'mine')
  assert tex.count(r'\addlinespace') == 1
  assert r'Loss & $\beta$ &' in tex and r'\label{tab:mine}' in tex
  assert r'% needs \usepackage{booktabs}' in tex and 'rotating' not in tex
  tex = latex.latex(_table(tmp_path, transpose=True))
  assert tex.count(r'\midrule') == 2  # after the heads and after the labels
  assert tex == latex.latex(_table(tmp_path, transpose=True))


def _sweep(make_scored_run, groups: int, seeds: int = 5):
  """Runs of `groups` settings, most of them betas of three losses."""
  for group in range(groups):
    changes = {
      'loss.terms': {('sigmoid', 'ipo', 'hinge')[group % 3]: 1.0},
      'loss.beta': 0.01 * (1 + group // 3),
    }
    for seed in range(seeds):
      gap = np.random.default_rng(seed).normal(1 + group % 7, 4, 64)
      make_scored_run(
        f'{group:02}-{seed}', {**changes, 'seed': seed}, margins=gap
      )


def _compile(tex: str, folder) -> str:
  """The log of pdflatex, after two passes."""
  (folder / 'results.tex').write_text(tex)
  (folder / 'paper.tex').write_text(DOCUMENT)
  command = ['pdflatex', '-interaction=nonstopmode', '-halt-on-error', 'paper']
  for _ in range(2):
    done = subprocess.run(
      command, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]
  return (folder / 'paper.log').read_text(errors='replace')


REAL = pytest.mark.skipif(
  not (os.environ.get('DPO_JAX_REAL_PARTS') and shutil.which('pdflatex')),
  reason='set DPO_JAX_REAL_PARTS=1 where pdflatex, booktabs and rotating are',
)


@REAL
@pytest.mark.parametrize('groups, seeds', [(9, 1), (12, 5), (24, 2), (60, 1)])
@pytest.mark.parametrize('width', ['', 'column', 'text'])
def test_a_paper_takes_it_as_it_is(
  make_scored_run, tmp_path, groups, seeds, width
):
  runs = tmp_path / 'runs'
  runs.mkdir()
  _sweep(
    lambda name, *a, **k: make_scored_run(f'runs/{name}', *a, **k),
    groups,
    seeds,
  )
  log = _compile(latex.latex(_table(runs, width=width)), tmp_path)
  problems = re.findall(r'.*(?:Overfull|Underfull|Warning|too large).*', log)
  assert not problems, problems


@REAL
@pytest.mark.parametrize('columns, rows', [(2, 60), (9, 60), (30, 9), (4, 9)])
def test_sheets_of_all_sizes_compile(tmp_path, columns, rows):
  table = cells.Table((), (), (), (), ())
  label = '/a/long/path/of/a_data_set/with-no-space-in-it.jsonl.gz'
  lines = []
  for name, content in (
    ('results', _sheet(rows, columns, bold=True)),
    ('results-differences', _sheet(rows, columns, label, mean='-0.652')),
  ):
    lines += latex._floats(table, content, name, 'Caption.', ['A note.'] * 30)
  log = _compile('\n'.join(lines), tmp_path)
  problems = re.findall(r'.*(?:Overfull|Underfull|Warning|too large).*', log)
  assert not problems, problems
