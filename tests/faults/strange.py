"""What a hostile artefact is, and the payloads that they share.

Every payload does the same if it is ever run: it makes the file `canary`.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

# Modules of which a pickle that does harm takes its functions.
MODULES = ('os', 'posix', 'nt', 'builtins', 'subprocess', 'shutil', 'sys')


class Artefact(NamedTuple):
  """What a command is given."""

  kind: str
  name: str
  folder: str  # of all its files
  options: dict[str, Any]  # of machine.flags
  trains: bool | None = False  # harmless as nothing of it is run; None = maybe
  says: tuple[str, ...] = ()  # what a run that trains prints
  workdir: str = ''  # that it holds itself


def canary(top: pathlib.Path) -> pathlib.Path:
  """Returns the file that the code of an artefact would make."""
  return top / 'canary'


def code(top: pathlib.Path) -> str:
  """The payload as Python."""
  return f'import os; os.system("touch {canary(top)}")'


class Bomb:
  """What unpickles into the payload."""

  def __init__(self, top: pathlib.Path):
    self.code = code(top)

  def __reduce__(self):
    return exec, (self.code,)


def row(i: int, more: str = '', **changes: Any) -> dict[str, Any]:
  """A comparison of two answers."""
  prompt = [{'role': 'user', 'content': f'What is {i}{more}?'}]
  answers = [{'role': 'assistant', 'content': f'{word} {i}.'} for word in 'an']
  row = {'prompt': prompt, 'chosen': answers[:1], 'rejected': answers[1:]}
  return row | changes


def jsonl(path: pathlib.Path, rows: list) -> pathlib.Path:
  """Writes rows."""
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def change(path: pathlib.Path, **values: Any) -> None:
  """Sets values of a JSON file."""
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pipe(path: pathlib.Path) -> None:
  """Puts a pipe in the place of a file."""
  path.unlink(missing_ok=True)
  os.mkfifo(path)


def link(path: pathlib.Path, target: str) -> None:
  """Puts a link in the place of a file."""
  path.unlink(missing_ok=True)
  path.symlink_to(target)
