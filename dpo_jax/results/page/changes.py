"""Two versions of a page -> lines that name what differs.

Comes in: the text of index.html as it is, and as the runs give it. Goes out: a
line per cell, number, example or figure that differs: its name, what the page
says, what follows. Reads no files.
"""

import html.parser
from collections.abc import Iterator
from typing import Any

from dpo_jax.results import differences
from dpo_jax.storage import files

_VOID = frozenset({'meta', 'link', 'br', 'input'})
# Places that change without any number: code of the page, progress of a sweep.
_PASSING = ('page', 'style', 'script', 'sweep ', 'Points of ')
_TEXTS = frozenset({'prompt', 'chosen', 'rejected', 'why'})
_ABSENT = 'what is absent'
_MOST = 20  # lines


def lines(old: str, new: str, path: Any, is_as_written: bool) -> list[str]:
  """Names what differs between a page and what its runs give.

  Args:
    old: the page.
    new: made again.
    path: of the page, for messages.
    is_as_written: whether the page has the bytes that were written. Then the
      status of a sweep and the code of the page may have moved on.

  Returns:
    One line per difference, 20 at most. Texts of examples that are at hand for
    one of the two only do not count.
  """
  before, now = _places(old), _places(new)
  problems = []
  for place in dict.fromkeys([*before, *now]):
    one, two = before.get(place, []), now.get(place, [])
    passes = is_as_written and place.startswith(_PASSING)
    if one == two or passes or place == _ABSENT:
      continue
    for name, has, gives in _differing(place, one, two):
      problems.append(
        f'{path}: {name} reads {differences.show(has)}, its runs give '
        f'{differences.show(gives)}'
      )
  more = len(problems) - _MOST
  if more > 0:
    problems = [*problems[:_MOST], f'{path}: {more} more differences']
  return problems


def _places(text: str) -> dict[str, list[str]]:
  reader = _Reader()
  reader.feed(text)
  reader.close()
  return reader.places


class _Reader(html.parser.HTMLParser):
  """Collects texts and attributes by the named element around them."""

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.places: dict[str, list[str]] = {}
    self._stack = [('', 'page')]

  def handle_starttag(self, tag, attrs):
    """Enters an element; its attributes belong to its place."""
    given = dict(attrs)
    named = given.get('data-at') or given.get('id')
    place = self._stack[-1][1]
    if named and not self._is_in_figure():
      place = named
    elif tag in ('style', 'script'):
      place = tag
    for key, value in attrs:
      self._add(place, f'{tag} {key}={value}')
    if tag not in _VOID:
      self._stack.append((tag, place))

  def handle_endtag(self, tag):
    """Leaves an element, and those in it that were not closed."""
    for index in range(len(self._stack) - 1, 0, -1):
      if self._stack[index][0] == tag:
        del self._stack[index:]
        return

  def handle_data(self, data):
    """Adds a text; white space between elements is none."""
    if data.strip():
      self._add(self._stack[-1][1], data.strip())

  def handle_comment(self, data):
    """A page has no comments: one is a difference."""
    self._add(self._stack[-1][1], f'<!--{data}-->')

  def _is_in_figure(self) -> bool:
    return any(tag == 'svg' for tag, _ in self._stack)

  def _add(self, place: str, token: str):
    self.places.setdefault(place, []).append(token)


def _differing(
  place: str, one: list[str], two: list[str]
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (name, what is there, what follows) within a place."""
  if place.startswith('data-'):
    yield from _differing_data(place, one, two)
    return
  for index in range(max(len(one), len(two))):
    has = one[index] if index < len(one) else None
    gives = two[index] if index < len(two) else None
    if has != gives:
      # The rest may only be shifted: the first difference is enough.
      yield place, has, gives
      return


def _differing_data(place, one, two) -> Iterator[tuple[str, Any, Any]]:
  before, now = (files.parse_object(_json(text)) for text in (one, two))
  if before is None or now is None:
    yield place, 'no data' if before is None else 'data', 'data'
    return
  old, new = before['data'], now['data']
  for key, has, gives in differences.of_values(old, new):
    if not _is_text_at_hand(key, old, new):
      yield f'{place}: {", ".join(key)}', has, gives


def _json(tokens: list[str]) -> str:
  """An object, also of a list: parse_object reads nothing else."""
  text = ''.join(t for t in tokens if not t.startswith('script '))
  return f'{{"data": {text or "null"}}}'


def _is_text_at_hand(key, old, new) -> bool:
  """Whether a value is of texts that one of the two versions lacks."""
  if key[:1] == ('reasons',):
    return True
  if key[:1] != ('pairs',) or len(key) < 3 or key[2] not in _TEXTS:
    return False
  index = int(key[1].split()[0])
  return _has_no_text(old, index) != _has_no_text(new, index)


def _has_no_text(value: Any, index: int) -> bool:
  try:
    return 'why' in value['pairs'][index]
  except (IndexError, KeyError, TypeError):  # edited by hand
    return False
