"""A checkout of its own, and tools that only note how they were called.

The scripts of the repository lie in a git repository whose path has a space and
a quote. Tools on the PATH are stubs; of the system's only those that a script
may take for granted are there.
"""

import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
SYSTEM = ('bash', 'cat', 'chmod', 'dirname', 'git', 'gzip', 'head', 'mkdir')
SYSTEM += ('mktemp', 'python3', 'rm', 'sed', 'tar', 'touch')
WORKDIR = "--workdir=gs://b/a run's folder; $(false) *"
# Notes its words, one a line, then an empty line.
NOTE = 'for word in "$@"; do echo "$word"; done >>"$NOTES"; echo >>"$NOTES"\n'


class Checkout:
  """A clean commit, and an empty set of stubs.

  Attributes:
    path: of the repository.
    tools: folder on the PATH; `stub` puts programs there.
    scratch: where scripts put temporary files.
  """

  def __init__(self, top: pathlib.Path):
    """Makes the folders in `top`."""
    self.path = top / "a user's checkout"
    self.tools, self.scratch = top / 'tools', top / 'scratch'
    self._notes = top / 'notes'
    for folder in (self.path / 'scripts', self.tools, self.scratch):
      folder.mkdir(parents=True)
    for script in (ROOT / 'scripts').glob('launch_*'):
      shutil.copy(script, self.path / 'scripts')
    shutil.copy(ROOT / 'requirements.txt', self.path)
    (self.path / '.gitignore').write_text('ignored\n')
    for name in SYSTEM:
      (self.tools / name).symlink_to(shutil.which(name))
    for words in (
      ('init', '--quiet'),
      ('add', '.'),
      ('-c', 'user.name=u', '-c', 'user.email=e', 'commit', '-qm', 'one'),
    ):
      subprocess.run(['git', '-C', str(self.path), *words], check=True)

  def stub(self, name: str, text: str = '') -> None:
    """Puts a tool on the PATH, which notes its words and runs `text`."""
    path = self.tools / name
    path.unlink(missing_ok=True)
    path.write_text(f'#!/bin/bash\n{NOTE}{text}')
    path.chmod(0o755)

  def calls(self) -> list[list[str]]:
    """Returns the words of every call of a stub, without its name."""
    text = self._notes.read_text() if self._notes.exists() else ''
    return [call.splitlines() for call in text.split('\n\n')[:-1]]

  def run(self, script: str, *words: str, **variables: str):
    """Runs a script of the checkout, or a file; returns code and texts."""
    return subprocess.run(
      ['bash', str(self.path / 'scripts' / script), *words],
      env={
        'PATH': str(self.tools),
        'HOME': str(self.scratch),
        'TMPDIR': str(self.scratch),
        'NOTES': str(self._notes),
        'DPO_JAX_PORT': '1234',
        **variables,
      },
      cwd=self.path,
      capture_output=True,
      text=True,
      timeout=120,
    )


def names(folder: pathlib.Path) -> list[str]:
  """Files below a folder, by their path in it."""
  found = (p.relative_to(folder) for p in folder.rglob('*') if p.is_file())
  return sorted(map(os.fspath, found))
