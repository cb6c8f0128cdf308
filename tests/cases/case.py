import pathlib
from collections.abc import Callable
from typing import NamedTuple


class Case(NamedTuple):
  """One case of docs/cases.md: an input, what is right, and what ours does."""

  kind: str
  case: str
  right: str
  ours: Callable[[pathlib.Path], str]
