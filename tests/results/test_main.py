"""The command: its files, its flags, its exit codes."""

import csv
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dpo_jax.results import __main__ as command


def test_the_files_and_stdout(paper, tmp_path, capsys, file_names, files_in):
  assert files_in(paper) == file_names
  before = {name: (paper / name).read_bytes() for name in file_names}
  flags = ['--out', str(paper), '--figures=curves']
  assert command.main([str(tmp_path / 'runs'), *flags]) == 0
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
    (['--verify', 'paper', '--metrics=kl'], '--verify takes one folder'),
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


@pytest.fixture
def own_metric(make_run):
  """Makes runs of a metric that no list in results/ names."""

  def make(name, changes=(), shift=0.0):
    values = np.random.default_rng(1).normal(2 + shift, 1, 32)
    lines = [
      {'step': 0, 'split': 'eval', 'loss': 0.7, 'tail|risk': 0.5},
      {'step': 10, 'split': 'train', 'loss': 0.6, 'grad_norm': 3.0},
      {'step': 10, 'split': 'eval', 'loss': 0.4, 'tail|risk': values.mean()},
    ]
    arrays = {'uid': np.arange(32).astype('S16'), 'tail|risk': values}
    return make_run(name, changes, lines=lines, arrays=arrays)

  return make


@pytest.mark.usefixtures('no_drawing')
def test_any_reported_metric_can_be_shown(own_metric, tmp_path, capsys):
  runs = [own_metric('a'), own_metric('b', {'loss.beta': 1.0}, shift=1.0)]
  out = tmp_path / 'out'
  flags = [f'--out={out}', '--metrics=tail|risk, kl']
  assert command.main([*map(str, runs), *flags]) == 0
  with open(out / 'results.csv', newline='') as file:
    first, second = csv.DictReader(file)
  values = np.random.default_rng(1).normal(2, 1, 32)
  assert float(first['tail|risk_after']) == pytest.approx(values.mean())
  assert first['tail|risk_before'] == '0.5'
  assert float(first['tail|risk_after_se']) == pytest.approx(
    values.std(ddof=1) / np.sqrt(32)
  )
  assert second['tail|risk_after_over'] == 'prompts'
  assert first['KL_after'] == ''  # known, not measured: an empty column
  assert 'loss_after' not in first
  text = (out / 'results.md').read_text()
  assert r'| tail\|risk before |' in text.replace('  ', ' ')
  capsys.readouterr()
  # --verify shows the same metrics again.
  assert command.main([f'--verify={out}']) == 0
  assert 'every cell follows' in capsys.readouterr().out


def test_a_metric_that_only_training_reports_is_a_panel(own_metric, tmp_path):
  flags = [f'--out={tmp_path / "out"}', '--metrics=grad_norm']
  assert command.main([str(own_metric('a')), *flags]) == 0
  text = (tmp_path / 'out' / 'results.md').read_text()
  assert '| grad_norm before | grad_norm after |' in text


@pytest.mark.parametrize('names', ['loss,tail', '', 'loss,,kl', 'KL'])
def test_a_metric_that_no_run_reports_is_2(own_metric, tmp_path, capsys, names):
  out = tmp_path / 'out'
  flags = [f'--out={out}', f'--metrics={names}']
  assert command.main([str(own_metric('a')), *flags]) == 2
  err = capsys.readouterr().err
  assert err.startswith('--metrics: ') and err.count('\n') == 1
  if ',,' in names or not names:
    assert 'has an empty name' in err
  else:
    assert 'no run reports ' in err and 'tail|risk' in err
  assert not out.exists()


def test_as_a_user_runs_it(make_run, tmp_path, file_names, files_in):
  # no jax; an ASCII terminal; relative paths
  lines = [{'step': s, 'split': 'eval', 'loss': 3 - s} for s in (0, 1)]
  make_run('runs/a', lines=lines)  # a figure of one panel is quick
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
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('| run |')
  assert files_in(tmp_path / 'out') == file_names
