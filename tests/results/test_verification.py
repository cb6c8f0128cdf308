"""--verify: an edit by hand of any file of a report is named."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from dpo_jax.results import __main__ as command
from dpo_jax.storage import caches


@pytest.fixture
def report(make_scored_run, tmp_path, capsys, no_drawing, monkeypatch):
  """A folder with tables, numbers of figures and a page; its runs beside it."""
  monkeypatch.setenv(caches.FOLDER, str(tmp_path / 'user'))
  for seed in (0, 1):
    for beta in (0.1, 0.4):
      make_scored_run(
        f'sweep/{beta},{seed}',
        {'loss.beta': beta, 'seed': seed},
        margins=np.random.default_rng(seed).normal(2, 3, 32),
        beta=beta,
      )
  names = [f'{beta},{seed}' for beta in (0.1, 0.4) for seed in (0, 1)]
  points = {'points': [{'name': name} for name in [*names, 'later']]}
  (tmp_path / 'sweep' / 'sweep.json').write_text(json.dumps(points))
  out = tmp_path / 'out'
  arguments = [str(tmp_path / 'sweep'), f'--out={out}', '--html']
  assert command.main([*arguments, '--figures=curves,margins']) == 0
  capsys.readouterr()
  return out


def _verify(folder, capsys) -> tuple[int, str]:
  code = command.main(['--verify', str(folder)])
  return code, capsys.readouterr().out


def _edit(path, old: str, new: str) -> None:
  text = path.read_text()
  edited = re.sub(old, new, text, count=1)
  assert edited != text
  path.write_text(edited)


# File, what is edited, what --verify says besides the file's name.
EDITS = [
  # The accuracy of the first row.
  ('results.md', r'(\n\| 0\.1 +\| +)0', r'\g<1>9', "row '0.1' reads '9."),
  ('results.tex', r'(\n\$0\.1\$ & \$)0', r'\g<1>9', "reads '$9."),
  # log 2, the loss before training.
  ('results.csv', r'0\.693', '0.793', "row '0.1' reads '0.793"),
  # The last number of a list of plotted ones.
  ('figures.json', r'(\d\.\d+)(\n\s*\])', r'\g<1>5\2', 'reads '),
  (
    'index.html',
    r'(cell &#x27;margin after&#x27;" data-v=")[\d.]+',
    r'\g<1>9',
    "Results: row 'beta=0.1', cell 'margin after' reads 'td data-v=9', its "
    "runs give 'td data-v=",
  ),
  (
    'index.html',
    r'(cell &#x27;accuracy after&#x27;".*?>)0\.\d\d',
    r'\g<1>0.99',
    "Results: row 'beta=0.1', cell 'accuracy after' reads '0.99",
  ),
  (
    'index.html',
    r'("difference": ")[\d.-]+',
    r'\g<1>7',
    "data-cells: Differences on the same evaluation comparisons: row 'beta=0.4 "
    "minus beta=0.1', cell 'accuracy', numbers, difference reads '7'",
  ),
  (
    'index.html',
    r'("items": \[\n\[\n0,\n)[\d.-]+',
    r'\g<1>-99.5',
    'data-pairs: lists, 0 (../sweep/0.1,0), items, 0, 1 reads -99.5, its runs',
  ),
  ('index.html', r'5 points: 4 done', '5 points: 5 done', '5 points: 4 done'),
  ('index.html', r' tbody ', ' body ', 'not the file that was written'),
]


@pytest.mark.parametrize('with_digest', [False, True])
@pytest.mark.parametrize('name, old, new, said', EDITS)
def test_an_edited_number_is_named(
  report, capsys, name, old, new, said, with_digest
):
  path = report / name
  if said.startswith('not the file'):
    # Code of the page is no number: only the digest tells.
    path.write_bytes(path.read_bytes() + b'\n')
    if with_digest:
      return
  else:
    _edit(path, old, new)
  if with_digest:
    # Whoever edits a number may edit its digest too: the runs still tell. The
    # status of a sweep is no number of a run, and moves on.
    document = json.loads((report / 'provenance.json').read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    document['files'][name] = digest
    (report / 'provenance.json').write_text(json.dumps(document))
    if 'points' in said:
      assert _verify(report, capsys)[0] == 0
      return
  code, out = _verify(report, capsys)
  assert code == 1 and 'Traceback' not in out
  assert any(str(path) in line and said in line for line in out.splitlines()), (
    out
  )
  assert out.count('\n') <= 4


@pytest.mark.parametrize('name', ['curves.pdf', 'margins_wide.png'])
def test_other_bytes_of_a_figure_are_named(report, capsys, name):
  path = report / 'figures' / name
  path.write_bytes(b'other')
  code, out = _verify(report, capsys)
  assert code == 1 and f'{path}: not the file that was written' in out
  path.unlink()
  assert _verify(report, capsys)[0] == 1


@pytest.mark.parametrize('name', ['figures.json', 'index.html'])
def test_a_missing_or_broken_file_is_named(report, capsys, name):
  path = report / name
  path.write_bytes(b'\xff{"a":')
  code, out = _verify(report, capsys)
  assert code == 1 and str(path) in out and 'Traceback' not in out
  path.unlink()
  code, out = _verify(report, capsys)
  assert code == 1 and f'{path}: no such file' in out


def test_a_report_follows_after_it_moved_and_after_the_sweep_went_on(
  report, capsys, make_run
):
  assert _verify(report, capsys)[0] == 0
  make_run('sweep/later', {'loss.beta': 3.0})
  assert _verify(report, capsys) == (
    0,
    f'{report}: every cell follows from its runs\n',
  )
  new = report.parent / 'elsewhere'
  new.mkdir()
  for name in ('sweep', 'out'):
    shutil.move(report.parent / name, new / name)
  assert _verify(new / 'out', capsys)[0] == 0


def test_the_options_are_kept_and_used_again(report, capsys):
  document = json.loads((report / 'provenance.json').read_bytes())
  assert document['options']['html'] is True
  assert document['options']['figures'] == ['curves', 'margins']
  document['options']['html'] = False
  (report / 'provenance.json').write_text(json.dumps(document))
  # The page is then a file like a figure: its digest is compared.
  assert _verify(report, capsys)[0] == 0
  document['options']['htm'] = True
  (report / 'provenance.json').write_text(json.dumps(document))
  assert command.main(['--verify', str(report)]) == 2
  assert 'options.htm: no such option' in capsys.readouterr().err


def test_a_changed_run_is_named_before_all_that_follows(report, capsys):
  run = report.parent / 'sweep' / '0.1,0'
  _edit(run / 'metrics.jsonl', r'"loss": 0\.69\d+', '"loss": 0.7')
  code, out = _verify(report, capsys)
  assert code == 1
  assert 'run ../sweep/0.1,0 changed: metrics.jsonl' in out
  assert 'index.html' not in out
