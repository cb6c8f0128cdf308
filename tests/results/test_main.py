"""The command: its files, its exit codes, and --verify against tampering."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dpo_jax.results import __main__ as command
from dpo_jax.results import plots, provenance

FILES = {
  'results.md',
  'results.tex',
  'results.csv',
  'curves.pdf',
  'curves.png',
  'provenance.json',
}


@pytest.fixture
def no_drawing(monkeypatch):
  """A figure takes a second; test_plots.py and the last test here draw."""
  files = {'curves.pdf': b'%PDF', 'curves.png': b'PNG'}
  monkeypatch.setattr(plots, 'curves', lambda table: dict(files))


@pytest.fixture
def paper(make_scored_run, tmp_path, capsys, no_drawing):
  """A folder of tables over two rows of two seeds; its runs beside it."""
  for beta in (0.1, 0.4):
    for seed in (0, 1):
      make_scored_run(
        f'runs/{beta},{seed}',
        {'loss.beta': beta, 'seed': seed},
        margins=np.random.default_rng(seed).normal(2, 3, 32),
        beta=beta,
      )
  out = tmp_path / 'paper'
  assert command.main([str(tmp_path / 'runs'), f'--out={out}']) == 0
  capsys.readouterr()
  return out


def _verify(folder, capsys) -> tuple[int, str]:
  code = command.main(['--verify', str(folder)])
  return code, capsys.readouterr().out


def test_the_files_and_stdout(paper, tmp_path, capsys):
  assert {path.name for path in paper.iterdir()} == FILES
  before = {name: (paper / name).read_bytes() for name in FILES}
  assert command.main([str(tmp_path / 'runs'), '--out', str(paper)]) == 0
  captured = capsys.readouterr()
  assert captured.out.encode() == before['results.md']
  assert '4 runs read' in captured.err
  assert before == {name: (paper / name).read_bytes() for name in FILES}


def test_provenance_names_what_is_behind_each_row(paper, tmp_path):
  document = json.loads((paper / 'provenance.json').read_bytes())
  first, second = document['rows']
  assert first['runs'] == ['../runs/0.1,0', '../runs/0.1,1']
  assert second['label'] == {'loss.beta': '0.4'}
  for run in document['runs']:
    for name, digest in run['sha256'].items():
      data = (paper / run['run'] / name).read_bytes()
      assert provenance._digest(data) == digest
  assert set(document['files']) == FILES - {'provenance.json'}
  with open(paper / 'results.csv', newline='') as file:
    row = list(csv.DictReader(file))[1]
  assert float(row['loss_after']) == second['cells']['loss after']['value']


def test_verify_passes_on_what_was_written(paper, capsys):
  assert _verify(paper, capsys) == (
    0,
    f'{paper}: every cell follows from its runs\n',
  )


def test_verify_passes_after_runs_and_tables_moved_together(paper, capsys):
  new = paper.parent / 'elsewhere'
  new.mkdir()
  shutil.move(paper.parent / 'runs', new / 'runs')
  shutil.move(paper, new / 'paper')
  assert _verify(new / 'paper', capsys)[0] == 0


def test_verify_names_the_cells_of_a_changed_run(paper, capsys):
  metrics = paper.parent / 'runs' / '0.4,1' / 'metrics.jsonl'
  lines = metrics.read_text().splitlines()
  last = json.loads(lines[-1])
  last['loss'] += 0.01
  metrics.write_text('\n'.join([*lines[:-1], json.dumps(last), '']))
  code, out = _verify(paper, capsys)
  assert code == 1
  assert "row 'beta=0.4': run ../runs/0.4,1 changed: metrics.jsonl" in out
  assert "row 'beta=0.4', cell 'loss after': the table has value" in out
  assert "'accuracy after'" not in out and "row 'beta=0.1'" not in out


def test_verify_names_rows_whose_run_is_gone(paper, capsys):
  shutil.move(paper.parent / 'runs' / '0.1,1', paper.parent / 'away')
  code, out = _verify(paper, capsys)
  assert code == 1
  assert "row 'beta=0.1', all cells: run" in out and 'is not there' in out
  assert 'beta=0.4' not in out


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda run: (run / 'DONE').unlink(), 'changed: DONE'),
    (
      lambda run: (run / 'per_example' / 'eval_10.npz').unlink(),
      'changed: per_example/eval_10.npz',
    ),
    (
      lambda run: (run / 'metrics.jsonl').write_text('{"step": 0\n'),
      'metrics.jsonl:1: not JSON',
    ),
    (
      lambda run: (run / 'config.json').write_text('{"seed": 5}'),
      'changed: config.json',
    ),
    (
      lambda run: (run / 'metrics.jsonl').unlink(),
      'changed: metrics.jsonl',
    ),
  ],
)
def test_verify_notices_any_change_of_a_run(paper, capsys, change, message):
  change(paper.parent / 'runs' / '0.1,0')
  code, out = _verify(paper, capsys)
  assert code == 1 and message in out and 'Traceback' not in out


def test_verify_notices_an_edited_table(paper, capsys):
  for name in ('results.md', 'results.tex', 'results.csv'):
    path = paper / name
    whole = path.read_text()
    lines = whole.splitlines()
    index = next(i for i, line in enumerate(lines) if line.count('0.4') > 0)
    edited = lines[index].replace('0.4', '0.5', 1)
    path.write_text(
      '\n'.join([*lines[:index], edited, *lines[index + 1 :], ''])
    )
    code, out = _verify(paper, capsys)
    assert code == 1 and f'{path}:{index + 1}: row ' in out
    path.write_text(whole)
  assert _verify(paper, capsys)[0] == 0


def test_verify_notices_an_edited_provenance_and_foreign_figures(paper, capsys):
  path = paper / 'provenance.json'
  document = json.loads(path.read_bytes())
  document['rows'][0]['cells']['margin after']['high'] += 1
  path.write_text(json.dumps(document))
  code, out = _verify(paper, capsys)
  assert code == 1 and "row 'beta=0.1', cell 'margin after'" in out
  document['rows'][0]['cells']['margin after']['high'] -= 1
  path.write_text(json.dumps(document))
  (paper / 'curves.png').write_bytes(b'another picture')
  (paper / 'curves.pdf').unlink()
  code, out = _verify(paper, capsys)
  assert code == 1 and out.count('not the file that was written') == 2


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], 'no runs given'),
    (['runs'], '--out is missing'),
    (['--out=x'], 'no runs given'),
    (['--verify', 'paper', 'runs'], '--verify takes one folder'),
    (['--verify', 'paper', '--out=x'], '--verify takes one folder'),
    (['--verify', 'nowhere'], 'nowhere/provenance.json: no such file'),
    (['--bogus'], 'unrecognized arguments: --bogus'),
    (['nowhere', '--out=x'], 'nowhere: no such folder'),
    (['.', '--out=x'], '.: no runs found'),
  ],
)
def test_bad_arguments_are_one_line_and_2(
  tmp_path, monkeypatch, capsys, arguments, message
):
  monkeypatch.chdir(tmp_path)
  assert command.main(arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  assert message in captured.err and captured.err.count('\n') == 1
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'text', ['', '{}', '[]', '{"version": 9}', '{"version": 1, "rows": [1]}']
)
def test_a_foreign_provenance_is_2(tmp_path, capsys, text):
  (tmp_path / 'provenance.json').write_text(text)
  assert command.main(['--verify', str(tmp_path)]) == 2
  assert capsys.readouterr().err.count('; fix: make the tables again\n') == 1


@pytest.mark.usefixtures('no_drawing')
def test_an_out_that_cannot_be_written_is_2(make_run, tmp_path, capsys):
  run, file = make_run('a'), tmp_path / 'file'
  file.write_text('')
  for out in (file, file / 'below'):
    assert command.main([str(run), f'--out={out}']) == 2
    err = capsys.readouterr().err
    assert f'{out} is not writable' in err and err.count('\n') == 1


def test_nothing_is_left_of_a_write_that_failed(
  make_run, tmp_path, monkeypatch, capsys, no_drawing
):
  run, out = make_run('a'), tmp_path / 'out'
  write_bytes = pathlib.Path.write_bytes

  def full_disk(path, data):
    if path.name == 'curves.png':
      raise OSError(28, 'No space left on device')
    return write_bytes(path, data)

  monkeypatch.setattr(pathlib.Path, 'write_bytes', full_disk)
  assert command.main([str(run), f'--out={out}']) == 2
  assert 'No space left on device' in capsys.readouterr().err
  assert not out.exists()
  monkeypatch.setattr(pathlib.Path, 'write_bytes', write_bytes)
  assert command.main([str(run), f'--out={out}']) == 0
  before = (out / 'results.md').read_bytes()
  monkeypatch.setattr(pathlib.Path, 'write_bytes', full_disk)
  assert command.main([str(run), f'--out={out}']) == 2
  assert {path.name for path in out.iterdir()} == FILES
  assert (out / 'results.md').read_bytes() == before


def test_as_a_user_runs_it(make_run, tmp_path):
  # no jax; an ASCII terminal; relative paths
  make_run('runs/a')
  code = (
    'import runpy, sys; sys.modules["jax"] = None; '
    'sys.argv = ["results", "runs", "--out=out"]; '
    'runpy.run_module("dpo_jax.results", run_name="__main__")'
  )
  root = pathlib.Path(__file__).resolve().parents[2]
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(root), 'PYTHONIOENCODING': 'ascii'},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('| run |')
  assert {path.name for path in (tmp_path / 'out').iterdir()} == FILES
