"""The command: its files, its flags, its exit codes."""

import os
import pathlib
import subprocess
import sys

import pytest

from dpo_jax.results import __main__ as command


def test_the_files_and_stdout(paper, tmp_path, capsys, file_names):
  assert {path.name for path in paper.iterdir()} == file_names
  before = {name: (paper / name).read_bytes() for name in file_names}
  assert command.main([str(tmp_path / 'runs'), '--out', str(paper)]) == 0
  captured = capsys.readouterr()
  assert captured.out.encode() == before['results.md']
  assert '4 runs read' in captured.err
  assert before == {name: (paper / name).read_bytes() for name in file_names}


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


@pytest.mark.usefixtures('no_drawing')
def test_an_out_that_cannot_be_written_is_2(make_run, tmp_path, capsys):
  run, file = make_run('a'), tmp_path / 'file'
  file.write_text('')
  for out in (file, file / 'below'):
    assert command.main([str(run), f'--out={out}']) == 2
    err = capsys.readouterr().err
    assert f'{out} is not writable' in err and err.count('\n') == 1


def test_as_a_user_runs_it(make_run, tmp_path, file_names):
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
  assert {path.name for path in (tmp_path / 'out').iterdir()} == file_names
