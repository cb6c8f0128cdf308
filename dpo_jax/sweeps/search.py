"""values -> a trained point and its record, for a driver that searches.

Comes in: an experiment, a folder, and the values of one point after another.
Goes out: the record of each run. The points are an ordinary sweep: they share
programs, records and reference, a point that is done is not run again, and the
tables read the folder. Chooses no value.
"""

import os
from collections.abc import Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.results import arrays
from dpo_jax.sweeps import folder as folders
from dpo_jax.sweeps import points, run


class Search:
  """A sweep whose points are given one by one.

  Args:
    experiment: `path.py` or `path.py:arg`.
    workdir: the folder of the sweep.
    overrides: {dotted key: value} for every point.
  """

  def __init__(
    self,
    experiment: str,
    workdir: str | os.PathLike,
    overrides: Mapping[str, Any] | None = None,
  ):
    """Starts nothing yet."""
    self._experiment = experiment
    self._overrides = list((overrides or {}).items())
    self._folder = folders.Folder(workdir)
    self._loop = run.Loop(self._folder, [], retry=True)

  def train(self, values: Mapping[str, Any], arg: str = '') -> arrays.RunRecord:
    """Trains the point of these values, unless it is done; returns its record.

    Args:
      values: {dotted key: value}.
      arg: of the experiment, for this point.

    Raises:
      InputError: the point cannot be trained, with the line of its failure.
    """
    point = points.make(self._experiment, self._overrides, values, arg)
    [point] = self._folder.open(self._experiment, [point])
    self._loop.train([point])
    state = self._folder.state(point.name, point)
    if state.state != 'done':
      raise errors.refuse(
        self._folder.path / point.name,
        f'{state.state}: {state.note}',
        'give other values, or mend what the line says',
      )
    return arrays.read_run(self._folder.path / point.name)
