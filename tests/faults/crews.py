"""R3 elastic: several devices and processes; how they are started."""

import itertools
import os
import pathlib
import signal
import sys
import time

import machine
import numpy as np
from score import Line

sys.path.insert(0, str(machine.ROOT / 'tests' / 'run'))
import many_processes  # noqa: E402

HEARTBEAT = 20  # seconds
_AXES = ('data', 'fsdp', 'tensor')
Layout = tuple[int, int]  # processes, devices of each
_LAYOUTS = {
  1: [(1, 1)],
  2: [(1, 2), (2, 1)],
  4: [(1, 4), (2, 2), (4, 1)],
  8: [(1, 8), (2, 4), (4, 2)],
}


def crew(line: Line, workdir, processes=2, devices=1, inject=None, **options):
  """Starts the processes of one run; inject: {rank: what to plant}."""
  joins = [
    f'--coordinator_address=localhost:{many_processes.port()}',
    f'--num_processes={processes}',
  ]
  env = {'DPO_JAX_HEARTBEAT': str(HEARTBEAT)}
  started = []
  for rank in range(processes):
    argv = [*machine.flags(workdir, **options), *joins, f'--process_id={rank}']
    out = line.place(f'{workdir.name}_{rank}').with_suffix('.out')
    plant = (inject or {}).get(rank)
    started.append(machine.command(argv, out, devices, env, plant))
  return started


def moves(line: Line) -> None:
  """R3: a run goes on on other devices and processes: same rows, same loss."""
  found = cells()
  line.random.shuffle(found)
  for before, after, axis in found[: line.pick(1, None)]:
    what = f'{before} to {after} by {axis}'
    line.fault(what, _move(line, before, after, axis))


def cells() -> list[tuple[Layout, Layout, str]]:
  """Moves from 8 devices to 1, 2, 4, 8 and back, by each axis.

  The layouts of a number of devices take turns, so that 1, 2 and 4 processes
  are on either side.
  """
  eights, found = itertools.cycle(_LAYOUTS[8]), []
  others = {size: itertools.cycle(_LAYOUTS[size]) for size in (1, 2, 4)}
  for axis in _AXES:
    for size in (1, 2, 4, 8):
      for is_back in (False, True):
        large = next(eights)
        # Of 8 devices to 8, the processes change: the next one is another.
        small = next(others.get(size, eights))
        pair = (small, large) if is_back else (large, small)
        found.append((*pair, axis))
    next(eights)  # else an axis begins with the layouts of the one before
  return found


def _start(line, workdir, layout, axis, plant=None, **options):
  processes, devices = layout
  mesh = {'mesh__data': 1, f'mesh__{axis}': -1}
  if processes == 1:
    return [
      line.train(workdir, devices=devices, inject=plant, **mesh, **options)
    ]
  plants = dict.fromkeys(range(processes), plant)
  return crew(line, workdir, processes, devices, plants, **mesh, **options)


def _move(line: Line, before, after, axis: str) -> str:
  """What is wrong after a run moved to other devices in its middle."""
  options = {'train__num_steps': 40, 'train__save_every': 20}
  options |= {'train__batch_size': 8, 'train__eval_every': 0}
  whole = line.baseline(inject=_take_notes, **options)
  workdir = line.place('moved')

  def plant():
    _take_notes()
    _die_with(workdir / 'checkpoints' / '20')

  started = _start(line, workdir, before, axis, plant, **options)
  codes = [child.wait() for child in started]
  if machine.steps(workdir) != [20] or -signal.SIGKILL not in codes:
    text = started[0].text()
    return f'{codes}: steps {machine.steps(workdir)}, {text[-300:]}'
  for child in _start(line, workdir, after, axis, _take_notes, **options):
    if child.wait():
      return f'exit {child.code}: {child.text()[-300:]}'
  saved, *_ = _notes(workdir, 'saved')
  _, resumed = _notes(workdir, 'begun')
  if saved != resumed:
    return f'{saved} was saved, {resumed} went on'
  if _notes(workdir, 'rows') != _notes(whole, 'rows'):
    return 'other rows'
  return _other_losses(machine.numbers(whole), machine.numbers(workdir))


def _other_losses(one: dict[str, float], other: dict[str, float]) -> str:
  """What differs in the numbers of two runs; losses may by 1e-6."""
  if one.keys() != other.keys():
    return 'other lines'
  for key, value in one.items():
    gap = abs(value - other[key]) if isinstance(value, float) else 0
    if key.endswith('num_tokens') and value != other[key]:
      return f'{key}: other tokens'
    if key.endswith(' loss') and not gap <= 1e-6:
      return f'{key}: {gap:.1e} apart'
  return ''


def _notes(workdir: pathlib.Path, name: str) -> list[str]:
  """Lines that the first process of a run noted, over all its starts."""
  path = workdir.with_suffix(f'.{name}')
  return path.read_text().splitlines() if path.exists() else []


def _note(name: str, value) -> None:
  """Adds a line to the notes of this process's run."""
  from dpo_jax.run import processes

  word = next(w for w in sys.argv if w.startswith('--workdir='))
  path = pathlib.Path(word.partition('=')[2]).with_suffix(f'.{name}')
  if processes.is_first():
    with open(path, 'a') as file:
      file.write(f'{value}\n')


def _take_notes() -> None:
  """Plants notes of the rows of each update, and of the state at the start."""
  from dpo_jax import train
  from dpo_jax.run import bookkeeping

  add, loop = bookkeeping.TrainedCounts.add, train._loop

  def noted_add(self, records, num_tokens):
    _note('rows', sorted(records.tolist()))
    add(self, records, num_tokens)

  def noted_loop(run, state, *rest):
    _note('begun', _fingerprint(state))
    return loop(run, state, *rest)

  bookkeeping.TrainedCounts.add, train._loop = noted_add, noted_loop


def _fingerprint(state) -> str:
  """A digest of the bits of a state, the same on any devices."""
  import jax

  from dpo_jax import tree
  from dpo_jax.storage import files, state_items

  with jax.transfer_guard('allow'):
    items = state_items.items_of(state, np.zeros(1, np.int32), None)
    hashes = [
      # One by one: what is in flight on several devices of a process is few.
      tree.fingerprint({name: leaf})
      for name, leaf in tree.flatten_with_names(items)
    ]
  return files.bytes_digest([repr(hashes).encode()])


def _die_with(step: pathlib.Path) -> None:
  """Plants a SIGKILL to this process as soon as a step is committed."""

  def die(run, state):
    _note('saved', _fingerprint(state))
    until = time.monotonic() + machine.LIMIT
    while time.monotonic() < until:
      if (step / 'commit_success.txt').exists():
        os.kill(os.getpid(), signal.SIGKILL)
      time.sleep(0.01)

  machine.after_save(int(step.name), die)
