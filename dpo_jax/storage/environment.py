"""What a run's bits depend on, and what changed since it began.

Comes in: the caller's fingerprints of data, tokenizer and model. Goes out: the
versions, devices, flags and commit of this process as JSON types, and a line
for each entry that differs between two of them. Writes nothing.
"""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_jax.storage import files

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_PACKAGES += ('numpy',)
# Entries of env.json that may differ between sessions with the same bits.
_HARMLESS = ('command', 'host', 'platform', 'time', 'continued')


def describe(
  fingerprints: Mapping[str, Any], argv: Iterable[str] | None = None
) -> dict[str, Any]:
  """Returns what a run's bits depend on; asks jax for its devices.

  Args:
    fingerprints: the caller's, of data, tokenizer, model (JSON types).
    argv: the command; None takes this process's.
  """
  import jax  # here: results/ compare environments and need no jax

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
    'fingerprints': files.as_json(fingerprints),
    'command': list(sys.argv if argv is None else argv),
    'host': platform.node(),
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns a line for each entry whose change voids a claim of equal bits."""
  old, new = _relevant(old), _relevant(new)
  return [
    f'{key}: {old.get(key, "nothing")!r} then, {new.get(key, "nothing")!r} now'
    for key in sorted(old.keys() | new.keys())
    if old.get(key, 'nothing') != new.get(key, 'nothing')
  ]


def _relevant(environment: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the entries that decide on bits, by dotted key."""
  return files.flatten(
    {k: v for k, v in environment.items() if k not in _HARMLESS}
  )


def _git() -> dict[str, Any]:
  """Returns the commit of this code and a digest of what differs from it."""

  def ask(*words: str) -> bytes | None:
    command = ['git', '-C', os.path.dirname(__file__), *words]
    try:
      found = subprocess.run(command, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
      return None
    return found.stdout if found.returncode == 0 else None

  commit, diff = ask('rev-parse', 'HEAD'), ask('diff', 'HEAD')
  if commit is None or diff is None:
    return {'git_commit': None, 'git_dirty': None}
  dirty = files.bytes_digest([diff])[:16] if diff else False
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
