"""R5 faults of storage: disks that are full or slow, limits, clocks."""

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
