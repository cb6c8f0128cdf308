"""A run's folder: config.json, env.json, per_example/, DONE.

Comes in: a workdir path and the resolved config. Goes out: a folder that holds
one run of one config, new or continued, or one line that says why not. Every
file is written beside its place and renamed, so a kill leaves the old or the
new one. Metrics are writers.py's, checkpoints are checkpoints.py's.
"""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import IO, Any

import jax
import numpy as np

from dpo_jax import errors

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_PACKAGES += ('numpy',)
# Entries of env.json that may differ between sessions with the same bits.
_HARMLESS = ('command', 'host', 'platform', 'time', 'continued')


class RunDir:
  """The folder of one run. Making the object touches nothing on disk.

  Args:
    path: the workdir.
    may_change: dotted keys ('train.num_steps') or sections ('log') of the
      config in which a continued run may differ; config.json then takes the
      new values, and a DONE of the old ones no longer counts.
  """

  def __init__(
    self, path: str | os.PathLike, *, may_change: Collection[str] = ()
  ):
    """Binds the names of what lies in the folder."""
    self.path = pathlib.Path(os.path.abspath(path))
    self.checkpoints = self.path / 'checkpoints'
    self.cache_dir = self.path / 'cache'
    self._may_change = frozenset(may_change)
    self._lock = None  # open file while this process writes here

  def config(self) -> dict[str, Any]:
    """Returns config.json; InputError where the folder is no run."""
    with storage_errors(self.path):
      config = _read_json(self.path / 'config.json')
    if config is None:
      raise errors.refuse(
        self.path, 'not a run (no config.json)', 'give the --workdir of a run'
      )
    return config

  def check(self, config: Mapping[str, Any]) -> bool:
    """Returns whether there is a run of this config to continue.

    Args:
      config: the resolved config, of JSON types (tuples become lists).

    Raises:
      InputError: the workdir is a file or holds another config.
    """
    with storage_errors(self.path):
      if self.path.exists() and not self.path.is_dir():
        raise errors.refuse(self.path, 'a file', 'give --workdir a folder')
      before = _read_json(self.path / 'config.json')
    if before is not None:
      _check_same(self.path, before, _as_json(config), self._may_change)
    return before is not None

  def create_or_continue(self, config: Mapping[str, Any]) -> bool:
    """Makes the folder and config.json, or takes up the run that is there.

    Args:
      config: as for `check`.

    Returns:
      Whether the run was there before.

    Raises:
      InputError: as `check`; or the workdir cannot be written, or another
        process is writing it. Nothing new is left behind.
    """
    continued, config = self.check(config), _as_json(config)
    made = [p for p in (self.path, *self.path.parents) if not p.exists()]
    try:
      with storage_errors(self.path):
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        if not continued or self.config() != config:
          _write_json(self.path / 'config.json', config)
    except BaseException:
      self.close()
      with contextlib.suppress(OSError):
        if made:
          (self.path / '.lock').unlink(missing_ok=True)
        for folder in made:  # deepest first
          folder.rmdir()
      raise
    return continued

  def is_done(self, config: Mapping[str, Any] | None = None) -> bool:
    """Returns whether a run of `config` (None: config.json's) ended here."""
    done = self.done_facts()
    if not done:
      return False
    config = self.config() if config is None else _as_json(config)
    return done.get('config') == _digest(config)

  def done_facts(self) -> dict[str, Any]:
    """Returns what `mark_done` was given; empty before."""
    return _read_json(self.path / 'DONE') or {}

  def mark_done(self, **facts: Any) -> None:
    """Writes DONE: the config's digest and JSON facts (last step, ...)."""
    config = _digest(self.config())
    _write_json(self.path / 'DONE', {'config': config} | facts)

  def write_env(
    self, fingerprints: Mapping[str, Any], argv: Iterable[str] | None = None
  ) -> list[str]:
    """Writes env.json; a continued run appends itself under 'continued'.

    Args:
      fingerprints: the caller's, of data, tokenizer, model (JSON types).
      argv: the command; None takes this process's.

    Returns:
      A line for each way in which a session since the first differs from it
      so that the run may not claim equal bits.
    """
    now = describe_environment(fingerprints, argv)
    first = _read_json(self.path / 'env.json')
    if first is None:
      _write_json(self.path / 'env.json', now)
      return []
    first.setdefault('continued', []).append(now)
    _write_json(self.path / 'env.json', first)
    lines = [environment_changes(first, later) for later in first['continued']]
    return list(dict.fromkeys(line for session in lines for line in session))

  def write_per_example(self, name: str, arrays: Mapping[str, Any]) -> None:
    """Writes per_example/<name>.npz.

    Args:
      name: file name without its suffix, such as 'eval_100'.
      arrays: one row an example, of one length and any dtype but object.
    """
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    rows = {key: value.shape[:1] for key, value in arrays.items()}
    objects = [key for key, value in arrays.items() if value.dtype.hasobject]
    if len(set(rows.values())) != 1 or objects:
      raise ValueError(f'per_example/{name}: rows {rows}, objects {objects}')
    path = self.path / 'per_example' / f'{name}.npz'
    with storage_errors(path), atomic_file(path) as file:
      np.savez(file, **arrays)

  def write_samples(self, name: str, samples: Iterable[Mapping]) -> str:
    """Writes samples/<name>.jsonl, one object a line; returns its path."""
    path = self.path / 'samples' / f'{name}.jsonl'
    with storage_errors(path), atomic_file(path) as file:
      file.writelines(json.dumps(s).encode() + b'\n' for s in samples)
    return str(path)

  def read_per_example(self, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of per_example/<name>.npz."""
    path = self.path / 'per_example' / f'{name}.npz'
    with storage_errors(path), np.load(path) as arrays:
      return dict(arrays)

  def close(self) -> None:
    """Lets another process write here."""
    if self._lock:
      self._lock.close()
      self._lock = None


def describe_environment(
  fingerprints: Mapping[str, Any], argv: Iterable[str] | None = None
) -> dict[str, Any]:
  """Returns what a run's bits depend on; asks jax for its devices.

  Args:
    fingerprints: the caller's, of data, tokenizer, model (JSON types).
    argv: the command; None takes this process's.
  """
  devices = jax.devices()
  return {
    'python': platform.python_version(),
    **{name: _version(name) for name in _PACKAGES},
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
    'platform': platform.platform(),
    'backend': devices[0].platform,
    'device_kind': devices[0].device_kind,
    'num_devices': len(devices),
    'num_processes': jax.process_count(),
    'cpu': _cpu(),
    'num_cpus': os.cpu_count(),
    **_git(),
    'fingerprints': _as_json(fingerprints),
    'command': list(sys.argv if argv is None else argv),
    'host': platform.node(),
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def environment_changes(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[str]:
  """Returns a line for each entry whose change voids a claim of equal bits."""
  old = dict(_flatten({k: v for k, v in old.items() if k not in _HARMLESS}))
  new = dict(_flatten({k: v for k, v in new.items() if k not in _HARMLESS}))
  return [
    f'{key}: {old.get(key, "nothing")!r} then, {new.get(key, "nothing")!r} now'
    for key in sorted(old.keys() | new.keys())
    if old.get(key, 'nothing') != new.get(key, 'nothing')
  ]


@contextlib.contextmanager
def atomic_file(path: pathlib.Path):
  """Opens a binary file that takes its name only when all of it is written."""
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(scratch, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(scratch, path)
  finally:
    scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: pathlib.Path):
  """Turns an OSError on a path into an InputError of one line."""
  try:
    yield
  except OSError as error:
    raise errors.refuse(
      error.filename or path,
      error.strerror or error,
      'make room, mend the permissions, or give another --workdir',
    ) from error


def _check_same(
  path: pathlib.Path, before: dict, now: dict, may_change: Collection[str]
) -> None:
  """Raises InputError naming the first keys that differ, with both values."""
  before, now = dict(_flatten(before)), dict(_flatten(now))
  keys = list(now) + [key for key in before if key not in now]
  lines = []
  for key in keys:
    parts = key.split('.')
    heads = {'.'.join(parts[:i]) for i in range(1, len(parts) + 1)}
    was, now_is = before.get(key, 'absent'), now.get(key, 'absent')
    if not _equal(was, now_is) and not heads & set(may_change):
      lines.append(
        f'config.{key} is {json.dumps(was)} there and {json.dumps(now_is)} now'
      )
  if lines:
    more = f' (and {len(lines) - 3} more)' if len(lines) > 3 else ''
    raise errors.refuse(
      path,
      f'holds a run of another config: {"; ".join(lines[:3])}{more}',
      'give a new --workdir, or the values that are there',
    )


def _equal(a: Any, b: Any) -> bool:
  """Compares JSON values: NaN equals NaN, 1 equals 1.0, true is not 1."""
  if isinstance(a, bool) or isinstance(b, bool):
    return a is b
  return a == b or json.dumps(a) == json.dumps(b)


def _flatten(tree: Mapping[str, Any], prefix: str = ''):
  """Yields (dotted key, value); an empty section is a value."""
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _lock(path: pathlib.Path) -> IO[bytes]:
  """Takes the folder for this process; freed when the process ends.

  A POSIX lock, so that a second run in the same process (a test) is let in.
  """
  file = open(path / '.lock', 'ab')
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError) as error:
    file.close()
    raise errors.refuse(
      path,
      'another process is writing this run',
      'wait for it, stop it, or give another --workdir',
    ) from error
  except OSError:
    pass  # a file system without locks
  return file


def _git() -> dict[str, Any]:
  """Returns the commit of this code and a digest of what differs from it."""

  def ask(*words: str) -> bytes | None:
    command = ['git', '-C', os.path.dirname(__file__), *words]
    try:
      found = subprocess.run(command, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
      return None
    return found.stdout if found.returncode == 0 else None

  commit, changes = ask('rev-parse', 'HEAD'), ask('diff', 'HEAD')
  if commit is None or changes is None:
    return {'git_commit': None, 'git_dirty': None}
  dirty = hashlib.sha256(changes).hexdigest()[:16] if changes else False
  return {'git_commit': commit.decode().strip(), 'git_dirty': dirty}


def _cpu() -> str:
  """Returns the processor's name: XLA's CPU code depends on it."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _as_json(value: Any) -> Any:
  """Returns the value as it comes back from JSON: tuples are lists."""
  return json.loads(json.dumps(value))


def _digest(config: Any) -> str:
  text = json.dumps(config, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: pathlib.Path) -> Any:
  """Returns a file's JSON, or None where there is no such file."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise errors.refuse(
      path, f'not JSON ({error})', 'put back a copy, or give another --workdir'
    ) from error


def _write_json(path: pathlib.Path, value: Any) -> None:
  text = json.dumps(value, indent=2) + '\n'
  with storage_errors(path), atomic_file(path) as file:
    file.write(text.encode())
