"""state -> checkpoints/: sound steps on disk, or one line that says why not.

Comes in: pytrees by item name (params, opt_state, rng, ...) and a JSON dict.
Goes out: the newest step whose every bit is what was saved. Orbax writes and
reads; on top of it each step carries a record (tree, shapes, dtypes and a
fingerprint of every leaf), because Orbax restores most bit flips and casts
dtypes without a word. Does not decide when to save, and knows no train state.

On disk: <folder>/<step>/<item>/, each leaf under its name ('a/b/c'), and
<folder>/<step>/meta/ with the record. Typed PRNG keys go in as raw key data.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from dpo_jax import tree
from dpo_jax.types import InputError

_RECORD = 'meta'  # the item that holds the record; no caller's item is so named
_TRASH = 'trash'  # old steps go here in one rename, and are emptied later
_ASIDE = 'set_aside'  # unsound steps that training passed again
_ATOMICITY = ocp.options.AtomicityOptions(
  mode=ocp.options.AtomicityMode.COMMIT_FILE
)
_STEP_NAMES = ocp.path.step.standard_name_format(atomicity_options=_ATOMICITY)
# Errors that say nothing about the bytes on disk: walking back would be wrong.
_NOT_DAMAGE = re.compile(
  'RESOURCE_EXHAUSTED|PERMISSION_DENIED|Permission denied|Too many open files'
)


class Restored(NamedTuple):
  """A step as it was saved."""

  step: int
  items: dict[str, Any]  # pytree by item name
  meta: dict[str, Any]  # the JSON dict given to save


class _Unsound(Exception):
  """This step is damaged: the message says how."""


class Checkpoints:
  """The checkpoints of one run: a context manager, for one thread.

  Args:
    folder: where the steps lie; made at the first save, so reading leaves
      nothing behind. Readers of a live run only restore: saving removes what
      a killed run left unfinished.
    keep: how many of the latest steps to keep, at least 1.
    best: 'min' or 'max' keeps the step of the best `score` too.
    log: takes one line a step that was skipped, set aside or lost.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    keep: int = 2,
    best: str | None = None,
    log: Callable[[str], None] = print,
  ):
    if keep < 1 or best not in (None, 'min', 'max'):
      raise ValueError(f'keep={keep} (>= 1), best={best!r} (None, min, max)')
    folder = os.fspath(folder)
    local = '://' not in folder
    self.folder = epath.Path(os.path.abspath(folder) if local else folder)
    self._keep, self._best, self._log = keep, best, log
    self._pending: int | None = None  # the step that is being written
    self._pending_bytes = 0
    self._sound: set[int] = set()  # saved or restored by this object
    self._swept = False
    _quiet_orbax()
    self._scores = self._read_scores() if best else {}
    self._manager = self._open()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, error, trace) -> None:
    if kind is None:
      self.close()
      return
    try:
      self.close()
    except Exception as late:  # the first error is the one to show
      self._log(str(late))

  def steps(self) -> list[int]:
    """Returns the committed steps on disk, ascending; not the pending one."""
    found = [found.step for found in _STEP_NAMES.find_all(self.folder)]
    return sorted(step for step in found if step != self._pending)

  def save(
    self,
    step: int,
    items: dict[str, Any],
    meta: dict[str, Any],
    *,
    score: float | None = None,
  ) -> bool:
    """Starts writing a step; the arrays may be donated when it returns.

    A failure of the previous save is logged, and this save then waits until
    it is on disk, so that a passing fault costs one step and no more.

    Args:
      step: number of the step; must not be older than a step of this object.
      items: pytree of arrays by item name; no typed PRNG keys.
      meta: anything JSON takes (data position, ledger, config digest).
      score: what `best` compares; None or NaN is never the best.

    Returns:
      False where this object saved or restored that step already.

    Raises:
      InputError: not written; the line has path, cause, need and free bytes.
    """
    failure = self._settle()
    if failure:
      self._log(str(failure))
    if step in self._sound:
      return False
    flat = {item: _host_copies(value) for item, value in items.items()}
    record = _make_record(step, flat, meta, score)
    self._pending_bytes = sum(
      leaf.nbytes for leaves in flat.values() for leaf in leaves.values()
    )
    try:
      self._make_room(step)
      self._pending = step
      if score is not None and math.isfinite(score):
        self._scores[step] = float(score)
      with jax.transfer_guard('allow'):
        self._manager.save(step, args=_save_args(flat, record), force=True)
    except Exception as error:
      raise self._lost(error) from error
    if failure:
      self.wait()
    return True

  def wait(self) -> None:
    """Returns once the last save is on disk; raises InputError if it is not."""
    failure = self._settle()
    if failure:
      raise failure

  def restore_latest(
    self, abstract: dict[str, Any], *, partial: bool = False
  ) -> Restored | None:
    """Restores the newest sound step, with a line for each one skipped.

    Args:
      abstract: by item name, a pytree of jax.ShapeDtypeStruct (with sharding;
        without: the first device), or of numpy arrays for leaves that stay on
        the host. None for an item: nested dicts of numpy arrays, from the
        checkpoint's own record.
      partial: whether the checkpoint may hold items that are not asked for.

    Returns:
      None where there is no step at all.

    Raises:
      InputError: the checkpoint is of another state (the line names the leaf),
        cannot be read, or no step is sound.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        return self.restore(step, abstract, partial=partial)
      except _Unsound as damage:
        self._log(f'{self.folder / str(step)}: skipped, {damage}')
    if steps:
      raise InputError(
        f'{self.folder}: none of the steps {steps} is sound; fix: put back a '
        'copy, or remove the folder to start over'
      )
    return None

  def restore(
    self, step: int, abstract: dict[str, Any], *, partial: bool = False
  ) -> Restored:
    """Restores one step as `restore_latest` does; raises if it is unsound."""
    restored = self._read(self._manager, step, abstract, partial)
    self._sound.add(step)
    return restored

  def best_step(self) -> int | None:
    """Returns the step of the best score that is still on disk."""
    return _best(self._scores, self.steps(), self._best)

  def verify_latest(self, abstract: dict[str, Any] | None = None) -> int:
    """Reads the last step back from disk, as another process would.

    Args:
      abstract: as for `restore_latest`; None reads everything to the host, one
        item at a time.

    Returns:
      The step.

    Raises:
      InputError: there is none, it is not the one last saved, or not sound.
    """
    self.wait()
    steps = self.steps()
    expected = max(self._sound, default=steps[-1] if steps else None)
    if not steps or steps[-1] != expected:
      raise InputError(
        f'{self.folder}: the last step on disk is '
        f'{steps[-1] if steps else "missing"}, expected {expected}; fix: run '
        'the same command again, it continues from the newest sound step'
      )
    with self._open() as fresh:
      try:
        record = _read_record(fresh, self.folder, expected)
        for item in record['leaves']:
          wanted = abstract[item] if abstract else None
          self._read(fresh, expected, {item: wanted}, partial=True)
      except _Unsound as damage:
        raise InputError(
          f'{self.folder / str(expected)}: not sound after saving, {damage}; '
          'fix: check the disk and run the same command again, it continues '
          'from the newest sound step'
        ) from damage
    return expected

  def close(self) -> None:
    """Waits for the last save and ends Orbax's threads."""
    try:
      self.wait()
    finally:
      self._manager.close()
      if self._swept:
        self._remove([self.folder / _TRASH])

  def _open(self) -> ocp.CheckpointManager:
    """Returns a new manager; COMMIT_FILE, so an empty folder is no step."""
    preserve = [policies.LatestN(self._keep), _PreserveBest(self)]
    options = ocp.CheckpointManagerOptions(
      create=False,
      save_root_metadata=False,
      atomicity_options=_ATOMICITY,
      step_name_format=_STEP_NAMES,
      todelete_subdir=_TRASH,
      preservation_policy=policies.AnyPreservationPolicy(preserve),
      # Made at once: made in the background, a failure takes minutes to show.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    try:
      return ocp.CheckpointManager(self.folder, options=options)
    except Exception as error:
      raise InputError(
        f'{self.folder}: the steps cannot be listed ({_reason(error)}); fix: '
        'make it a readable folder, move a damaged step elsewhere'
      ) from error

  def _settle(self) -> InputError | None:
    """Waits for the pending save; returns what became of it, if bad."""
    if self._pending is None:
      return None
    step = self._pending
    try:
      self._manager.wait_until_finished()
      if not (self.folder / str(step)).exists():
        raise FileNotFoundError(2, 'vanished after the save')
    except Exception as error:
      return self._lost(error)
    self._pending = None
    self._sound.add(step)
    return None

  def _lost(self, error: Exception) -> InputError:
    """Forgets the pending step, frees its bytes, and says what happened."""
    step, self._pending = self._pending, None
    self._scores.pop(step, None)
    try:
      partial = self.folder / str(step)
      if step not in self.steps():
        self._remove([partial])
      steps = self.steps()
    except OSError:
      steps = []
    last = f'continues from step {steps[-1]}' if steps else 'starts over'
    return InputError(
      f'{self.folder / str(step)}: the checkpoint was not written '
      f'({_reason(error)}); needs {_size(self._pending_bytes)}, '
      f'{_free(self.folder)} free; fix: make room or mend the folder and run '
      f'the same command again, it {last}'
    )

  def _make_room(self, step: int) -> None:
    """Clears what stands in the way of a save of `step`.

    Steps from `step` on that this object neither saved nor restored were
    skipped as unsound: they are renamed, not deleted. What killed runs left
    unfinished goes at the first save (never at a mere reading).
    """
    if _is_primary():
      self.folder.mkdir(parents=True, exist_ok=True)
      steps = self.steps()
      for old in [s for s in steps if s >= step and s not in self._sound]:
        aside = self.folder / _ASIDE / str(old)
        self._remove([aside])
        aside.parent.mkdir(exist_ok=True)
        (self.folder / str(old)).rename(aside)
        self._log(f'{self.folder / str(old)}: moved to {_ASIDE}/{old}')
      self._remove([self.folder / _TRASH])
      if not self._swept:
        names = {str(s) for s in steps}
        paths = [p for p in self.folder.iterdir() if p.name.isdigit()]
        self._remove([p for p in paths if p.name not in names])
    _barrier('dpo_jax_make_room')
    if not self._swept:
      self._manager.reload()
    self._swept = True

  def _remove(self, paths: list[epath.Path]) -> None:
    """Removes folders, on the first process only."""
    for path in paths if _is_primary() else []:
      if path.exists():
        path.rmtree(missing_ok=True)

  def _read(
    self,
    manager: ocp.CheckpointManager,
    step: int,
    abstract: dict[str, Any],
    partial: bool,
  ) -> Restored:
    """Reads items one by one, checked before (tree) and after (bits)."""
    record = _read_record(manager, self.folder, step)
    self._check(step, record, abstract, partial)
    items = {}
    for item, wanted in abstract.items():
      leaves = record['leaves'][item]
      if wanted is None:
        wanted = tree.unflatten_names(_host_leaves(leaves))
      items[item] = _read_item(manager, step, item, wanted, leaves)
    return Restored(step, items, record['meta'])

  def _check(
    self, step: int, record: dict, abstract: dict[str, Any], partial: bool
  ) -> None:
    """Raises InputError where the step is of another state than asked for."""
    there = record['leaves']
    fix = 'use the config that the run was started with, or a new --workdir'
    wanted = {item: 0 for item in abstract}
    found = {item: 0 for item in there if not partial or item in abstract}
    where = str(self.folder / str(step))
    tree.check_same(wanted, found, where=f'{where}: items differ', fix=fix)
    for item, wanted in abstract.items():
      if wanted is not None:
        found = _host_leaves(there[item])
        tree.check_same(wanted, found, where=f'{where}/{item}', fix=fix)

  def _read_scores(self) -> dict[int, float]:
    """Returns the scores of the steps on disk whose records can be read."""
    scores = {}
    for step in self.steps():
      try:
        score = _parse_record(self.folder, step)['score']
      except Exception:  # restoring says what is wrong with it
        continue
      if score is not None:
        scores[step] = score
    return scores


class _PreserveBest:
  """Preserves the step of the best score; NaN never counts."""

  def __init__(self, checkpoints: Checkpoints):
    self._owner = checkpoints

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Returns which of Orbax's checkpoints to keep."""
    del context
    steps = [info.step for info in checkpoints]
    best = _best(self._owner._scores, steps, self._owner._best)
    return [step == best for step in steps]
