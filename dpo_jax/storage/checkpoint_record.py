"""The integrity record of a checkpoint step, and reads verified against it.

Comes in: items as {name: array}, or a step on disk. Goes out: the record (tree,
shapes, dtypes, one fingerprint per leaf, the caller's JSON) and items whose
bits agree with it, or `Unsound`. Chooses no step and writes nothing.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from dpo_jax import errors, tree
from dpo_jax.storage import files, orbax_parts

_PART = 1 << 28  # bytes of each device that are verified at once
ITEM = 'meta'  # the item that holds the record; reserved

# Errors that say nothing about the bytes on disk. Going back to an older step
# would then lose work for nothing.
_NOT_DAMAGE = re.compile(
  'RESOURCE_EXHAUSTED|PERMISSION_DENIED|Permission denied|Too many open files'
)


class Restored(NamedTuple):
  """A step of a run, as it was saved."""

  step: int
  items: dict[str, Any]  # pytree by item name
  meta: dict[str, Any]  # the JSON dict given to save


class Unsound(Exception):
  """A step is damaged; the message says how."""


def make(
  step: int, items: dict[str, dict[str, Any]], meta: dict[str, Any]
) -> dict[str, Any]:
  """Returns the record of a step: JSON types, with a digest of itself.

  Args:
    step: number of the step, so that a renamed folder is noticed.
    items: {item name: {leaf name: array}}.
    meta: the caller's JSON dict (tuples become lists).
  """
  if ITEM in items:
    raise ValueError(f'an item may not be named {ITEM!r}')
  leaves = {}
  for item, flat in items.items():
    for name, leaf in flat.items():
      # Only raw key data comes back from disk as it was.
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise TypeError(f'{item}/{name}: save jax.random.key_data of a key')
    hashes = tree.fingerprint(flat)
    leaves[item] = {
      name: [list(leaf.shape), tree.dtype_name(leaf), hashes[name]]
      for name, leaf in flat.items()
    }
  record = {'step': step, 'leaves': leaves, 'meta': meta}
  record = files.as_json(record)
  return record | {'sha256': files.digest(record)}


def save_args(
  items: dict[str, dict[str, Any]], record: dict[str, Any]
) -> ocp.args.Composite:
  """Returns Orbax's arguments for a save.

  Orbax stores no empty arrays: only the record holds those.
  """
  args = {ITEM: ocp.args.JsonSave(record)}
  for item, flat in items.items():
    full = {name: leaf for name, leaf in flat.items() if leaf.size}
    if full:
      args[item] = ocp.args.StandardSave(full)
  return ocp.args.Composite(**args)


def read(
  manager: ocp.CheckpointManager, step: int, folder: epath.Path
) -> dict[str, Any]:
  """Reads a step's record and checks its digest and step number.

  Raises:
    Unsound: the record is missing, not JSON, or not what was written.
    InputError: it cannot be read now (permission, memory).
  """

  def parse() -> dict[str, Any]:
    args = ocp.args.Composite(**{ITEM: ocp.args.JsonRestore()})
    record = dict(manager.restore(step, args=args)[ITEM])
    # The digest covers whatever else is in the record, so records of older
    # versions, with other entries, stay valid.
    if record.pop('sha256', None) != files.digest(record):
      raise Unsound('its record does not match its digest')
    if record['step'] != step:
      raise Unsound(f'it is step {record["step"]} under another number')
    return record

  return _together(parse, f'{folder / str(step)}')


def read_step(
  manager: ocp.CheckpointManager,
  step: int,
  folder: epath.Path,
  abstract: dict[str, Any],
  partial: bool,
) -> Restored:
  """Reads a step; checks its tree before and its bits after.

  Args:
    manager: the manager to read with.
    step: number of the step.
    folder: the folder of the steps.
    abstract: {item name: what to restore to}, as in `Checkpoints`.
    partial: whether the step may hold more items than `abstract`.

  Raises:
    Unsound: an item is not what was saved.
    InputError: the step is of another state, or cannot be read now.
  """
  record = read(manager, step, folder)
  # The tree is compared before any array is read: Orbax would cast dtypes
  # silently.
  leaves, where = record['leaves'], folder / str(step)
  fix = 'use the config that the run was started with, or a new --workdir'
  expected = dict.fromkeys(abstract, 0)
  saved = {item: 0 for item in leaves if item in abstract or not partial}
  tree.check_same(expected, saved, where=f'{where}: items', fix=fix)
  for item, wanted in abstract.items():
    if wanted is not None:
      saved = host_leaves(leaves[item])
      tree.check_same(wanted, saved, where=f'{where}/{item}', fix=fix)
  items = {
    item: _read_item(manager, step, folder, item, leaves[item], wanted)
    for item, wanted in abstract.items()
  }
  return Restored(step, items, record['meta'])


def _read_item(
  manager: ocp.CheckpointManager,
  step: int,
  folder: epath.Path,
  item: str,
  leaves: dict[str, list],
  wanted: Any,
  partial: bool = False,
) -> Any:
  """Reads an item into the structure and placement of `wanted`.

  Args:
    manager: the manager to read with.
    step: number of the step.
    folder: the folder of the steps, for messages.
    item: name of the item.
    leaves: the item's part of the record, the same tree as `wanted`.
    wanted: pytree of jax.ShapeDtypeStruct or numpy arrays; None: nested dicts
      of numpy arrays.
    partial: whether the step holds more leaves of the item.

  Raises:
    Unsound: a leaf is not what was saved.
    InputError: it cannot be read now (permission, memory).
  """
  if wanted is None:
    wanted = tree.unflatten_names(host_leaves(leaves))
  named = tree.flatten_with_names(wanted)
  abstract = {
    name: _abstract(leaf) for name, leaf in named if np.prod(leaf.shape)
  }

  def arrays() -> dict[str, Any]:
    if not abstract:
      return {}
    restore = ocp.args.StandardRestore(abstract)
    if partial:
      restore = ocp.args.PyTreeRestore(
        abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
      )
    args = ocp.args.Composite(**{item: restore})
    with jax.transfer_guard('allow'):
      return dict(manager.restore(step, args=args)[item])

  restored = _together(arrays, f'{folder / str(step) / item}')
  for name, leaf in named:
    if name not in restored:
      restored[name] = _empty(leaf)
  _check_bits(item, leaves, restored)
  structure = jax.tree.structure(wanted)
  return structure.unflatten([restored[name] for name, _ in named])


def placed(items: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
  """Returns where the leaves of items are, without their numbers.

  Args:
    items: {item name: {leaf name: array}}.
  """

  def place(leaf):
    if isinstance(leaf, jax.Array):
      return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding
      )
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

  return {
    item: {name: place(leaf) for name, leaf in leaves.items()}
    for item, leaves in items.items()
  }


def verify(
  manager: ocp.CheckpointManager,
  step: int,
  folder: epath.Path,
  abstract: dict[str, Any],
  where: dict[str, dict[str, Any]],
) -> None:
  """Reads all items of a step back, as another process would.

  Args:
    manager: a fresh one, which remembers nothing of the save.
    step: number of the step.
    folder: the folder of the steps.
    abstract: {item name: what to restore to}, as in `Checkpoints`.
    where: `placed` of the items, which several processes read by.

  Raises:
    Unsound: an item is not what was saved.
    InputError: the step cannot be read now.
  """
  for item, leaves in read(manager, step, folder)['leaves'].items():
    if jax.process_count() > 1 and item in where:
      _verify_parts(manager, step, folder, item, leaves, where[item])
    else:
      wanted = {item: abstract.get(item)}
      read_step(manager, step, folder, wanted, True)


def _verify_parts(manager, step, folder, item, leaves, where) -> None:
  """Reads an item as it lies on the devices, a few leaves at a time.

  So each process reads its own shards, and no host holds an item whole.
  """
  part, size = {}, 0
  for number, (name, leaf) in enumerate(where.items(), 1):
    part[name] = leaf
    size += int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    if size > _PART * jax.device_count() or number == len(where):
      own = {name: leaves[name] for name in part}
      _read_item(manager, step, folder, item, own, part, partial=True)
      part, size = {}, 0


def host_leaves(leaves: dict[str, list]) -> dict[str, np.ndarray]:
  """Returns numpy arrays of the record's shapes that take no memory."""
  return {
    name: np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)
    for name, (shape, dtype, _) in leaves.items()
  }


def _check_bits(
  item: str, leaves: dict[str, list], restored: dict[str, Any]
) -> None:
  """Raises Unsound unless shapes, dtypes and fingerprints are the record's."""
  lines = tree.differences(host_leaves(leaves), restored)
  hashes = tree.fingerprint(restored)
  lines += [
    f'{name}: fingerprint {hashes[name]:08x}, saved {saved:08x}'
    for name, (_, _, saved) in leaves.items()
    if name in hashes and hashes[name] != saved
  ]
  if lines:
    more = f' (and {len(lines) - 1} more)' if len(lines) > 1 else ''
    raise Unsound(f'{item}/{lines[0]}{more}')


def _together(action: Callable[[], Any], where: str) -> Any:
  """Runs a read; if it fails on one process, all processes raise Unsound.

  So all processes go back to the same step.
  """
  result, why = None, ''
  # No early return: every process has to reach the allgather below.
  try:
    result = action()
  except Unsound as damage:
    why = str(damage)
  except Exception as error:
    orbax_parts.drop_coroutines(error)
    why = f'unreadable ({orbax_parts.reason(error)})'
    if isinstance(error, MemoryError) or _NOT_DAMAGE.search(str(error)):
      raise errors.refuse(
        where, f'{why} now', 'give this user access to it, and enough memory'
      ) from error
  sound = not why
  if jax.process_count() > 1:
    sound = bool(multihost_utils.process_allgather(np.array(sound)).all())
  if not sound:
    raise Unsound(why or 'unreadable on another process')
  return result


def _abstract(leaf: Any) -> Any:
  """Returns the target of Orbax's restore: numpy stays on the host."""
  if isinstance(leaf, np.ndarray | np.generic):
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(
    jax.local_devices()[0]
  )
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _empty(leaf: Any) -> Any:
  """Returns a leaf without elements; Orbax stores none."""
  if isinstance(leaf, np.ndarray | np.generic):
    return np.zeros(leaf.shape, leaf.dtype)
  return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
