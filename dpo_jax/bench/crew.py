"""The processes of a benchmark: started, asked in turns, ended.

Comes in: the flags and a folder with the pairs. Goes out: what each process
says of itself, and the answers of its rounds. Ours come first: one of them
writes the initial weights and the order of the pairs for the others. A process
that ends too early is noted and left out of what follows. Computes no figure.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.bench import protocol, workload

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Of scripts/trl_child.py, which says what each is.
TRL_VARIANTS = (
  'as_shipped',
  'precomputed',
  'best_shipped',
  'patched',
  'best_patched',
  'lora',
)
LORA = 'packed+shared+lora'  # ours, beside TRL's
# Ours that an older commit can be compared with.
_BASELINE = ('packed+shared', 'packed+shared+cached')


class Member(NamedTuple):
  """A process to be: its name in the figures and how it is started."""

  name: str
  side: str  # 'ours', 'trl' or 'baseline'
  variant: str
  python: str = sys.executable
  program: str = ''  # script; '' = ours
  path: str = ''  # of the package, if it is another one


class Measured(NamedTuple):
  """All that the processes answered."""

  info: dict[str, dict[str, Any]]  # by name
  rounds: dict[str, list[dict[str, Any]]]  # by name; the first one warms up
  sides: dict[str, str]  # by name
  failed: dict[str, str]  # by name: the last line of a process that ended
  peak: float  # operations per second of a matmul


def our_variants() -> tuple[str, ...]:
  """Returns the names that --variants takes."""
  # Here, not above: it imports jax, which a parent of processes does not need.
  from dpo_jax.bench import variants

  return tuple(variants.VARIANTS)


def check(options: Any) -> None:
  """Refuses config keys and shapes here, before a process is started."""
  from dpo_jax.bench import variants

  for name in options.variants:
    variants.make_config(options, variants.VARIANTS[name])


def measure(options: Any, folder: pathlib.Path) -> Measured:
  """Runs all processes; see the module."""
  measured = Measured({}, {}, {}, {}, 0.0)
  with _worktree(options.baseline) as path:
    members = _members(options, path)
    if options.interleaved:
      measured = _in_turns(options, folder, members, measured)
    else:
      # One at a time: the memory of a device may not hold two.
      for member in members:
        measured = _in_turns(options, folder, [member], measured)
  return measured


def _in_turns(options, folder, members, measured: Measured) -> Measured:
  crew = {}
  try:
    for member in members:
      with _noting(measured, member.name):
        crew[member.name] = _start(options, folder, member)
        measured.info[member.name] = crew[member.name].ask('info')
        measured.sides[member.name] = member.side
        measured.rounds[member.name] = []
        if member.side == 'ours':
          _share(options, folder, crew[member.name], measured)
    for _ in range(options.rounds + 1):
      for name in [name for name in crew if name not in measured.failed]:
        with _noting(measured, name):
          measured.rounds[name].append(crew[name].ask('round'))
    if not measured.peak and not options.peak_tflops:
      measured = measured._replace(peak=_peak(crew, measured))
  finally:
    for process in crew.values():
      process.close()
  return measured


def _peak(crew, measured: Measured) -> float:
  """Operations per second of a matmul, by one of ours; 0 if none answers."""
  for name, process in crew.items():
    if measured.sides.get(name) == 'ours' and name not in measured.failed:
      with _noting(measured, name):
        return process.ask('peak')['peak']
  return 0.0


@contextlib.contextmanager
def _noting(measured: Measured, name: str) -> Iterator[None]:
  """Notes that a process ended; its figures are left out."""
  try:
    yield
  except protocol.ChildFailed as error:
    measured.failed[name] = str(error)
    measured.rounds.pop(name, None)
    measured.info.pop(name, None)


def _members(options: Any, path: str) -> list[Member]:
  """The processes, ours first."""
  names = list(options.variants)
  if options.passes:
    names += ['forward', 'forward+backward']
  if options.against and 'lora' in options.trl_variants and LORA not in names:
    names.append(LORA)
  members = [Member(name, 'ours', name) for name in names]
  if options.baseline:
    members += [
      Member(
        f'{options.baseline}:{name}',
        'baseline',
        name,
        program='baseline_child.py',
        path=path,
      )
      for name in _BASELINE
      if name in names
    ]
  if options.against:
    members += [
      Member(
        f'trl:{name}',
        'trl',
        name,
        python=options.trl_python,
        program='trl_child.py',
      )
      for name in options.trl_variants
    ]
  return members


def _start(options: Any, folder: pathlib.Path, member: Member):
  """Starts a process, or makes ours in this one."""
  if member.side == 'ours' and not options.isolated:
    return _Here(options, folder, member.variant)
  script = [str(ROOT / 'scripts' / member.program)]
  if not member.program:
    script = ['-m', 'dpo_jax.bench.child']
  log = folder / f'{member.name.replace("/", "_").replace(":", "_")}.log'
  # What this process has on its path, such as wheels, the others have too.
  paths = (member.path or str(ROOT), os.environ.get('PYTHONPATH', ''))
  try:
    return protocol.Remote(
      [member.python, *script, str(folder), member.variant],
      log,
      {'PYTHONPATH': os.pathsep.join(filter(None, paths))},
    )
  except OSError as error:
    raise errors.refuse(
      '--trl_python',
      f'{member.python!r} cannot be started ({error.strerror})',
      'name a python interpreter',
    ) from error


class _Here:
  """A variant of ours in this process, asked like a process."""

  def __init__(self, options: Any, folder: pathlib.Path, name: str):
    from dpo_jax.bench import variants

    records = workload.load(folder / 'pairs.npz')
    ours = variants.Ours(options, records, name)
    self._answers = variants.answers(ours, folder, options.dtype)

  def ask(self, question: str) -> dict[str, Any]:
    return self._answers[question]()

  def close(self) -> None:
    self._answers = {}


def _share(options: Any, folder: pathlib.Path, process, measured) -> None:
  """Writes what the others start from: order, settings, weights, adapter."""
  if not (options.against or options.baseline):
    return
  name, info = list(measured.info.items())[-1]
  if not (folder / 'order.json').exists():
    (folder / 'order.json').write_text(json.dumps(info['order']))
    settings = options._asdict() | {
      'platform': info['platform'],
      'pad_id': 0,
      'weights': str(folder / 'weights'),
      'adapter': str(folder / 'adapter'),
    }
    (folder / 'settings.json').write_text(json.dumps(settings))
  needs_adapter = 'lora' in name and not (folder / 'adapter').exists()
  if needs_adapter or not (folder / 'weights').exists():
    process.ask('export')


@contextlib.contextmanager
def _worktree(commit: str) -> Iterator[str]:
  """A checkout of a commit in a temporary folder, removed afterwards."""
  if not commit:
    yield ''
    return
  with tempfile.TemporaryDirectory() as scratch:
    path = f'{scratch}/code'
    _git('worktree', 'add', '--detach', '--force', path, commit)
    try:
      yield path
    finally:
      _git('worktree', 'remove', '--force', path)


def _git(*words: str) -> None:
  done = subprocess.run(
    ['git', '-C', str(ROOT), *words], capture_output=True, text=True
  )
  if done.returncode:
    line = (done.stderr.strip().splitlines() or ['no message'])[-1]
    raise errors.refuse(
      '--baseline', f'git {words[0]} {words[1]}: {line}', 'name a commit'
    )
