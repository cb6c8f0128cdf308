"""a step that ended a run -> its inputs on disk, and the same step again.

Comes in: the state that a bad step started from, and its batch. Goes out:
WORKDIR/replay/STEP, which --mode=replay takes the step from. The replay makes
one update and compares every number with what the run saw, bit for bit: equal
bits speak for the inputs, other bits for the machine. Changes no run.

In the folder: state/ (a checkpoint: weights, moments, running numbers, key,
step), batch.npz, and replay.json (ids of the records, the bits of the metrics),
which is written last.
"""

import shlex
from typing import Any

import jax
import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import errors, sharding, tree, types
from dpo_jax.run import job as job_lib
from dpo_jax.run import processes
from dpo_jax.run import reference as reference_lib
from dpo_jax.run import session as sessions
from dpo_jax.run.job import Job
from dpo_jax.run.session import Session
from dpo_jax.storage import checkpoints, files, handover, state_items
from dpo_jax.types import Frozen, InputError, TrainState

_FOLDER = 'replay'
_SHOWN = ('loss', 'grad_norm', 'update_norm', 'guard/second_moment')


def keep(
  session: Session,
  step: int,
  state: TrainState,
  reference: Frozen,
  metrics: Any,
  problem: str,
) -> str:
  """Writes what a step was made of; called in every process.

  Args:
    session: the open workdir.
    step: number of the step, from 1.
    state: before the step.
    reference: before the step.
    metrics: of the step, on the host, as the step returned them.
    problem: in words.

  Returns:
    How to take the step again, in words; or why that cannot be done: a full
    disk must not hide what ended the run.
  """
  path = session.directory.path
  try:
    _write(session, step, state, reference, metrics, problem)
  except InputError as error:
    return f'the step could not be kept for a replay ({error})'
  return (
    f'take the step again with: python -m dpo_jax.main --mode=replay '
    f'--workdir={shlex.quote(str(path))} --step={step}'
  )


def _write(session, step, state, reference, metrics, problem) -> None:
  """Writes the folder of a step."""
  job, folder = session.job, session.directory.path / _FOLDER / str(step)
  plan, part = job.train_plan, job.inputs.train
  if processes.is_first() and folder.exists():
    files.remove(folder)
  moved = reference.weights if job.reference_every else None
  items = state_items.items_of(state, _no_counts(job), moved)
  with checkpoints.Checkpoints(folder / 'state', keep=1) as saved:
    saved.save(step - 1, items, sessions.checkpoint_meta(session, 0))
    saved.wait()
  if not processes.is_first():
    return
  host = job_lib.host_batch(plan, part, step - 1)
  path = folder / 'batch.npz'
  with files.storage_errors(path), files.atomic_file(path) as file:
    np.savez(file, **dict(tree.flatten_with_names(host)))
  records = plan.step(step - 1).records
  facts = {
    'step': step,
    'problem': problem,
    'records': [part.store.uids[i] for i in records if i >= 0],
    'key': np.asarray(jax.device_get(state.key)).tolist(),
    'bits': _bits(metrics),
  }
  files.write_json(folder / 'replay.json', facts)


def main(config: ConfigDict, workdir: str, step: str = '') -> int:
  """--mode=replay: takes a bad step of a run again.

  Returns:
    0 if every number of the step has the bits that the run saw, else 1.
  """
  top = files.at(workdir) / _FOLDER
  number = _choose(top, step)
  seen = files.read_json(top / number / 'replay.json')
  with sessions.open_workdir(config, workdir, parts=('train',)) as session:
    job, moves = session.job, session.job.weights.abstract
    wanted = state_items.items_of(
      job.abstract, _no_counts(job), moves if job.reference_every else None
    )
    with checkpoints.Checkpoints(top / number / 'state') as saved:
      restored = saved.restore(int(number) - 1, wanted)
    state, _, moved = state_items.state_of(restored.items)
    job, reference = reference_lib.prepare(
      job, session.cache_dir, session.poll, moved
    )
    batch = _batch(job, int(number) - 1, top / number / 'batch.npz')
    state = with_skipped(job, state, 0)
    _, metrics = job.train_step(state, reference, batch, job.hyper)
    bits = _bits(jax.device_get(metrics))
  return _report(f'{workdir}, step {number}', seen, bits)


def with_skipped(job: Job, state: TrainState, number: int) -> TrainState:
  """Returns a state that came from disk, with its count of skipped updates."""
  where = sharding.replicated(job.mesh)
  return state._replace(skipped=handover.put(np.int32(number), where))


def _no_counts(job: Job) -> np.ndarray:
  """Counts of trained records, which no replay needs."""
  return np.zeros(len(job.inputs.train.store), np.int32)


def _choose(top: files.AnyPath, step: str) -> str:
  """Returns the number of the kept step to replay."""
  kept = top.iterdir() if top.exists() else ()
  steps = sorted((p.name for p in kept if p.name.isdecimal()), key=int)
  if not steps or (step and step not in steps):
    listed = f'use one of {", ".join(steps)}' if steps else 'train first'
    raise errors.refuse(
      top / step if step else top,
      'no step that ended the run was kept here',
      f'{listed}; a step is kept when its numbers end a run',
    )
  return step or steps[-1]


def _batch(job: Job, t: int, path: files.AnyPath) -> types.Batch:
  """The kept batch of step t, on the devices."""
  num_rows = job.train_plan.step(t).num_rows
  like = job_lib.host_batch(job.train_plan, job.inputs.train, t)
  names = [name for name, _ in tree.flatten_with_names(like)]
  with files.load_arrays(path) as kept:
    if sorted(kept.files) != sorted(names):
      raise errors.refuse(
        path, 'not a batch of this run', 'use the version that wrote it'
      )
    leaves = [kept[name] for name in names]
  host = jax.tree.unflatten(jax.tree.structure(like), leaves)
  own = handover.own_rows(job.mesh, num_rows)
  if own is not None:
    rows = jax.tree.map(lambda x: x[:, own], host.rows)
    host = host._replace(rows=rows)
  return handover.put_batch(job.mesh, host, num_rows)


def _bits(metrics: Any) -> dict[str, str]:
  """{name: 'value bits'} of every number of a step."""
  return {
    name: f'{np.asarray(leaf).item()} {np.asarray(leaf).tobytes().hex()}'
    for name, leaf in tree.flatten_with_names(metrics)
  }


def _report(where: str, seen: dict[str, Any], bits: dict[str, str]) -> int:
  """Prints how the step went and what differs; returns the exit code."""
  values = {name: text.partition(' ')[0] for name, text in bits.items()}
  shown = ', '.join(f'{name} {values[name]}' for name in _SHOWN)
  print(f'{where}: {seen["problem"]}; again: {shown}')
  print(f'records: {", ".join(seen["records"])}')
  before = seen['bits']
  other = [
    name
    for name in sorted(before.keys() | bits.keys())
    if before.get(name) != bits.get(name)
  ]
  for name in other:
    print(f'{name}: {before.get(name)} in the run, {bits.get(name)} now')
  if not other:
    print(f'all {len(bits)} numbers have the bits that the run saw')
  return int(bool(other))
