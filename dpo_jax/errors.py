"""Refusals of bad input, in one form: `where: problem; fix: ...`.

Comes in: the place of the problem, the problem, and what the user can do about
it. Goes out: a types.InputError to raise. Does not decide what is wrong.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from dpo_jax.types import InputError, StorageError


def refuse(where: Any, problem: str, fix: str) -> InputError:
  """Returns the exception to raise: `where: problem; fix: ...` on one line.

  Args:
    where: `path:line` (line 0: the file as a whole), `source[index]`, a flag,
      or a config key, as in `config.loss.beta`.
    problem: the problem, with the offending value.
    fix: what the user can do about it.

  Returns:
    An InputError whose text holds no line break, control character or lone
    surrogate, whatever the path and the data contain.
  """
  return InputError(printable(f'{where}: {problem}; fix: {fix}'))


def unwritten(where: Any, problem: str, fix: str) -> StorageError:
  """Returns the refusal of a disk that takes no more, in the same form."""
  return StorageError(str(refuse(where, problem, fix)))


def with_hint(error: StorageError, hint: str) -> StorageError:
  """Returns the error with a further hint behind its fix, unless it is there.

  Args:
    error: from `unwritten`.
    hint: what the same command will do, such as 'it continues from step 4'.
  """
  line = str(error)
  return error if hint in line else StorageError(f'{line}; {hint}')


def printable(text: str) -> str:
  """Returns a text as one line: what no terminal prints is escaped."""
  if text.isprintable():
    return text
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def within(place: Any, error: InputError) -> InputError:
  """Returns the refusal with a place in front, such as one run of sixty."""
  kind = StorageError if isinstance(error, StorageError) else InputError
  return kind(f'{place}: {error}')


def again(line: str) -> InputError:
  """Returns the refusal that another process of the run has printed."""
  return InputError(line)


def show(value: Any, limit: int = 60) -> str:
  """Returns a value's repr on one line, cut to `limit` characters."""
  # A long text is cut first: its repr may be far longer than needed.
  text = repr(value[: 4 * limit] if isinstance(value, str) else value)
  return text if len(text) <= limit else text[: limit - 3] + '...'


def nearest(word: Any, options: Iterable[str], cutoff: float = 0.5) -> str:
  """Returns the option spelt most like `word`, or '' if none is close.

  Args:
    word: the word that was given; letter case is ignored.
    options: the words that are allowed.
    cutoff: least difflib ratio, in [0, 1], that counts as close.
  """
  # Sorted, as a set has another order in each process.
  options = sorted(str(option) for option in options)
  lower = [option.lower() for option in options]
  word = str(word)
  matches = difflib.get_close_matches(word.lower(), lower, 1, cutoff)
  # A word that was cut short, such as 'learning' for 'learning_rate'.
  matches += [one for one in lower if word and one.startswith(word.lower())]
  if not matches:
    return ''
  twins = [one for one in options if one.lower() == matches[0]]
  # Of 'Loss' and 'loss', the one whose letter case is the word's.
  return difflib.get_close_matches(word, twins, 1, 0.0)[0]


def did_you_mean(word: Any, options: Iterable[str]) -> str:
  """Returns `did you mean 'x'? `, the beginning of a fix, or ''."""
  match = nearest(word, options)
  return f'did you mean {match!r}? ' if match else ''


def wrong_type(key: str, value: Any, wanted: str, where: str) -> InputError:
  """Returns the refusal of a value of the wrong type under `key`."""
  return refuse(
    where,
    f'{key!r} is {_kind_of(value)}, not {wanted}',
    f'make {key!r} {wanted}',
  )


def _kind_of(value: Any) -> str:
  """Returns type and value, in JSON's words where they are plainer."""
  if value is None:
    return 'null'
  if isinstance(value, list | dict | str) and not value:
    return f'an empty {type(value).__name__}'
  return f'{type(value).__name__} {show(value, 40)}'
