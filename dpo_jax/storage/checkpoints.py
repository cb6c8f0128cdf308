"""state -> checkpoints/: sound steps on disk, or one line that says why not.

Comes in: pytrees by item name (params, opt_state, rng, ...) and a JSON dict.
Goes out: the newest step of which every bit is as it was saved. Orbax writes
and reads; each step also carries a record (checkpoint_record.py) of tree,
shapes, dtypes and fingerprints, because Orbax restores most bit flips and casts
dtypes silently. Does not decide when to save; state_items.py names the items.

On disk: <folder>/<step>/<item>/, each leaf under its name ('a/b/c'), and
<folder>/<step>/meta/ with the record. Typed PRNG keys go in as raw key data.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from dpo_jax import errors, tree
from dpo_jax.storage import buckets, checkpoint_record, files, orbax_parts
from dpo_jax.types import InputError, StorageError

_TRASH = 'trash'  # old steps are renamed into it at once, and deleted later
_ASIDE = 'set_aside'  # unsound steps whose numbers training reached again
_ATOMICITY = ocp.options.AtomicityOptions(
  mode=ocp.options.AtomicityMode.COMMIT_FILE  # so an empty folder is no step
)
STEP_NAMES = ocp.path.step.standard_name_format(atomicity_options=_ATOMICITY)


class Checkpoints:
  """The checkpoints of one run: a context manager, for one thread.

  Args:
    folder: folder of the steps, made at the first save. Readers change
      nothing: only a save removes what a killed run left unfinished.
    keep: number of latest steps to keep, at least 1.
    best: gives the number of a further step to keep, or None.
    log: takes one line per step that was skipped, set aside or lost.
  """

  def __init__(
    self,
    folder: str | os.PathLike | buckets.Path,
    *,
    keep: int = 2,
    best: Callable[[], int | None] = lambda: None,
    log: Callable[[str], None] = print,
  ):
    """Opens the folder for reading and, with `save`, for writing."""
    if keep < 1:
      raise ValueError(f'keep={keep}, at least 1')
    place = files.absolute(folder)
    self._in_bucket = isinstance(place, buckets.Path)
    if self._in_bucket:
      buckets.check_checkpoints(place)
    self.folder = epath.Path(str(place))
    self._kept = policies.AnyPreservationPolicy(
      [policies.LatestN(keep), orbax_parts.Step(best)]
    )
    self._log = log
    self._pending: int | None = None  # the step that is being written
    self._pending_bytes = 0
    self._saved_at = time.monotonic()  # or opened
    # Where the leaves of the last step are, by item, for its verification.
    self._placed: dict[str, dict[str, Any]] = {}
    self._sound: set[int] = set()  # saved or restored by this object
    self._saving = False  # whether this object saved: readers remove nothing
    orbax_parts.silence()
    self._manager = self._open()

  def __enter__(self) -> 'Checkpoints':
    """Returns itself."""
    return self

  def __exit__(self, kind, error, trace) -> None:
    """Closes; raises a failed save, or logs it if another error is raised."""
    try:
      self.close()
    except Exception as late:
      if kind is None:
        raise
      self._log(str(late))

  def steps(self) -> list[int]:
    """Returns the committed steps on disk, ascending; not the pending one."""
    steps = [path.step for path in STEP_NAMES.find_all(self.folder)]
    return sorted(step for step in steps if step != self._pending)

  def save(
    self, step: int, items: dict[str, Any], meta: dict[str, Any]
  ) -> bool:
    """Starts writing a step; the arrays may be donated when it returns.

    If the previous save failed, this logs the failure and waits until the new
    step is on disk, so that a passing fault costs one step at most.

    Args:
      step: number of the step.
      items: {item name: pytree of arrays}, without typed PRNG keys.
      meta: dict of JSON types (data position, ledger, config digest).

    Returns:
      False if this object saved or restored that step already.

    Raises:
      InputError: the step is not written; names path, cause, and the bytes
        that it needs and that are free.
    """
    self._saved_at = time.monotonic()
    # One save is in flight at a time: Orbax would wait here all the same.
    failure = self._settle()
    if failure:
      self._log(str(failure))
    if step in self._sound:
      return False
    flat = {item: _flat(value) for item, value in items.items()}
    self._placed = checkpoint_record.placed(flat)
    record = checkpoint_record.make(step, flat, meta)
    self._pending_bytes = sum(
      leaf.nbytes for leaves in flat.values() for leaf in leaves.values()
    )
    try:
      self._make_room(step)
      self._pending = step
      args = checkpoint_record.save_args(flat, record)
      # The loop forbids transfers; this one is meant.
      with jax.transfer_guard('allow'):
        self._manager.save(step, args=args, force=True)
    except Exception as error:
      # Also if making room failed: the message names the step.
      self._pending = step
      raise self._lost(error) from error
    if failure:
      self.wait()
    return True

  def is_overdue(self, minutes: float) -> bool:
    """Returns whether the last save is so long ago; never for 0."""
    return 0 < 60 * minutes <= time.monotonic() - self._saved_at

  def wait(self) -> None:
    """Waits until the last save is on disk; InputError if it failed."""
    failure = self._settle()
    if failure:
      raise failure

  def restore_latest(
    self, abstract: dict[str, Any], *, partial: bool = False
  ) -> checkpoint_record.Restored | None:
    """Restores the newest sound step; logs a line per step skipped.

    Args:
      abstract: {item name: pytree}. A jax.ShapeDtypeStruct leaf is restored to
        its sharding (none: the first device), a numpy leaf to the host. An item
        that is None becomes nested dicts of numpy arrays, by the record.
      partial: whether the checkpoint may hold more items than `abstract`.

    Returns:
      None if there is no step.

    Raises:
      InputError: the checkpoint is of another state (names the leaf), cannot
        be read, or no step is sound.
    """
    steps = self.steps()
    for step in self._unfinished(steps):
      if not steps or step > steps[-1]:
        self._log(f'{self.folder / str(step)}: skipped, it was never finished')
    # Another tree or shape raises InputError and ends the search: an older step
    # has the same fault. Damage is passed over.
    for step in reversed(steps):
      try:
        return self._restore(step, abstract, partial)
      except checkpoint_record.Unsound as damage:
        self._log(f'{self.folder / str(step)}: skipped, {damage}')
    if steps:
      raise errors.refuse(
        self.folder,
        f'none of the steps {steps} is sound',
        'put back a copy, or remove the folder to start over',
      )
    return None

  def restore(
    self, step: int, abstract: dict[str, Any], *, partial: bool = False
  ) -> checkpoint_record.Restored:
    """Restores one step as `restore_latest` does; InputError if unsound."""
    if step not in self.steps():
      raise errors.refuse(
        self.folder / str(step),
        'there is no such step',
        f'use one of the steps {self.steps()}',
      )
    try:
      return self._restore(step, abstract, partial)
    except checkpoint_record.Unsound as damage:
      raise errors.refuse(
        self.folder / str(step), damage, f'use one of the steps {self.steps()}'
      ) from damage

  def verify_latest(self, abstract: dict[str, Any] | None = None) -> int:
    """Reads the last step back from disk, as another process would.

    Args:
      abstract: as in `restore_latest`; None reads everything to the host, one
        item at a time.

    Returns:
      The number of the step.

    Raises:
      InputError: no step, another one than was saved last, or an unsound one.
    """
    self.wait()
    steps, abstract = self.steps(), abstract or {}
    step = max(self._sound, default=max(steps, default=0))
    again = 'check the disk and run the same command again'
    if step not in steps:
      raise errors.refuse(
        self.folder, f'there is no step {step}, only {steps}', again
      )
    # A fresh manager, which remembers nothing of the save.
    with self._open() as fresh:
      try:
        checkpoint_record.verify(
          fresh, step, self.folder, abstract, self._placed
        )
      except checkpoint_record.Unsound as damage:
        raise errors.refuse(
          self.folder / str(step), f'not sound on disk, {damage}', again
        ) from damage
    return step

  def set_aside(self, step: int) -> None:
    """Moves a step out of the way, if there is one: a restart passes it over.

    For a state that is as it was saved, and leads to numbers that are not
    finite.
    """
    failure = self._settle()
    if failure:
      self._log(str(failure))
    if step in self.steps() and jax.process_index() == 0:
      self._sound.discard(step)
      self._set_aside(step)
      self._manager.reload()

  def close(self) -> None:
    """Waits for the last save and ends Orbax's threads."""
    try:
      self.wait()
    finally:
      self._manager.close()
      if self._saving:
        _remove(self.folder / _TRASH)

  def _open(self) -> ocp.CheckpointManager:
    """Returns a new manager of the folder; changes nothing on disk."""
    options = ocp.CheckpointManagerOptions(
      create=False,
      save_root_metadata=False,
      atomicity_options=_ATOMICITY,
      step_name_format=STEP_NAMES,
      # A store renames by copying every byte: there, steps are just removed.
      todelete_subdir=None if self._in_bucket else _TRASH,
      preservation_policy=self._kept,
      # Folders are made in save(): in the background, a failure takes minutes
      # to show.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    try:
      return ocp.CheckpointManager(self.folder, options=options)
    except Exception as error:
      raise errors.refuse(
        self.folder,
        f'the steps cannot be listed ({orbax_parts.reason(error)})',
        'make it a readable folder and move damaged steps elsewhere',
      ) from error

  def _restore(self, step, abstract, partial) -> checkpoint_record.Restored:
    """Reads a step and remembers it as sound if nothing was left out."""
    restored = checkpoint_record.read_step(
      self._manager, step, self.folder, abstract, partial
    )
    if not partial:
      self._sound.add(step)
      flat = {item: _flat(value) for item, value in restored.items.items()}
      self._placed = checkpoint_record.placed(flat)
    return restored

  def _settle(self) -> InputError | None:
    """Waits for the pending save; returns the error if it failed."""
    if self._pending is None:
      return None
    try:
      self._manager.wait_until_finished()
      # Raises if the step is gone, or was never committed.
      STEP_NAMES.find_step(self.folder, self._pending)
    except Exception as error:
      return self._lost(error)
    self._sound.add(self._pending)
    self._pending = None
    return None

  def _lost(self, error: Exception) -> StorageError:
    """Forgets the pending step, frees its bytes, returns the error to raise."""
    step, self._pending = self._pending, None
    steps = []
    # The folder itself may be the problem.
    with contextlib.suppress(OSError):
      steps = self.steps()
      if step not in steps:
        _remove(self.folder / str(step))
    # Orbax's threads may be at work on what failed: they would print.
    orbax_parts.drop_coroutines(error)
    return orbax_parts.unwritten(
      self.folder / str(step), error, self._pending_bytes, steps
    )

  def says_last(self, error: StorageError) -> StorageError:
    """Returns the error with the step from which the same command goes on."""
    self._settle()  # a step may be on its way
    return errors.with_hint(error, orbax_parts.then(self.steps()))

  def _make_room(self, step: int) -> None:
    """Removes what stands in the way of a save of `step`.

    Later steps that this object neither saved nor restored were skipped as
    unsound: they are moved aside, not deleted. What killed runs left
    unfinished is removed at the first save, never by a reader.
    """
    if jax.process_index() == 0:
      self.folder.mkdir(parents=True, exist_ok=True)
      steps = self.steps()
      for old in steps:
        if old >= step and old not in self._sound:
          self._set_aside(old)
      _remove(self.folder / _TRASH)
      for unfinished in [] if self._saving else self._unfinished(steps):
        _remove(self.folder / str(unfinished))
    # No process may save before the first one has made room.
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('dpo_jax/checkpoints/make_room')
    self._manager.reload()
    self._saving = True

  def _set_aside(self, step: int) -> None:
    """Moves an unsound step out of the way of a new one."""
    parent = self.folder / _ASIDE
    # A link leads out of the run, where nothing is ours to replace.
    while os.path.islink(parent):
      parent = parent.with_name(f'{parent.name}_here')
    _remove(parent / str(step))
    if self._in_bucket:
      orbax_parts.move(self.folder / str(step), parent / str(step))
    else:
      parent.mkdir(exist_ok=True)
      (self.folder / str(step)).rename(parent / str(step))
    self._log(f'{self.folder / str(step)}: moved to {parent.name}/{step}')

  def _unfinished(self, steps: list[int]) -> list[int]:
    """Returns the numbers of folders that are named like steps but are none."""
    paths = self.folder.iterdir() if self.folder.is_dir() else ()
    names = (path.name for path in paths)
    # Not isdigit alone, which is true of a superscript.
    numbers = (int(x) for x in names if x.isascii() and x.isdigit())
    return sorted(set(numbers) - {*steps, self._pending})


def _remove(path: epath.Path) -> None:
  """Removes a folder if it exists; the first process does it for all.

  Of a link only the link: what it leads to may be another run's.
  """
  if jax.process_index() != 0:
    return
  if os.path.islink(path):
    path.unlink()
  else:
    path.rmtree(missing_ok=True)


def _flat(value: Any) -> dict[str, Any]:
  """Returns {name: leaf}; Orbax copies leaves on the host by itself."""
  return {
    name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    for name, leaf in tree.flatten_with_names(value)
  }
