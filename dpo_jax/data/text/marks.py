"""tokens -> stretches of text, each trained or not.

Comes in: ids, and which of them are targets. Goes out: the text that each
stretch of one kind adds. Formats nothing: terminals and pages show it in their
own ways.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np


def stretches(
  decode: Callable[[Sequence[int]], str],
  before: Sequence[int],
  tokens: Sequence[int],
  mask: np.ndarray | None,
) -> Iterator[tuple[str, bool]]:
  """Yields (text, whether its tokens are marked) of the longest stretches.

  Args:
    decode: ids -> text.
    before: the tokens that precede; their text is left out.
    tokens: int [n].
    mask: bool [n]; None = none is marked.
  """
  ids = [*map(int, before)]
  text = decode(ids)
  for is_marked, own in _of_one_kind(tokens, mask):
    ids += own
    after = decode(ids)
    # A decoder may strip a space at the beginning: the text of a stretch is
    # what it adds, except where it completes a letter that was begun.
    added = after.removeprefix(text) if after.startswith(text) else None
    yield decode(own) if added is None else added, is_marked
    text = after


def _of_one_kind(tokens, mask) -> Iterator[tuple[bool, list[int]]]:
  """Yields (marked?, ids) of the longest stretches of one kind."""
  mask = np.zeros(len(tokens), bool) if mask is None else np.asarray(mask)
  borders = np.flatnonzero(np.diff(mask)) + 1
  for own, kinds in zip(np.split(tokens, borders), np.split(mask, borders)):
    if len(own):
      yield bool(kinds[0]), [int(token) for token in own]
