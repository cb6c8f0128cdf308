"""Helpers of tests/run: a run is stopped, one thing changes, it starts again.

A run is made once and copied for every trial. Its steps after `at` are removed,
so that the second start has an update to make.
"""

import contextlib
import io
import json
import pathlib
import shutil
from typing import NamedTuple

from commands import CONFIG

from dpo_jax import main as main_lib

SAVED = '--config.train.save_every=1', '--config.train.keep_checkpoints=9'


class Outcome(NamedTuple):
  """The end of a command."""

  code: int
  out: str
  error: str


class Trial(NamedTuple):
  """A run, and the flags with which it was started."""

  run: pathlib.Path
  flags: tuple[str, ...] = ()

  def copy(self, folder: pathlib.Path, at: int = 1) -> 'Trial':
    """The run as it was after step `at`, in another folder."""
    shutil.copytree(self.run, folder)
    (folder / 'DONE').unlink()
    for path in (folder / 'checkpoints').iterdir():
      if path.name.isdigit() and int(path.name) > at:
        shutil.rmtree(path)
    return self._replace(run=folder)

  def start(self, *flags: str) -> Outcome:
    """Starts the run, or starts it again."""
    out, error = io.StringIO(), io.StringIO()
    command = [CONFIG, *SAVED, f'--workdir={self.run}', *self.flags, *flags]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
      code = main_lib.main(command)
    return Outcome(code, out.getvalue(), error.getvalue())

  def begin(self) -> 'Trial':
    """Starts a run that has to succeed."""
    outcome = self.start()
    assert outcome.code == 0, outcome.error
    return self

  def refused(self, *flags: str) -> str:
    """Starts again; returns one line of refusal, which changed nothing."""
    before = contents(self.run)
    code, _, error = self.start(*flags)
    assert code == 2 and error.count('\n') == 1 and 'fix: ' in error, error
    assert contents(self.run) == before
    return error

  def goes_on(self, *flags: str) -> str:
    """Starts again; returns what is said of a run that ends well."""
    code, out, error = self.start(*flags)
    assert code == 0 and not error, error
    assert (self.run / 'DONE').exists()
    return out


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
  """All files of a folder."""
  return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@contextlib.contextmanager
def put_back(path: pathlib.Path):
  """Puts a file back as it was, once a trial of it is over."""
  before = path.read_bytes() if path.exists() else None
  try:
    yield
  finally:
    path.unlink()
    if before is not None:
      path.write_bytes(before)


def edit(path: pathlib.Path, change) -> None:
  """Changes the values of a JSON file in place."""
  values = json.loads(path.read_text())
  change(values)
  path.write_text(json.dumps(values))


def flip(path: pathlib.Path) -> None:
  """Flips a bit in the middle of a file."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def turn(values) -> None:
  """Gives the values of a model's config.json another rope_theta."""
  for section in (values, values.get('rope_parameters') or {}):
    if 'rope_theta' in section:
      section['rope_theta'] = 50.0
