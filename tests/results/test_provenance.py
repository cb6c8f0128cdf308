"""Provenance: what is behind each row, and --verify against tampering."""

import csv
import hashlib
import json
import pathlib
import shutil

import pytest

from dpo_jax.results import __main__ as command


def _verify(folder, capsys) -> tuple[int, str]:
  code = command.main(['--verify', str(folder)])
  return code, capsys.readouterr().out


def test_provenance_names_what_is_behind_each_row(paper, file_names):
  document = json.loads((paper / 'provenance.json').read_bytes())
  first, second = document['rows']
  assert first['runs'] == ['../runs/0.1,0', '../runs/0.1,1']
  assert second['label'] == {'loss.beta': '0.4'}
  for run in document['runs']:
    for name, digest in run['sha256'].items():
      data = (paper / run['run'] / name).read_bytes()
      assert hashlib.sha256(data).hexdigest() == digest
  assert set(document['files']) == file_names - {'provenance.json'}
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
      'metrics.jsonl:1: not a line of metrics: not JSON',
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
    text = path.read_text()
    lines = text.splitlines()
    index = next(i for i, line in enumerate(lines) if line.count('0.4') > 0)
    edited = lines[index].replace('0.4', '0.5', 1)
    path.write_text(
      '\n'.join([*lines[:index], edited, *lines[index + 1 :], ''])
    )
    code, out = _verify(paper, capsys)
    assert code == 1 and f'{path}:{index + 1}: row ' in out
    path.write_text(text)
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
  (paper / 'figures/curves.png').write_bytes(b'another picture')
  (paper / 'figures/curves.pdf').unlink()
  code, out = _verify(paper, capsys)
  assert code == 1 and out.count('not the file that was written') == 2


@pytest.mark.parametrize(
  'text',
  [
    '',
    '{}',
    '[]',
    '{"version": 9}',
    '{"version": 2, "rows": [1]}',
    '{"version": 2, "rows": [], "runs": [], "metrics": 3}',
    '{"version": 2, "rows": [], "runs": [], "metrics": [3]}',
  ],
)
def test_a_foreign_provenance_is_2(tmp_path, capsys, text):
  (tmp_path / 'provenance.json').write_text(text)
  assert command.main(['--verify', str(tmp_path)]) == 2
  assert capsys.readouterr().err.count('; fix: make the tables again\n') == 1


def test_nothing_is_left_of_a_write_that_failed(
  make_run, tmp_path, monkeypatch, capsys, no_drawing, file_names, files_in
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
  assert files_in(out) == file_names
  assert (out / 'results.md').read_bytes() == before
