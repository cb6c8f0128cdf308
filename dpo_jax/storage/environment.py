"""Environment of a run: everything that its bits depend on, and its changes.

Comes in: fingerprints of data, tokenizer and model. Goes out: versions,
devices, flags and commit of this process as JSON types, and one line per entry
that differs between two environments. Writes nothing.
"""

import contextlib
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.storage import files

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_PACKAGES += ('numpy',)
# Settings of jax that change bits, by flag or by JAX_NAME in the environment.
_JAX_CONFIG = (
  'jax_enable_x64',
  'jax_default_matmul_precision',
  'jax_default_prng_impl',
  'jax_threefry_partitionable',
  'jax_numpy_dtype_promotion',
)
# Variables of jax that change no bit of a result: where it looks, what it says.
_JAX_HARMLESS = (
  *('JAX_COMPILATION_CACHE', 'JAX_PERSISTENT_CACHE', 'JAX_RAISE_PERSISTENT'),
  *('JAX_LOGGING', 'JAX_LOG_', 'JAX_DEBUG_LOG', 'JAX_TRACEBACK'),
  'JAX_PROFILER',
  *('JAX_DUMP', 'JAX_COORDINATOR', 'JAX_PROCESS_ID', 'JAX_NUM_PROCESSES'),
  *('JAX_LOCAL_', 'JAX_PLATFORM', 'JAX_ENABLE_COMPILATION_CACHE'),
)
# Entries of env.json that may differ between sessions with the same bits.
_HARMLESS = ('command', 'host', 'platform', 'time', 'continued')


def describe(
  fingerprints: Mapping[str, Any], argv: Iterable[str] | None = None
) -> dict[str, Any]:
  """Returns the environment of this process; starts jax's backend.

  Args:
    fingerprints: of data, tokenizer and model, as JSON types.
    argv: the command; None takes this process's.
  """
  # Here, not above: results/ read runs and need no jax.
  import jax

  devices = jax.devices()
  return {
    'python': platform.python_version(),
    **{name: _version(name) for name in _PACKAGES},
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
    'jax_config': {name: _flag(jax.config, name) for name in _JAX_CONFIG},
    'jax_variables': _jax_variables(os.environ),
    'platform': platform.platform(),
    'backend': devices[0].platform,
    'device_kind': devices[0].device_kind,
    'num_devices': len(devices),
    'num_processes': jax.process_count(),
    'cpu': _cpu(),
    'num_cpus': os.cpu_count(),
    **_git(),
    'fingerprints': files.as_json(fingerprints),
    'command': list(sys.argv if argv is None else argv),
    'host': platform.node(),
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def check(env: Mapping[str, Any], where: Any, fix: str) -> None:
  """Raises InputError if env.json has an entry of another kind than written.

  Args:
    env: its values; {} if there is no such file.
    where: its path.
    fix: in words.
  """
  prints = env.get('fingerprints', {})
  if not isinstance(prints, Mapping):
    raise errors.refuse(
      where, f'fingerprints is {errors.show(prints)}, not an object', fix
    )
  continued = env.get('continued', [])
  if not isinstance(continued, list) or not all(
    isinstance(session, Mapping) for session in continued
  ):
    raise errors.refuse(
      where,
      f'continued is {errors.show(continued)}, not a list of sessions',
      fix,
    )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns one line per entry whose change voids a claim of equal bits."""
  old, new = _relevant(old), _relevant(new)
  return [
    f'{key}: {old.get(key, "nothing")!r} then, {new.get(key, "nothing")!r} now'
    for key in sorted(old.keys() | new.keys())
    if old.get(key, 'nothing') != new.get(key, 'nothing')
    # An older version wrote fewer settings, a session may read fewer inputs.
    and (
      (key in old and key in new)
      or not key.startswith(('jax_config.', 'fingerprints.'))
    )
  ]


def _relevant(environment: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {dotted key: entry} of the entries that bits depend on."""
  entries = files.flatten(
    {k: v for k, v in environment.items() if k not in _HARMLESS}
  )
  # A session without variables equals one of a version that wrote none.
  return {key: value for key, value in entries.items() if value != {}}


@functools.cache
def commit() -> str | None:
  """Returns the commit of this code; None if it is in no repository."""
  return _git()['git_commit']


def _git() -> dict[str, Any]:
  """Returns the commit of this code and a digest of uncommitted changes."""

  def ask(*words: str) -> bytes | None:
    command = ['git', '-C', os.path.dirname(__file__), *words]
    try:
      done = subprocess.run(command, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
      return None
    return done.stdout if done.returncode == 0 else None

  # Untracked files do not count: they may be anything, such as runs.
  commit, diff = ask('rev-parse', 'HEAD'), ask('diff', 'HEAD')
  if commit is None or diff is None:
    return {'git_commit': None, 'git_dirty': None}
  dirty = files.bytes_digest([diff])[:16] if diff else False
  return {'git_commit': commit.decode().strip(), 'git_dirty': dirty}


def _cpu() -> str:
  """Returns the processor's name; XLA compiles for it."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def _jax_variables(environ: Mapping[str, str]) -> dict[str, str]:
  """Returns the variables JAX_* that may change bits, by name.

  The platform is told by the devices.
  """
  return {
    name: environ[name]
    for name in sorted(environ)
    if name.startswith('JAX_')
    and not name.startswith(_JAX_HARMLESS)
    and name.lower() not in _JAX_CONFIG
  }


def _flag(config: Any, name: str) -> str:
  """Returns a setting of jax as text; '' if this version has none."""
  return str(getattr(config, name, ''))


def _version(package: str) -> str | None:
  """Returns the version of an installed package, None if it is missing."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
