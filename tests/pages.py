"""README.md and docs/ as text: their prose, code spans and commands.

A command is a line of a ```bash block, or a code span that begins like one.
"""

import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
_DOCS = ROOT / 'docs'
_PATHS = [*sorted(_DOCS.glob('*.md')), *sorted(_DOCS.glob('results/*.md'))]
# README.md first, then pages by their path in docs/ -> text
TEXTS = {'README.md': (ROOT / 'README.md').read_text(encoding='utf-8')} | {
  str(path.relative_to(_DOCS)): path.read_text(encoding='utf-8')
  for path in _PATHS
}
README = TEXTS['README.md']

_BLOCK = re.compile(r'^ *```(\w*)\n(.*?)^ *```$', re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r'`([^`]+)`')
_BEGINS = re.compile(r'(python|source) |scripts/\w+\.sh\b')


class Command(NamedTuple):
  """One command of a page."""

  page: str  # file name
  words: tuple[str, ...]  # without its comment
  needs: str  # from a comment `# needs ...`; '' without one


def prose(text: str) -> str:
  """A page with blanks for its blocks; other characters keep their places."""
  return _BLOCK.sub(lambda block: ' ' * len(block[0]), text)


def spans(text: str) -> list[str]:
  """The code spans of a page's prose, each on one line."""
  return [' '.join(span.split()) for span in _SPAN.findall(prose(text))]


def commands(page: str, text: str) -> list[Command]:
  """The commands of a page in order, with continuation lines joined."""
  lines = [
    (block.start(), line)
    for block in _BLOCK.finditer(text)
    if block[1] == 'bash'
    for line in block[2].replace('\\\n', ' ').splitlines()
  ]
  lines += [
    (span.start(), ' '.join(span[1].split()))
    for span in _SPAN.finditer(prose(text))
    if _BEGINS.match(span[1])
  ]
  result = []
  for _, line in sorted(lines, key=lambda each: each[0]):
    words = tuple(shlex.split(line, comments=True))
    needs = re.search(r'#\s*needs\s+(.+)$', line)
    if words:
      result.append(Command(page, words, needs[1] if needs else ''))
  return result


def anchors(text: str) -> set[str]:
  """The anchors that GitHub gives to a page's headings."""
  headings = re.findall(r'^#+ (.+)$', _BLOCK.sub('', text), re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }
