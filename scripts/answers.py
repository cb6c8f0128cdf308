"""Fills docs/results/ from finished sweeps: python scripts/answers.py.

Needs the sweeps in runs/ here, such as runs/ablate_beta. Each command of a
page of docs/results/ that begins with `python -m dpo_jax.results` runs again.
Its output replaces the text between the next `<!-- printed -->` and
`<!-- end -->`, and figures that the page shows are copied from its --out. Pages
without their sweep stay as they are. The sentences are written by hand.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'docs/results'
_COMMAND = re.compile(
  r'^python (-m dpo_jax\.results\S* (?:.*\\\n)*.*)$', re.MULTILINE
)
_PRINTED = re.compile(r'<!-- printed -->\n.*?<!-- end -->', re.DOTALL)


def main() -> None:
  """Fills every page whose runs are here."""
  runs = pathlib.Path('runs').resolve()
  for page in sorted(FOLDER.glob('*.md')):
    text = page.read_text(encoding='utf-8')
    commands = [
      shlex.split(words.replace('\\\n', ' '))
      for words in _COMMAND.findall(text)
    ]
    # The runs are the first word after `-m MODULE`.
    named = {runs.parent / words[2] for words in commands}
    if not named or not all(folder.is_dir() for folder in named):
      print(f'{page.name}: left as it is')
      continue
    with tempfile.TemporaryDirectory() as here:
      os.symlink(runs, f'{here}/runs')
      for words in commands:
        printed = _printed(words, here)
        # Marks the block as filled, so that the next command fills the next.
        filled = f'<!-- filled -->\n\n{printed}\n<!-- end -->'
        text = _PRINTED.sub(filled.replace('\\', r'\\'), text, count=1)
      text = text.replace('<!-- filled -->', '<!-- printed -->')
      for name in re.findall(r'!\[[^]]*\]\((\S+)\)', text):
        # The page's name comes first: figures of two pages have one name.
        name_there = name.removeprefix(f'{page.stem}_')
        (figure,) = pathlib.Path(here).glob(f'paper/*/figures/{name_there}')
        shutil.copy(figure, FOLDER / name)
    page.write_text(text, encoding='utf-8')
    print(f'{page.name}: {len(commands)} commands')


def _printed(words: list[str], here: str) -> str:
  """What a command prints on stdout, run in a folder that holds runs/."""
  return subprocess.run(
    [sys.executable, *words],
    cwd=here,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout


if __name__ == '__main__':
  main()
