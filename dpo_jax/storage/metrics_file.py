"""Lines of metrics.jsonl, read and checked: the reading half of writers.py.

Comes in: the bytes of a metrics.jsonl. Goes out: one dict per line, or one
line that names the problem. Imports no jax, so that tables need none. Writes
nothing.

JSON has no NaN and no Infinity: such a value is null in its place, and the key
'nonfinite' names it, as in "nonfinite": "loss=nan, grad_norm=inf".
"""

import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.storage import files
from dpo_jax.types import InputError

_FIX = 'restore the file, or delete the line'
_NONFINITE = ('nan', 'inf', '-inf')


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the lines of a file as `parse` does, without a torn last line.

  Raises:
    InputError: no such file, or as `parse`.
  """
  path = pathlib.Path(path)
  with files.storage_errors(path):
    data = path.read_bytes()
  return parse(data, path)[0]


def parse(
  data: bytes, where: Any, *, numbers: Collection[str] = ()
) -> tuple[list[dict[str, Any]], int]:
  """Parses the lines and counts torn ones.

  A last line without a newline may be cut short, because the run was killed or
  is writing: it is left out and counted.

  Args:
    data: the file's bytes.
    where: its path, for messages.
    numbers: names whose values must be numbers or null; others may be anything.

  Returns:
    The objects, in order, and the number of torn last lines, 0 or 1.

  Raises:
    InputError: a line, other than a torn last one, is not of the form; names
      it.
  """
  lines = data.split(b'\n')
  entries = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      # The path is in front of what parse_json says.
      entries.append(
        _entry(line, f'{where}:{number}: not a line of metrics', numbers)
      )
    except InputError:
      if number < len(lines):
        raise
      return entries, 1
  return entries, 0


def values(entry: Mapping[str, Any]) -> dict[str, float]:
  """Returns the metrics of a line, NaN and infinities included, nulls not."""
  metrics = {
    name: float(value)
    for name, value in entry.items()
    if type(value) in (int, float) and name != 'step'
  }
  for item in str(entry.get('nonfinite', '')).split(', '):
    name, _, value = item.partition('=')
    if value in _NONFINITE:
      metrics[name] = float(value)
  return metrics


def _entry(line: bytes, where: str, numbers: Collection[str]) -> dict[str, Any]:
  """Parses one line; InputError unless it has step, split and numbers."""
  entry = files.parse_json(line, where, fix=_FIX, number=_number)
  step, split = entry.get('step'), entry.get('split')
  if type(step) is not int or step < 0:
    raise errors.refuse(where, f'step is {step!r}, not an integer from 0', _FIX)
  if not isinstance(split, str):
    raise errors.refuse(
      where, f"split is {split!r}, not 'train' or 'eval'", _FIX
    )
  for name in numbers:
    value = entry.get(name)
    if value is not None and type(value) not in (int, float):
      raise errors.refuse(
        where, f'{name} is {value!r}, not a number or null', _FIX
      )
  return entry


def _number(text: str) -> int | float:
  """Parses a JSON number; an integer that no float holds becomes infinite."""
  is_short = len(text) < 20 and text.lstrip('-').isdigit()
  return int(text) if is_short else float(text)
