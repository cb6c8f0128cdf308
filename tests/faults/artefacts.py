"""R11 hostile artefacts: files of strangers, through the real command, watched.

Comes in: the artefacts of strangers.py, one command each. Goes out: whether it
ended in time with one line, or trained, and what an audit hook in the process
saw that no file of a stranger may bring about: a program, a connection, code
beside the artefact that is run, a pickle's object, a write outside the places
of the run. What is written without Python is found by comparing the folders
before and after.
"""

import contextlib
import itertools
import os
import pathlib
import resource
import sys
from collections.abc import Iterator

import machine
import strange
import strangers
import suites
from score import Line

_SECONDS = 10  # of CPU, for a refusal
_BYTES = 500 * 2**20  # that a refusal may take beyond the packages
# Events of programs and connections, and of code or an object of a file.
_FORBIDDEN = (
  *('os.system', 'os.exec', 'os.posix_spawn', 'os.startfile', 'pty.spawn'),
  *('socket.connect', 'socket.bind', 'socket.getaddrinfo', 'socket.sendto'),
  *('webbrowser.open', 'urllib.Request', 'shutil.unpack_archive'),
)  # fmt: skip
# Events that change what their arguments name: (event, arguments with a path).
_CHANGES = {
  **{'os.mkdir': 1, 'os.remove': 1, 'os.rmdir': 1, 'os.truncate': 1},
  **{'os.chmod': 1, 'os.chown': 1, 'os.utime': 1, 'os.setxattr': 1},
  **{'os.rename': 2, 'os.link': 2, 'os.symlink': 2, 'shutil.rmtree': 1},
}
# Of them those whose last arguments are descriptors of folders, one per path.
_IN_FOLDERS = {
  *('os.mkdir', 'os.remove', 'os.rmdir', 'os.chmod', 'os.rename', 'os.link'),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def are_refused(line: Line) -> None:
  """R11: tests of the suite, and 60 artefacts and more under an audit hook."""
  suites.of('R11')(line)
  if line.size == 'small':
    return
  top, run = line.place('strangers'), line.baseline()
  found = machine.call(lambda: strangers.write(top, run))
  found = [strange.Artefact(*fields) for fields in found]
  for artefact in found:
    line.fault(artefact.name, _meet(line, artefact, top))
  kinds = sorted({artefact.kind for artefact in found})
  line.notes.append(
    f'{len(found)} artefacts ({", ".join(kinds)}) under an audit hook; a '
    f'refusal takes at most {_SECONDS} CPU-seconds and {_BYTES >> 20} MiB'
  )


def _meet(line: Line, artefact: strange.Artefact, top: pathlib.Path) -> str:
  """What is wrong after a command met an artefact; '' if nothing is."""
  workdir = artefact.workdir or line.place('met')
  log, out = line.place('log'), line.place('out')
  log.touch()
  places = [workdir, out, os.environ['DPO_JAX_CACHE']]
  argv = machine.flags(workdir, **artefact.options)
  before = _listing(artefact.folder)
  child = machine.fork(lambda: _watched(argv, places, top, log), out)
  code = child.wait(60)
  text, seen = child.text(), log.read_text().splitlines()
  took = [x.split()[1:] for x in seen if x.startswith('took ')]
  seen = [x for x in seen if not x.startswith('took ')]
  if seen:
    return f'the hook saw {seen[:3]}'
  if strange.canary(top).exists():
    return 'its code was run'
  if _listing(artefact.folder) != before:
    return 'its folder is another one'
  if artefact.trains or (artefact.trains is None and code == 0):
    missing = [x for x in artefact.says if x not in text]
    if code or missing:
      return f'exit {code}, {missing} not said: {text[-300:]}'
    return ''
  if not took or float(took[0][0]) > _SECONDS or int(took[0][1]) > _BYTES:
    return f'exit {code} after {took} CPU-seconds, bytes: {text[-300:]}'
  return machine.one_line(code, text)


def _listing(folder: pathlib.Path) -> dict[str, tuple[int, int, int]]:
  """Kind, size and time of all that is in a folder."""
  found = {}
  for root, folders, names in os.walk(folder):
    for name in folders + names:
      status = os.lstat(os.path.join(root, name))
      entry = status.st_mode, status.st_size, status.st_mtime_ns
      found[os.path.join(root, name)] = entry
  return found


def _watched(argv: list[str], places: list, top, log: pathlib.Path) -> int:
  """Runs a command under the hook; notes what it saw, and the memory."""
  from dpo_jax import main

  sys.dont_write_bytecode = True
  resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
  before = _peak()
  sys.argv = ['main.py', *argv]
  notes = os.open(log, os.O_WRONLY | os.O_APPEND)
  allowed = [os.path.realpath(place) for place in places]
  with _hook(notes, allowed, str(top)):
    code = main.main(argv)
  seconds = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
  os.write(notes, f'took {seconds} {_peak() - before}\n'.encode())
  return code


def _peak() -> int:
  """The most bytes that this process has held."""
  text = pathlib.Path('/proc/self/status').read_text()
  return 1024 * int(text.partition('VmHWM:')[2].split()[0])


@contextlib.contextmanager
def _hook(notes: int, allowed: list[str], top: str) -> Iterator[None]:
  """Context in which this process notes what it must not do."""
  is_on = [True]

  def note(event: str, args: tuple) -> None:
    if not is_on[0]:
      return
    problem = _problem(event, args, allowed, top)
    if problem:
      # Writing raises no event, so this does not call itself.
      os.write(notes, f'{event} {problem}\n'.encode(errors='replace'))

  sys.addaudithook(note)  # for ever: a hook cannot be taken away
  yield
  is_on[0] = False


def _problem(event: str, args: tuple, allowed: list[str], top: str) -> str:
  """What an event did that it may not; '' if nothing."""
  if event in _FORBIDDEN:
    return repr(args)[:200]
  if event == 'subprocess.Popen':
    # The commit of the code, the kind of the machine, this package's encoders.
    own = args[0] in ('git', 'uname', sys.executable)
    return '' if own else repr(args)[:200]
  if event == 'ctypes.dlopen':
    return '' if args[0] is None else repr(args)
  if event == 'pickle.find_class':
    return repr(args[1:]) if args[1] in strange.MODULES else ''
  if event == 'exec':
    name = args[0].co_filename
    return name if top in name else ''
  if event == 'open':
    is_written = isinstance(args[2], int) and args[2] & _WRITES
    return _outside(args[:1], allowed) if is_written else ''
  if event in _CHANGES:
    count = _CHANGES[event]
    # A path may be relative to an open folder, which the last arguments name.
    folders = args[-count:] if event in _IN_FOLDERS else ()
    return _outside(args[:count], allowed, folders)
  return ''


def _outside(paths: tuple, allowed: list[str], folders: tuple = ()) -> str:
  """The first path that is in no allowed place; '' if there is none.

  Args:
    paths: names, or numbers of open files, which were seen when opened.
    allowed: real paths.
    folders: descriptors that paths are relative to, -1 for none.
  """
  for path, folder in itertools.zip_longest(paths, folders, fillvalue=-1):
    if isinstance(path, int):
      continue
    path = os.fsdecode(path)
    if folder not in (-1, None):
      path = os.path.join(os.readlink(f'/proc/self/fd/{folder}'), path)
    real = os.path.realpath(path)
    # A workdir's parents are made with it.
    inside = any(
      real == place
      or real.startswith(f'{place}{os.sep}')
      or place.startswith(f'{real}{os.sep}')
      for place in (*allowed, '/dev')
    )
    if not inside:
      return real
  return ''
