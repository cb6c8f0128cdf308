"""The scorecard: its breaks still apply, its lines run as real processes.

DPO_JAX_REAL_PARTS=1 runs the small figure of every line, minutes of CPU; else
one line runs, as what R1 to R8 claim is tested where their code is: SIGKILL in
test_train.py and storage/test_checkpoints.py, processes in run/test_processes,
numbers in run/test_bad_steps.py.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'faults'))

import breaks  # noqa: E402
import page  # noqa: E402
import suites  # noqa: E402
import table  # noqa: E402


def test_there_are_fifteen_lines_and_each_has_its_break():
  assert list(table.LINES) == [f'R{i}' for i in range(1, 16)]
  assert breaks.BREAKS.keys() == table.LINES.keys()


@pytest.mark.parametrize('name, change', breaks.of(table.LINES))
def test_a_break_changes_the_code_once(name, change, tmp_path):
  assert name in table.LINES
  for test in change.tests:
    assert (ROOT / test.partition('::')[0]).is_file()
  path = tmp_path / change.path
  path.parent.mkdir(parents=True)
  before = (ROOT / change.path).read_text()
  path.write_text(before)
  breaks.apply(change, tmp_path)
  assert path.read_text() != before
  compile(path.read_text(), change.path, 'exec')


@pytest.mark.parametrize('name', suites.TESTS)
def test_the_tests_of_a_line_are_there(name):
  for node in suites.TESTS[name]:
    path, _, test = node.partition('::')
    assert f'def {test or "test_"}' in (ROOT / path).read_text(), node


def test_a_page_keeps_the_rows_of_other_lines(tmp_path, monkeypatch):
  monkeypatch.setattr(page, 'PAGE', tmp_path / 'page.md')
  result = page.Result('R1', 29, [], ['x'], 0, 1.0, 2.0)
  page.write(result, False)
  page.write(result._replace(name='R6', violations=['a | b']), True)
  page.write_break('R6', 'a break', 'GREEN')
  page.write_break('R6', 'a break', 'red: a/b.py in /top/of/c.py')
  page.write_break('R6', 'another', 'red')
  page.write(result._replace(faults=5000), False)
  text = page.PAGE.read_text()
  assert text.count('| R1 |') == 1 and '| 5,000 | 0 |' in text
  assert (
    '| R6 | a break | red: a/b.py in c.py |' in text and 'VIOLATION' in text
  )
  assert '| R6 | corruption | full |' in text
  assert '| R6 | another | red |' in text and 'GREEN' not in text
  assert 'Not run: R2, R3' in text


@pytest.mark.parametrize('name', table.LINES)
def test_a_line_has_no_violation(name, tmp_path):
  if name != 'R12' and os.environ.get('DPO_JAX_REAL_PARTS') != '1':
    pytest.skip('minutes of real processes: set DPO_JAX_REAL_PARTS=1')
  path = tmp_path / 'counts.json'
  command = [sys.executable, '-m', 'tests.faults', f'--only={name}']
  done = subprocess.run(
    [*command, f'--json={path}'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  counts = json.loads(path.read_text())[name]
  assert counts['faults'] > 0 or name in suites.TESTS
