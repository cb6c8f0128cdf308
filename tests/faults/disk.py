"""R5 faults of storage, R6 bytes that are others than those written."""

import contextlib
import os
import pathlib
import resource
import shutil
import subprocess
import time

import folders
import machine
from score import Line

_FREE = 64_000_000


def survives_storage(line: Line) -> None:
  """R5: no exit 0 without a sound checkpoint; one line; then it goes on."""
  whole = machine.outcome(line.baseline())
  sizes = [int(60_000 * 1.32**k) for k in range(20)]
  for size in line.pick(sizes[12:13], sizes):
    line.fault(f'disk of {size:,} bytes', _full(line, size, whole))
  if line.size == 'small':
    return
  for what in ('files of at most', 'descriptors'):
    for size in (2_000, 40_000, 400_000) if 'files' in what else (24, 48, 96):
      line.fault(f'{what} {size:,}', _limited(line, what, size, whole))
  for at in (2, 5):
    line.fault(f'folder vanishes at {at}', _vanish(line, at))
  for seconds in (-86400, 86400, -3_000_000_000):
    problem = _odd(line, whole, lambda s=seconds: _clock(s))
    line.fault(f'clock {seconds:+} s', problem)
  line.fault('slow disk', _odd(line, whole, _slow))
  folders.are_refused(line, whole)


@contextlib.contextmanager
def _mounted(folder: pathlib.Path, size: int):
  """A disk of so many bytes; yields how to make it larger, None = cannot."""
  folder.mkdir(parents=True)
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
  if subprocess.run(mount, capture_output=True).returncode:
    yield None
    return

  def grow():
    subprocess.run(
      ['mount', '-o', f'remount,size={_FREE}', str(folder)], check=True
    )

  try:
    yield grow
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=True)


def _full(line: Line, size: int, whole) -> str:
  """A run on a disk that is full at some point."""
  folder = line.place('disk')
  with _mounted(folder, size) as grow:
    if grow is None:
      line.notes.append('no disk can be mounted here')
      return ''
    workdir = folder / 'run'
    out = line.place('out')
    child = machine.command(machine.flags(workdir), out)
    problem = _one_line(child, workdir)
    if problem:
      return problem
    grow()
    child = machine.command(machine.flags(workdir), out)
    if child.wait():
      return f'with room: {child.text()[-300:]}'
    return machine.differences(machine.outcome(workdir), whole)


def _one_line(child: machine.Child, workdir) -> str:
  """What is wrong with the end of a command that storage failed."""
  code, text = child.wait(), child.text()
  if code == 0 and 'Traceback' not in text:
    return ''  # it fitted; what it left is compared later
  problem = machine.one_line(code, text)
  if problem:
    return problem
  if os.path.exists(workdir / 'DONE'):
    return 'it is done, and failed'
  return ''


def _limited(line: Line, what: str, size: int, whole) -> str:
  """A run that may write no longer file, or open no more."""
  kind = resource.RLIMIT_FSIZE if 'files' in what else resource.RLIMIT_NOFILE

  def plant():
    resource.setrlimit(kind, (size, size))

  workdir = line.place('limited')
  child = line.train(workdir, inject=plant)
  return _one_line(child, workdir) or line.goes_on(workdir, whole)


def _vanish(line: Line, at: int) -> str:
  """A run whose folder is removed."""
  workdir = line.place('vanishing')
  child = line.train(workdir)
  machine.wait_for(workdir, at, child)
  shutil.rmtree(workdir, ignore_errors=True)
  code, text = child.wait(), child.text()
  if code == 0:
    return 'exit 0 without its folder'
  return 'a traceback' if 'Traceback' in text else ''


def _odd(line: Line, whole, plant) -> str:
  """A run in an odd environment, which must be the usual one."""
  workdir = line.place('odd')
  child = line.train(workdir, inject=plant)
  if child.wait():
    return f'exit {child.code}: {child.text()[-300:]}'
  return machine.differences(machine.outcome(workdir), whole)


def _clock(seconds: float) -> None:
  """Plants a clock that jumps after a while."""
  real, began = time.time, time.monotonic()
  time.time = lambda: real() + seconds * (time.monotonic() - began > 1)


def _slow() -> None:
  """Plants a disk that takes its time."""
  real = os.fsync

  def fsync(descriptor):
    time.sleep(0.2)
    return real(descriptor)

  os.fsync = fsync


def survives_corruption(line: Line) -> None:
  """R6: bytes that changed are refused by name, passed over, or harmless."""
  run = line.baseline()
  expected = machine.states(run)[0]
  count = line.pick(40, 800)
  while count:
    size = min(count, 50)
    count -= size
    seeds = [line.random.random() for _ in range(size)]
    found = machine.call(lambda s=seeds: [_flip(run, expected, x) for x in s])
    *first, last = found
    for what, problem in first:
      line.count(what, problem)
    line.fault(*last)
  if line.size == 'small':
    return
  whole = machine.outcome(run)
  names = ('config.json', 'env.json', 'metrics.jsonl', 'model.json')
  for name in names:
    for _ in range(12):
      line.fault(name, _edit(line, run, name, whole))


def _flip(run: pathlib.Path, expected, seed: float) -> tuple[str, str]:
  """(what was done to a checkpoint, what is wrong with what is restored)."""
  import random
  import tempfile

  from dpo_jax import tree
  from dpo_jax.storage import checkpoints, files
  from dpo_jax.types import InputError

  dice = random.Random(seed)
  with tempfile.TemporaryDirectory() as top:
    folder = pathlib.Path(top) / 'checkpoints'
    shutil.copytree(run / 'checkpoints', folder)
    step = dice.choice(machine.steps(run)[-2:])
    listed = sorted(p for p in (folder / str(step)).rglob('*') if p.is_file())
    # Mostly numbers; the other files are as many, and small.
    large = sorted(listed, key=lambda p: -p.stat().st_size)[:8]
    path = dice.choice(dice.choice((large, large, listed)))
    what = _spoil(path, dice, listed)
    names = ('params', 'opt_state', 'loss_state', 'rng', 'data')
    what = f'{what} of {path.relative_to(folder)}'
    try:
      with checkpoints.Checkpoints(folder, log=lambda _: None) as saved:
        restored = saved.restore_latest(dict.fromkeys(names), partial=True)
    except InputError as error:
      return what, '' if str(folder) in str(error) else f'unnamed: {error}'
    except Exception as error:
      return what, f'{type(error).__name__}: {error}'
    import numpy as np

    parts = [
      np.ascontiguousarray(leaf).tobytes()
      for _, leaf in tree.flatten_with_names(restored.items)
    ]
    same = files.bytes_digest(parts) == expected[str(restored.step)]
    return what, '' if same else f'other numbers as step {restored.step}'


def _spoil(path: pathlib.Path, dice, others=()) -> str:
  """Changes a file; returns in words how."""
  data = bytearray(path.read_bytes())
  kind = dice.choice(('flip', 'flip', 'flip', 'truncation', 'deletion', 'swap'))
  if kind == 'deletion':
    path.unlink()
  elif kind == 'swap' and others:
    path.write_bytes(dice.choice(others).read_bytes())
  elif kind == 'truncation':
    path.write_bytes(data[: dice.randrange(len(data) + 1)])
  elif data:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
  return kind


def _edit(line: Line, run, name: str, whole) -> str:
  """A run that is continued after one of its files was changed."""
  workdir = machine.copy(run, line.place('edited'), at=7)
  what = _spoil(workdir / name, line.random)
  child = line.train(workdir)
  code, text = child.wait(), child.text()
  if 'Traceback' in text or code not in (0, 2):
    return f'{what}: exit {code}, {text[-300:]}'
  if code == 2:
    return '' if name in text else f'{what}: unnamed, {text[-300:]}'
  problem = machine.differences(machine.outcome(workdir), whole)
  # What is gone is said, and what it held begins anew.
  said = f'{name}: missing' in text
  return '' if said else problem and f'{what}: other {problem}'
