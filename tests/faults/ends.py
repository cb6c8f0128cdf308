"""R7 processes: what befalls one of them ends all in time, with one line.

Comes in: a crew, one process of which is hurt while it compiles its first
update or in a later one. Goes out: exit codes of all that can end, seconds,
and whether the line names the process, the step and what to do.
"""

import math
import os
import pathlib
import re
import signal
import threading
import time
from typing import NamedTuple

import crews
import machine
from score import Line

_AT = 4  # updates before the one of phase 'step'
_SIGNALS = {'kill': signal.SIGKILL, 'stop': signal.SIGSTOP}
# Exit codes of the processes that can still end.
_WANTED = {'kill': 3, 'stop': 3, 'stuck': 3, 'slow': 143, 'NaN': 1}
# jax's client aborts as soon as the sockets of its coordinator, which is in
# the first process, are closed: no code of ours runs between.
_ABORTED = -signal.SIGABRT


class _Cell(NamedTuple):
  """One thing that befalls one process."""

  kind: str  # of _WANTED
  rank: int  # of the process
  count: int  # of processes
  phase: str  # 'compile' or 'step'


def ends_together(line: Line) -> None:
  """R7: what befalls one process ends all in time, with a line that helps."""
  cells = [
    _Cell(kind, rank, count, phase)
    for count in (2, 4)
    for rank in range(count)
    for kind in _WANTED
    for phase in ('compile', 'step')
  ]
  if line.size == 'small':
    cells = [_Cell('kill', 1, 2, 'step')]
  # Any part of them has all kinds.
  line.random.shuffle(cells)
  line.notes.append(
    'the first process killed: jax aborts the others at once (134), unnamed; '
    'stuck in a compile: train.watchdog_minutes is what ends it'
  )
  for cell in cells:
    line.fault(
      f'{cell.kind} of {cell.rank} of {cell.count} in {cell.phase}',
      _befall(line, cell),
    )


def _befall(line: Line, cell: _Cell) -> str:
  """What is wrong with the end of a crew of which one is hurt."""
  workdir = line.place(cell.kind)
  mark, delay = workdir.with_suffix('.hurt'), line.random.random() * 0.3
  options = {'train__num_steps': 400, 'train__save_every': 2}
  if cell.kind == 'stuck' and cell.phase == 'compile':
    # Hosts differ in how long they compile: only the watchdog counts then.
    options['train__watchdog_minutes'] = crews.HEARTBEAT / 60
  inject = {cell.rank: lambda: _plant(cell, mark, delay)}
  started = crews.crew(line, workdir, cell.count, inject=inject, **options)
  began = _when(mark, started[cell.rank])
  if cell.kind == 'slow':
    # Nobody took it for lost: the run goes on until a signal comes.
    machine.wait_for(workdir, 2 * _AT, started[0])
    began = time.time()
    line.random.choice(started).kill(signal.SIGTERM)
  ends = [
    child
    for rank, child in enumerate(started)
    if rank != cell.rank or cell.kind not in _SIGNALS
  ]
  until = began + 4 * crews.HEARTBEAT
  codes = [child.wait(until - time.time()) for child in ends]
  seconds = time.time() - began
  for child in started:
    child.kill(signal.SIGKILL)
    child.wait()
  text = ''.join(child.text() for child in ends)
  problem = _problem(cell, codes, seconds, text)
  return problem and f'{problem} after {seconds:.0f} s: {text[-300:]}'


def _when(mark: pathlib.Path, child: machine.Child) -> float:
  """Waits until a process is hurt; returns when it was."""
  until = time.monotonic() + machine.LIMIT
  while not mark.exists() and child.poll() is None:
    if time.monotonic() > until:
      raise TimeoutError(f'it is not hurt: {child.text()[-2000:]}')
    time.sleep(0.02)
  return mark.stat().st_mtime if mark.exists() else time.time()


def _problem(cell: _Cell, codes: list[int], seconds: float, text: str) -> str:
  """What is wrong with exit codes, seconds and words; '' if nothing is."""
  wanted = {_WANTED[cell.kind]}
  if cell.kind == 'kill' and cell.rank == 0:
    wanted.add(_ABORTED)
  if not wanted.issuperset(codes):
    return f'exit {codes}'
  if seconds > crews.HEARTBEAT + 5:
    return f'more than {crews.HEARTBEAT + 5} s'
  if 3 in codes:
    who = f'process {cell.rank} of {cell.count}'
    said = rf'{who}\b.* step (?:is )?\d+;.*fix: '
    return '' if re.search(said, text) else 'it is not named'
  return ''


def _plant(cell: _Cell, mark: pathlib.Path, delay: float) -> None:
  """Plants what befalls this process."""

  def act():
    mark.touch()
    if cell.kind in _SIGNALS:
      os.kill(os.getpid(), _SIGNALS[cell.kind])
    elif cell.kind == 'stuck':
      time.sleep(10 * machine.LIMIT)
    else:
      time.sleep(crews.HEARTBEAT + 5)

  if cell.kind == 'NaN':
    _nan(6 if cell.phase == 'step' else 0, mark)
  elif cell.phase == 'compile':
    _in_compile(act)
  elif cell.kind in _SIGNALS:
    # At any point of an update, also while the main thread is with a device.
    _in_batch(lambda: threading.Timer(delay, act).start(), once=True)
  elif cell.kind == 'stuck':
    _in_batch(act, once=True)
  else:
    _in_batch(lambda: mark.touch() or time.sleep(1), once=False)


def _in_compile(act) -> None:
  """Plants an action in what compiles the first update."""
  from jax._src import compilation_cache

  read = compilation_cache.get_executable_and_time
  compiles = []

  def hurt(*args):
    if compiles.pop() if compiles else None:
      act()
    return read(*args)

  compilation_cache.get_executable_and_time = hurt

  def first(made, state):
    if not made:
      compiles.append(True)
    return state

  machine.before_updates(first)


def _in_batch(act, once: bool) -> None:
  """Plants an action in the making of a batch, and of those after it."""
  from dpo_jax.run import job as jobs

  host_batch = jobs.host_batch

  def hurt(plan, part, t, rows=None):
    if t == _AT or (t > _AT and not once):
      act()
    return host_batch(plan, part, t, rows)

  jobs.host_batch = hurt


def _nan(at: int, mark: pathlib.Path) -> None:
  """Plants NaN in the parameters that this process holds, before an update."""

  def spoil(made, state):
    if made != at:
      return state
    mark.touch()
    return state._replace(params=_spoilt(state.params))

  machine.before_updates(spoil)


def _spoilt(params):
  """Parameters of which the first array is NaN on this process's devices."""
  import jax
  import numpy as np

  leaves, structure = jax.tree.flatten(params)
  array = leaves[0]
  with jax.transfer_guard('allow'):
    parts = [
      jax.device_put(np.full_like(part.data, math.nan), part.device)
      for part in array.addressable_shards
    ]
    leaves[0] = jax.make_array_from_single_device_arrays(
      array.shape, array.sharding, parts
    )
  return structure.unflatten(leaves)
