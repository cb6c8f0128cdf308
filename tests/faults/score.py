"""What a line of the scorecard counts, and where its files are."""

import pathlib
import random
import time
from typing import Any

import machine


class OutOfTime(Exception):
  """A line has run for as long as it may."""


_WHOLE: dict[str, pathlib.Path] = {}  # uninterrupted runs by their options


class Line:
  """Counts of one line while it runs.

  Args:
    name: such as R1.
    folder: an empty one, for runs.
    seed: of all that is drawn.
    size: 'small' for the suite, else 'full'.
    minutes: after which the line ends at its next fault.
  """

  def __init__(
    self,
    name: str,
    folder: pathlib.Path,
    seed: int,
    size: str,
    minutes: float = 1e9,
  ):
    """Counts nothing yet."""
    self.name, self.folder, self.size = name, folder, size
    self.random = random.Random(f'{name} {seed}')
    self.faults = 0
    self.violations: list[str] = []
    self.notes: list[str] = []
    self._made = 0
    self.minutes = minutes
    self._until = time.monotonic() + 60 * minutes

  def pick(self, small: Any, full: Any) -> Any:
    """Returns what this size takes."""
    return small if self.size == 'small' else full

  def place(self, name: str = 'run') -> pathlib.Path:
    """Returns a path that no other run has."""
    self._made += 1
    return self.folder / f'{name}_{self._made}'

  def count(self, what: str, problem: str = '') -> None:
    """Counts a fault, and a violation if there is a problem."""
    self.faults += 1
    if problem:
      self.violations.append(f'{what}: {problem}')

  def fault(self, what: str, problem: str = '') -> None:
    """Counts a fault as `count`; raises OutOfTime after the line's minutes."""
    self.count(what, problem)
    if time.monotonic() > self._until:
      raise OutOfTime

  def train(self, workdir: pathlib.Path, **options: Any) -> machine.Child:
    """Starts a run in a workdir; options as of machine.flags and command."""
    own = {
      k: options.pop(k) for k in ('devices', 'env', 'inject') if k in options
    }
    out = workdir.with_name(f'{workdir.name}.out')
    return machine.command(machine.flags(workdir, **options), out, **own)

  def goes_on(
    self, workdir: pathlib.Path, whole: dict[str, Any], **options: Any
  ) -> str:
    """What is wrong with a run that goes on to its end; '' if nothing is.

    Args:
      workdir: of the run.
      whole: machine.outcome of a run that was left alone.
      **options: as of `train`.
    """
    child = self.train(workdir, **options)
    if child.wait():
      return f'afterwards: {child.text()[-300:]}'
    return machine.differences(machine.outcome(workdir), whole)

  def baseline(self, **options: Any) -> pathlib.Path:
    """Returns an uninterrupted run, which has to end well; made once."""
    key = repr(sorted(options.items()))
    if key in _WHOLE:
      return _WHOLE[key]
    # Beside the folders of the lines: it outlives this one.
    workdir = self.folder.with_name(f'whole_{len(_WHOLE)}')
    _WHOLE[key] = workdir
    child = self.train(workdir, **options)
    if child.wait():
      raise RuntimeError(f'{workdir}: {child.text()[-3000:]}')
    return workdir
