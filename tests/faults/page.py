"""docs/reliability.md: one row per line of the scorecard, as it last ran.

Comes in: the counts of a line. Goes out: the page, with the rows of the other
lines as they were.
"""

import datetime
import functools
import os
import platform
import re
import subprocess
from typing import NamedTuple

import machine
import table

PAGE = machine.ROOT / 'docs' / 'reliability.md'
HEAD = """# Reliability

What a run survives, as a program checks it: it starts real processes, hurts
them, and compares what they leave with a run that was left alone, bit for bit
where nothing else is said.

```bash
python -m tests.faults            # small figures, as in the suite
python -m tests.faults --full     # the full ones: hours
python -m tests.faults --full --only=R3 --page
python -m tests.faults --breaks   # each deliberate break must turn its line red
```

Each row is written by its last run with `--page`. A violation is a fault after
which the claim does not hold. Beside it is the change of the code that
`--breaks` makes on a copy: it has to be found.

| line | claim | figure | faults | violations | commit | seed | when | CPU-s |
|---|---|---|---|---|---|---|---|---|
"""
BREAKS = """
## Deliberate breaks

| line | break | with it |
|---|---|---|
"""
NOTES = """
## Notes

"""


class Result(NamedTuple):
  """What a run of a line counted."""

  name: str
  faults: int
  violations: list[str]
  notes: list[str]
  seed: int
  wall: float  # seconds
  cpu: float  # seconds


def write(result: Result, is_full: bool) -> None:
  """Replaces the row and the notes of a line."""
  rows, broken, notes = _read()
  name = result.name
  size = 'full' if is_full else 'small'
  if is_full and any('--minutes' in text for text in result.notes):
    size = 'part of full'
  rows[name] = [
    *(name, table.LINES[name].claim, size, f'{result.faults:,}'),
    *(str(len(result.violations)), commit(), str(result.seed)),
    *(f'{datetime.date.today()}, {_machine()}', f'{result.cpu:,.0f}'),
  ]
  said = [*result.notes, *(f'VIOLATION {v}' for v in result.violations[:5])]
  notes[name] = [' '.join(_without_folders(x).split())[:240] for x in said]
  _write(rows, broken, notes)


def write_break(name: str, what: str, outcome: str) -> None:
  """Replaces the row of a deliberate break."""
  rows, broken, notes = _read()
  broken[name, what] = [name, what, _without_folders(outcome)]
  _write(rows, broken, notes)


def _without_folders(text: str) -> str:
  """Returns a text that names no folder of the machine, but those of tests."""
  return re.sub(r'(?<![\w.])/[\w./-]*/', '', text)


def _read():
  """({line: cells}, {(line, break): cells}, {line: notes}) of the page."""
  text = PAGE.read_text() if PAGE.exists() else HEAD + BREAKS + NOTES
  top, _, rest = text.partition(BREAKS)
  middle, _, bottom = rest.partition(NOTES)

  def cells(part):
    lines = re.findall(r'^\| R\d+ \|.*$', part, re.M)
    return [[c.strip() for c in x.strip('|').split(' | ')] for x in lines]

  notes = {}
  for name, note in re.findall(r'^- (R\d+): (.*)$', bottom, re.M):
    notes.setdefault(name, []).append(note)
  rows = {row[0]: row for row in cells(top)}
  return rows, {(row[0], row[1]): row for row in cells(middle)}, notes


def _write(rows, broken, notes) -> None:
  """Writes the page, in the order of the lines."""

  def lines(found):
    return ''.join(
      f'| {" | ".join(row)} |\n'
      for name in table.LINES
      for row in found
      if row[0] == name
    )

  said = ''.join(
    f'- {name}: {note}\n'
    for name in table.LINES
    for note in notes.get(name, ())
  )
  missing = [name for name in table.LINES if name not in rows]
  if missing:
    said += f'- Not run: {", ".join(missing)}.\n'
  PAGE.write_text(
    HEAD + lines(rows.values()) + BREAKS + lines(broken.values()) + NOTES + said
  )


@functools.cache
def commit() -> str:
  """The commit, with a + if the tree is another one; asked at the start."""
  git = ['git', '-C', str(machine.ROOT)]
  head = subprocess.run(
    [*git, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True
  ).stdout.strip()
  changed = subprocess.run(
    [*git, 'status', '--porcelain', 'dpo_jax'], capture_output=True, text=True
  ).stdout.strip()
  return head + ('+' if changed else '')


def _machine() -> str:
  """The kind of this machine, not its name."""
  return f'{os.cpu_count()} cores {platform.machine()}, CPU'
