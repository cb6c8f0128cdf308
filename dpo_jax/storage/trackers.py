"""metrics -> an experiment tracker with the interface of W&B, if asked for.

Comes in: the scalars of metrics.jsonl, and the names of run and group. Goes
out: the same numbers to wandb or trackio, under `train/NAME` and `eval/NAME`.
metrics.jsonl stays the truth: a tracker that fails is one line, and the run
goes on without it. The packages are optional; neither is imported unless asked
for.
"""

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Callable, Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.storage import files, scratch

# Packages with `init(...) -> run`, `run.log(metrics, step=)`, `run.finish()`.
KINDS = ('none', 'wandb', 'trackio')


def check(kind: str) -> None:
  """Refuses a tracker whose package is not installed; imports nothing."""
  if kind != 'none' and importlib.util.find_spec(kind) is None:
    raise errors.refuse(
      'config.log.tracker',
      f'{kind!r} needs the package {kind}, which is not installed',
      f'pip install {kind}, or use none',
    )


class Tracker:
  """One run in a tracker; 'none' takes everything and does nothing.

  Args:
    kind: one of KINDS.
    path: the run directory; its name is the run's, and a run continued there
      is continued in the tracker.
    project: of the tracker.
    group: of runs, such as a sweep; '' = none.
    config: the resolved config.
    log: takes the one line of a failure.
  """

  def __init__(
    self,
    kind: str,
    path: files.AnyPath,
    *,
    project: str = '',
    group: str = '',
    config: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
  ):
    """Starts or continues the run in the tracker."""
    self._kind, self._log, self._run = kind, log, None
    if kind == 'none':
      return
    keywords = {
      'project': project,
      'name': path.name,
      'group': group or None,
      'config': files.flatten(config or {}),
      'resume': 'allow',
    }
    if kind == 'wandb':
      # By the place, so that the same command goes on in the same run.
      keywords |= {
        'id': files.digest(str(path))[:16],
        'dir': str(scratch.stand_in(path)),
        'reinit': 'finish_previous',
      }
    self._try(
      'started',
      lambda: importlib.import_module(kind).init(**keywords),
      then=self._begin,
    )

  def write(
    self, step: int, split: str, values: Mapping[str, float | int]
  ) -> None:
    """Sends the scalars of one line; names are `split/NAME`."""
    if self._run is not None:
      named = {f'{split}/{name}': value for name, value in values.items()}
      self._try('written', lambda: self._run.log(named, step=step))

  def close(self) -> None:
    """Ends the run in the tracker."""
    if self._run is not None:
      self._try('closed', self._run.finish)
      self._run = None

  def _begin(self, run: Any) -> None:
    self._run = run

  def _try(
    self,
    done: str,
    call: Callable[[], Any],
    then: Callable[[Any], None] = lambda value: None,
  ) -> None:
    """Calls; a failure is one line, and the last thing that is tried."""
    # What a tracker prints would stand between the lines of the run.
    said = io.StringIO()
    try:
      with contextlib.redirect_stdout(said):
        value = call()
    except Exception as error:
      self._run = None
      problem = f'{type(error).__name__}: {error}'.splitlines()[0]
      self._log(
        f'{self._kind}: could not be {done} ({problem}); the run goes on '
        'without it, its numbers are in metrics.jsonl'
      )
    else:
      then(value)
