"""Cases that were once taken wrong: each does what is right, as docs/cases.md.

tests/cases/AREA.py holds the cases of an area. `python scripts/cases_table.py`
runs them all and writes the page.
"""

import collections
import importlib.util
import inspect
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'cases.md'
_FOLDER = ROOT / 'tests' / 'cases'
_HEAD = """# Cases

Inputs that this project, or another trainer, once took for something else.
`right` is the value that must come out; `ours` is the value that came out when
`python scripts/cases_table.py` ran them. `tests/test_cases.py` runs them again
and fails where the two differ.
"""


def read_cases():
  """The cases of all areas: [(area, Case)]."""
  cases = []
  for path in sorted(_FOLDER.glob('*.py')):
    if path.stem == 'case':
      continue
    name = f'cases.{path.stem}'
    # One module per file, whatever imported it first.
    module = sys.modules.get(name) or _load(name, path)
    cases += [(path.stem, case) for case in module.CASES]
  return cases


def page(cases, ours):
  """The text of docs/cases.md.

  Args:
    cases: as from read_cases.
    ours: what each gave, in order.
  """
  lines = []
  for (_, case), value in zip(cases, ours, strict=True):
    lines.append((case.kind, case.case, case.right, value))
  counts = collections.Counter(kind for kind, *_ in lines)
  right = sum(line[2] == line[3] for line in lines)
  table = [('kind', 'case', 'right', 'ours'), ('---',) * 4, *lines]
  rows = [f'| {" | ".join(map(_cell, line))} |' for line in table]
  count = f'{len(lines)} cases of {len(counts)} kinds, {right} right.'
  return '\n'.join([_HEAD, count, '', *rows, ''])


def _cell(text: str) -> str:
  # Characters that end a cell or begin HTML, except in a code span.
  text = ' '.join(text.split()).replace('|', '\\|')
  parts = text.split('`')
  parts[::2] = [part.replace('<', '\\<') for part in parts[::2]]
  return '`'.join(parts)


def _load(name: str, path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


CASES = read_cases()


@pytest.mark.parametrize(
  'case',
  [case for _, case in CASES],
  ids=[f'{area}-{case.kind}-{case.case}'[:80] for area, case in CASES],
)
def test_a_case_is_right(case, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert case.ours(tmp_path) == case.right


def test_the_page_is_that_of_the_cases():
  # Every case is right, or its own test fails: `ours` is `right`.
  expected = page(CASES, [case.right for _, case in CASES])
  assert PAGE.read_text(encoding='utf-8') == expected, (
    'run python scripts/cases_table.py'
  )


def test_every_case_is_one_and_runs_code():
  named = [(case.kind, case.case) for _, case in CASES]
  twice = [name for name, n in collections.Counter(named).items() if n > 1]
  assert not twice
  for _, case in CASES:
    assert case.kind and case.case and case.right
    # A function of the folder, not a constant.
    needed = [
      parameter
      for parameter in inspect.signature(case.ours).parameters.values()
      if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
      and parameter.default is parameter.empty
    ]
    assert len(needed) == 1


def test_a_wrong_case_is_seen_in_the_page():
  _, case = CASES[0]
  text = page([('x', case)], ['another value'])
  assert '1 cases of 1 kinds, 0 right' in text and 'another value' in text
