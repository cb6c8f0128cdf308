"""R5 storage faults of folders and streams: what a run may not write to.

Comes in: a run, and a fault at its start or behind the save of a step. Goes
out: whether it ended with one line that names the place and a fix, never with
0 but with a sound last checkpoint, and whether it then went on.

Root may write anywhere, so two things stand in for a user without permission:
a mount that is read-only, and a process without the capabilities of root.
"""

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import machine
from score import Line

_AT = (0, 2, 5)  # steps behind which the fault comes; 0 = before the start


def are_refused(line: Line, whole) -> None:
  """R5: folders that cannot be written or are gone, streams that are closed."""
  for at in _AT:
    line.fault(f'read-only at {at}', _hurt(line, whole, at, _ReadOnly))
    line.fault(f'no permission at {at}', _hurt(line, whole, at, _NoPermission))
    line.fault(f'a file for it at {at}', _hurt(line, whole, at, _File))
  for at in _AT[1:]:
    line.fault(f'checkpoints are gone at {at}', _hurt(line, whole, at, _Gone))
  for at in (0, 5):
    line.fault(f'closed pipe at {at}', _stream(line, whole, at, _closed_pipe))
  line.fault('full disk under stdout', _stream(line, whole, 0, _full))


class _ReadOnly:
  """A folder of a file system that is read-only."""

  capable = True

  def __init__(self, folder: pathlib.Path):
    self.folder = str(folder)

  def begin(self) -> None:
    mount = ['mount', '--bind', self.folder, self.folder]
    subprocess.run(mount, check=True)
    subprocess.run(['mount', '-o', 'remount,bind,ro', self.folder], check=True)

  def end(self) -> None:
    subprocess.run(['umount', '-l', self.folder], check=True)


class _NoPermission:
  """A folder that its owner may not write to."""

  capable = False

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def begin(self) -> None:
    self.folder.chmod(0o555)

  def end(self) -> None:
    self.folder.chmod(0o755)


class _File:
  """A file where a folder should be."""

  capable = True

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def begin(self) -> None:
    shutil.rmtree(self.folder)
    self.folder.write_text('a file\n')

  def end(self) -> None:
    self.folder.unlink()
    self.folder.mkdir()


class _Gone(_File):
  """A folder that is removed; a run may make it again."""

  def begin(self) -> None:
    shutil.rmtree(self.folder)

  def end(self) -> None:
    self.folder.mkdir(exist_ok=True)


def _hurt(line: Line, whole, at: int, kind) -> str:
  """What is wrong with a run whose folder is hurt behind step `at`."""
  workdir = line.place('folder')
  (workdir / 'checkpoints').mkdir(parents=True)
  fault = kind(workdir / 'checkpoints' if at else workdir)

  def plant():
    if not kind.capable:
      _drop_capabilities()
    if at:
      at_save(at, fault.begin)

  if not at:
    fault.begin()
  child = line.train(workdir, inject=plant)
  code, text = child.wait(), child.text()
  if code == 0 and at:
    # It may have made the folder again: then its last step is sound.
    return machine.differences(machine.outcome(workdir), whole)
  fault.end()
  problem = machine.one_line(code, text, str(workdir))
  return problem or line.goes_on(workdir, whole)


def at_save(step: int, act: Callable[[], None]) -> None:
  """Plants an action once a step is on disk."""

  def once_saved(run, state):
    run.saved.wait()
    act()

  machine.after_save(step, once_saved)


def _drop_capabilities() -> None:
  """Takes from this process what lets root pass by permissions."""
  libc = ctypes.CDLL(None, use_errno=True)
  header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
  # Effective, permitted, inheritable; then the same of the numbers above 31.
  data = (ctypes.c_uint32 * 6)()
  if libc.capget(header, data):
    raise OSError(ctypes.get_errno(), 'capget')
  for i in (0, 1):
    data[i] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
  if libc.capset(header, data):
    raise OSError(ctypes.get_errno(), 'capset')


def _stream(line: Line, whole, at: int, plant) -> str:
  """What is wrong with a run whose stdout takes no more."""
  workdir = line.place('stream')
  child = line.train(workdir, inject=lambda: plant(at))
  said = 'stdout: cannot be written'
  problem = machine.one_line(child.wait(), child.text(), said)
  if problem:
    return problem
  saved = (machine.steps(workdir) or [0])[-1]
  if saved < machine.last_step(workdir):
    return f'step {saved} is saved, not {machine.last_step(workdir)}'
  return line.goes_on(workdir, whole)


def _full(at: int) -> None:
  """Plants a stdout on a disk that is full."""
  del at
  _take_stdout(os.open('/dev/full', os.O_WRONLY))


def _closed_pipe(at: int) -> None:
  """Plants a pipe as stdout, whose reader goes behind a step."""
  read, write = os.pipe()
  _take_stdout(write)
  if at:
    at_save(at, lambda: os.close(read))
  else:
    os.close(read)


def _take_stdout(descriptor: int) -> None:
  """Makes a descriptor the stdout of this process, as a shell does."""
  sys.stdout.flush()
  sys.stdout.detach()  # else its end would close the descriptor
  os.dup2(descriptor, 1)
  os.close(descriptor)
  sys.__stdout__ = sys.stdout = open(1, 'w', buffering=1, closefd=False)
