"""The folder of a sweep: sweep.json, a run directory per point, what failed.

Comes in: points. Goes out: sweep.json, and the state of every point as its run
directory tells it. Runs nothing.

On disk: sweep.json; POINT/, an ordinary run directory; cache/, shared by all;
sweep/ with claims, the output of every point and the line of those that failed.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.config import stored
from dpo_jax.storage import environment, files, metrics_file
from dpo_jax.storage.run_dir import RunDir
from dpo_jax.sweeps import claims
from dpo_jax.sweeps.points import Point

_FIX = 'put back a copy, or give another --workdir'
# In the order in which a status names them.
STATES = ('done', 'running', 'stopped', 'failed', 'foreign', 'waiting')


class State(NamedTuple):
  """Where a point of a sweep stands."""

  name: str
  state: str  # one of STATES
  step: int  # updates done, as far as metrics.jsonl says
  num_steps: int  # of the whole run; 0 = not known
  metrics: Mapping[str, float]  # of its newest evaluation
  note: str = ''  # the line of a failure, the owner, or another commit


class Folder:
  """The folder of a sweep. Making the object touches nothing on disk."""

  def __init__(self, path: str | os.PathLike):
    """Names the parts of the folder."""
    self.path = files.absolute(path)
    self.cache_dir = self.path / 'cache'
    self.claims = self.path / 'sweep' / 'claims'
    self._failed = self.path / 'sweep' / 'failed'
    self._output = self.path / 'sweep' / 'output'

  def run(self, name: str) -> RunDir:
    """The run directory of a point."""
    return RunDir(
      self.path / name,
      may_change=stored.NO_NUMBERS,
      complete=stored.complete,
    )

  def output(self, name: str) -> files.AnyPath:
    """The file that takes what a point prints."""
    return self._output / f'{name}.txt'

  def known(self) -> dict[str, dict[str, Any]]:
    """{name: what sweep.json says of the point}; {} without sweep.json."""
    value = files.read_json_or_none(self.path / 'sweep.json', fix=_FIX)
    points = (value or {}).get('points', [])
    if not isinstance(points, list) or not all(
      isinstance(point, dict) and isinstance(point.get('name'), str)
      for point in points
    ):
      raise errors.refuse(
        self.path / 'sweep.json', 'no list of points with names', _FIX
      )
    return {point['name']: point for point in points}

  def open(self, experiment: str, points: Sequence[Point]) -> list[Point]:
    """Writes sweep.json with these points beside those that it has.

    Args:
      experiment: `path.py:arg`.
      points: of this command.

    Returns:
      The points, each under the name that sweep.json has for its digest.

    Raises:
      InputError: the folder is a run, or cannot be written.
    """
    if (self.path / 'config.json').exists():
      raise errors.refuse(
        self.path, 'holds a run, not a sweep', 'give a new --workdir'
      )
    claims.check(self.claims)
    with claims.wait_for(self.claims, '.sweep'):
      known = self.known()
      by_digest = {p.get('digest'): name for name, p in known.items()}
      named = [
        point._replace(name=by_digest.get(point.digest, point.name))
        for point in points
      ]
      for point in named:
        before = known.get(point.name, {})
        if before.get('digest', point.digest) != point.digest:
          raise errors.refuse(
            self.path / 'sweep.json',
            f'the point {point.name} is of another config there',
            'give a new --workdir, or the settings that are there',
          )
        known[point.name] = {
          'name': point.name,
          'arg': point.arg,
          'values': files.as_json(point.values),
          'digest': point.digest,
          'graph': point.graph,
        }
      listed = list(known.values())
      files.write_json(
        self.path / 'sweep.json',
        {
          'experiment': experiment,
          'points': listed,
          'digest': files.digest([p['digest'] for p in listed]),
        },
      )
    return named

  def has_begun(self, points: Sequence[Point]) -> bool:
    """Whether some point has made an update."""
    return any(_progress(self.path / p.name)[0] for p in points)

  def num_ended(self, points: Sequence[Point]) -> int:
    """How many points have ended, done or failed, in whatever process."""
    return sum(
      (self.path / p.name / 'DONE').exists()
      or (self._failed / f'{p.name}.json').exists()
      for p in points
    )

  def mark_failed(self, name: str, line: str, code: int) -> None:
    """Keeps the line with which a point ended, and its exit code."""
    files.write_json(
      self._failed / f'{name}.json', {'line': line, 'exit_code': code}
    )

  def clear_failed(self, name: str) -> None:
    """Forgets that a point failed."""
    (self._failed / f'{name}.json').unlink(missing_ok=True)

  def failure(self, name: str) -> dict[str, Any] | None:
    """What `mark_failed` kept; None if nothing."""
    return files.read_json_or_none(self._failed / f'{name}.json', fix=_FIX)

  def state(self, name: str, point: Point | None = None) -> State:
    """Where a point stands, read from its run directory.

    Args:
      name: of the point.
      point: its config, to compare with the run's; None compares nothing.
    """
    run, note = self.run(name), ''
    config = run.config_or_none()
    step, metrics = _progress(run.path)
    total = (config or {}).get('train', {}).get('num_steps', 0)
    failure = self.failure(name)
    other = claims.alive(self.claims, name)
    if config is not None and point is not None:
      lines = run.differences(config, config_lib.resolve(point.config))
      if lines:
        return State(name, 'foreign', step, total, metrics, lines[0])
    if config is not None and run.is_done():
      state, note = 'done', _other_code(run.env())
    elif other:
      state, note = 'running', other
    elif failure:
      state, note = 'failed', str(failure.get('line', ''))
    else:
      state = 'waiting' if config is None else 'stopped'
    return State(name, state, step, total, metrics, note)


def _progress(path: files.AnyPath) -> tuple[int, dict[str, float]]:
  """The last step of metrics.jsonl, and its newest evaluation."""
  file, step, metrics = path / 'metrics.jsonl', 0, {}
  if file.exists():
    for entry in metrics_file.read(file):
      step = max(step, entry['step'])
      if entry['split'] == 'eval':
        metrics = entry
  return step, metrics


def _other_code(env: Mapping[str, Any]) -> str:
  """A note if another commit of this code made the run; '' if not known."""
  then, now = env.get('git_commit'), environment.commit()
  if not then or not now or then == now:
    return ''
  return f'made by commit {then[:10]}'


def describe(states: Sequence[State], shown: Sequence[str]) -> str:
  """A table of the states as text, and a line that counts them.

  Args:
    states: of the points.
    shown: names of metrics, as far as a point has them.
  """
  shown = [m for m in shown if any(m in s.metrics for s in states)]
  rows = [['point', 'state', 'step', *shown, 'note']]
  for s in states:
    cells = [
      f'{s.metrics[m]:.4f}' if s.metrics.get(m) is not None else ''
      for m in shown
    ]
    step = f'{s.step}/{s.num_steps}' if s.num_steps else str(s.step or '')
    rows.append([s.name, s.state, step, *cells, s.note])
  if not any(row[-1] for row in rows[1:]):
    rows = [row[:-1] for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for row in rows
  ]
  return '\n'.join([*lines, summary(states)])


def summary(states: Sequence[State]) -> str:
  """How many points are in which state, in one line."""
  counts = {word: sum(s.state == word for s in states) for word in STATES}
  parts = [f'{n} {word}' for word, n in counts.items() if n]
  return f'{len(states)} points: {", ".join(parts)}'
