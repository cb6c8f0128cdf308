"""Runs every case and writes docs/cases.md: python scripts/cases_table.py."""

import os
import pathlib
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
_SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text())
_PATHS = _SETTINGS['tool']['pytest']['ini_options']['pythonpath']
sys.path[:0] = [str(ROOT / path) for path in ('.', *_PATHS)]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import test_cases  # noqa: E402


def main() -> None:
  """Writes the page anew; a case that raises is its error's text."""
  ours = []
  for _, case in test_cases.CASES:
    with tempfile.TemporaryDirectory() as folder:
      os.chdir(folder)
      try:
        ours.append(case.ours(pathlib.Path(folder)))
      except Exception as error:
        ours.append(f'{type(error).__name__}: {error}')
      os.chdir(ROOT)
  text = test_cases.page(test_cases.CASES, ours)
  test_cases.PAGE.write_text(text, encoding='utf-8')
  print(text.split('\n\n')[2])


if __name__ == '__main__':
  main()
