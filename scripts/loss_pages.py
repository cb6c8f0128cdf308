"""Writes docs/losses/: python scripts/loss_pages.py [NAME ...].

One page and one plot per registered loss and option, and the index. With names,
only their pages and the index; without, files of losses that are no more are
removed.
"""

import os
import pathlib
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
_SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text())
_PATHS = _SETTINGS['tool']['pytest']['ini_options']['pythonpath']
sys.path[:0] = [str(ROOT / path) for path in ('.', *_PATHS)]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from manual import folder  # noqa: E402


def main() -> None:
  """Writes the files; of all losses and options if none is named."""
  names = sys.argv[1:]
  files = folder.files(names or folder.names())
  for path in () if names else (ROOT / folder.FOLDER).glob('*'):
    if path.name not in files:
      path.unlink()
  for name, text in files.items():
    (ROOT / folder.FOLDER / name).write_text(text, encoding='utf-8')
  print(f'{folder.FOLDER}: {len(files)} files')


if __name__ == '__main__':
  main()
