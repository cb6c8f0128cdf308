"""Lines of metrics.jsonl, read and checked: the reading half of writers.py.

Comes in: the bytes of a metrics.jsonl. Goes out: one dict per line, or one
line that names the problem. Imports no jax, so that tables need none. Writes
nothing.

JSON has no NaN and no Infinity: such a value is null in its place, and the key
'nonfinite' names it, as in "nonfinite": "loss=nan, grad_norm=inf".
"""

import os
from collections.abc import Collection, Iterable, Mapping
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
  path = files.at(path)
  files.refuse_stream(path)
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


class Seal:
  """Digest of the lines so far: a checkpoint keeps it, a restart compares it.

  Rates are left out. They depend on the clock, and equal runs have equal seals.
  """

  def __init__(self, entries: Iterable[Mapping[str, Any]] = ()):
    """Takes the lines that a file has already."""
    self._digest, self._count = '', 0
    for entry in entries:
      self.add(entry)

  def add(self, entry: Mapping[str, Any]) -> None:
    """Takes one more line."""
    kept = {k: v for k, v in entry.items() if not k.endswith('_per_second')}
    # A chain: the digest of the lines before is part of the next one.
    parts = self._digest.encode(), files.canonical(kept)
    self._digest = files.bytes_digest(parts)
    self._count += 1

  def value(self) -> dict[str, Any]:
    """Returns the number of lines and their digest, as JSON types."""
    return {'lines': self._count, 'sha256': self._digest}


def check(path: str | os.PathLike, seal: Mapping[str, Any], step: int) -> bool:
  """Compares the file with the seal of a checkpoint.

  Args:
    path: the file.
    seal: `Seal.value` when the checkpoint was saved.
    step: of the checkpoint. Only lines up to it count.

  Returns:
    Whether the lines are there; False if the file is gone or has none.

  Raises:
    InputError: the lines are not those that were written, or as `parse`.
  """
  entries = read(path) if files.at(path).exists() else []
  entries = [entry for entry in entries if entry['step'] <= step]
  if seal['lines'] and not entries:
    return False
  if Seal(entries[: seal['lines']]).value() != dict(seal):
    raise errors.refuse(
      path,
      f'its first {seal["lines"]} lines are not those that were there when '
      f'step {step} was saved',
      f'put back a copy, or remove it: then it begins after step {step}',
    )
  return True


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
