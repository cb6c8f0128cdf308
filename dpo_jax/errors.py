"""How bad input is reported: one line `where: problem; fix: ...`.

Comes in: where it was found, what is wrong, what to do about it. Goes out: a
types.InputError to raise. Does not decide what is wrong.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from dpo_jax.types import InputError


def refuse(where: Any, problem: str, fix: str) -> InputError:
  """The exception to raise: `where: problem; fix: ...` on one line.

  Args:
    where: `path:line` (line 0: the file as a whole), `source[index]`, or the
      config key or flag.
    problem: what is wrong, with the value that was found.
    fix: what the user can do about it.

  Returns:
    An InputError whose text holds no line break, control character or lone
    surrogate, whatever the path and the data contain.
  """
  text = f'{where}: {problem}; fix: {fix}'
  if not text.isprintable():
    text = ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)
  return InputError(text)


def show(value: Any, limit: int = 60) -> str:
  """The value as it appears in a message: repr on one line, cut to `limit`."""
  text = repr(value[: 4 * limit] if isinstance(value, str) else value)
  return text if len(text) <= limit else text[: limit - 3] + '...'


def nearest(word: Any, options: Iterable[str], cutoff: float = 0.5) -> str:
  """Returns the option spelt most like `word`, or '' if none is close.

  Args:
    word: what was given; letter case is ignored.
    options: what is allowed.
    cutoff: least difflib ratio, in [0, 1], that counts as close.
  """
  by_lower = {str(option).lower(): str(option) for option in options}
  word = str(word).lower()
  matches = difflib.get_close_matches(word, by_lower, 1, cutoff)
  matches += [option for option in by_lower if word and option.startswith(word)]
  return by_lower[matches[0]] if matches else ''


def did_you_mean(word: Any, options: Iterable[str]) -> str:
  """Returns `did you mean 'x'? `, to begin a fix with, or ''."""
  match = nearest(word, options)
  return f'did you mean {match!r}? ' if match else ''


def wrong_type(key: str, value: Any, wanted: str, where: str) -> InputError:
  """The error for a value that is not what its key takes."""
  return refuse(
    where,
    f'{key!r} is {_kind_of(value)}, not {wanted}',
    f'make {key!r} {wanted}',
  )


def _kind_of(value: Any) -> str:
  if value is None:
    return 'null'
  if isinstance(value, list | dict | str) and not value:
    return f'an empty {type(value).__name__}'
  return f'{type(value).__name__} {show(value, 40)}'
