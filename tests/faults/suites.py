"""Lines that tests of the suite prove already: their names, and a run of them.

In the suite they run as what they are; here only their being there is checked.
The full figure runs them again, and counts each as a fault.
"""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence

import machine
from score import Line

TESTS = {
  'R9': (
    'tests/data/sources/test_mutated_rows.py',
    'tests/data/sources/test_files_refusals.py',
    'tests/data/sources/test_arrow.py',
    'tests/data/text/test_mutated_tokenizers.py',
    'tests/storage/test_mutations.py',
  ),
  'R10': (
    'tests/config/test_check.py',
    'tests/config/test_rules.py',
    'tests/test_main.py',
  ),
  'R11': (
    'tests/data/text/test_budget.py',
    'tests/data/text/test_sandbox.py',
    'tests/data/text/test_control_tokens.py',
  ),
  'R13': (
    'tests/run/test_identity.py::test_x64_is_said',
    'tests/run/test_identity.py::test_another_mesh_is_harmless_and_said',
    'tests/run/test_identity_files.py::test_another_arithmetic_is_said',
    'tests/storage/test_environment.py',
  ),
  'R15': (
    'tests/run/test_identity.py',
    'tests/run/test_identity_files.py',
    'tests/run/test_identity_inputs.py',
    'tests/storage/test_checkpoints.py::test_another_state_is_refused_by_leaf',
  ),
}


def of(name: str) -> Callable[[Line], None]:
  """Returns what runs the tests of a line."""
  return lambda line: _run(line, TESTS[name])


def _run(line: Line, nodes: tuple[str, ...]) -> None:
  line.notes.append(f'of the suite: {", ".join(nodes)}')
  for node in nodes:
    path, _, test = node.partition('::')
    text = (machine.ROOT / path).read_text()
    if f'def {test or "test_"}' not in text:
      line.violations.append(f'{node}: there is no such test')
  if line.size == 'small':
    return
  faults, bad = run(nodes, machine.ROOT)
  line.faults += faults
  line.violations += bad


def run(
  nodes: Sequence[str], root: pathlib.Path, first: bool = False
) -> tuple[int, list[str]]:
  """Runs tests of a tree; returns how many ran, and what failed.

  Args:
    nodes: files, or tests of them.
    root: of the tree.
    first: whether the first failure is enough; so is a test that hangs.
  """
  command = [sys.executable, '-m', 'pytest', '-n', '0', *nodes]
  try:
    done = subprocess.run(
      [*command, '-x'] if first else command,
      cwd=root,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      timeout=machine.LIMIT if first else None,
    )
  except subprocess.TimeoutExpired:
    return 1, [f'the tests do not end in {machine.LIMIT} s']
  counts = {
    word: int(number)
    for number, word in re.findall(r'(\d+) (passed|failed|error)', done.stdout)
  }
  bad = re.findall(r'^(?:FAILED|ERROR) (.*)$', done.stdout, re.M)
  if done.returncode and not bad:
    bad = [done.stdout[-400:]]
  return sum(counts.values()), bad
