"""--mode=cache: lists and clears the caches that runs share.

Comes in: a folder, or the user's own. Goes out: a table of what it holds, or
less of it. Reads no entry.
"""

import time
from typing import Any

from dpo_jax import errors
from dpo_jax.storage import caches, files, readable


def main(config: Any = None, workdir: str = '', clear: str = '') -> int:
  """--mode=cache: prints what the cache folder holds; clears kinds of it.

  Args:
    config: not read.
    workdir: a sweep or a run with a cache of its own; '' = the user's.
    clear: kinds of entries with commas between, or 'all'; '' = none.
  """
  del config
  path = files.at(workdir) / 'cache' if workdir else caches.folder()
  if clear:
    kinds = list(caches.KINDS) if clear == 'all' else clear.split(',')
    unknown = [kind for kind in kinds if kind not in caches.KINDS]
    if unknown:
      raise errors.refuse(
        '--clear',
        f'{unknown[0]!r} is not allowed',
        f'{errors.did_you_mean(unknown[0], caches.KINDS)}use '
        f'{", ".join(caches.KINDS)} or all',
      )
    removed = caches.clear(path, kinds)
    freed = sum(entry.num_bytes for entry in removed)
    print(
      f'{path}: {len(removed)} entries removed, {readable.size(freed)} freed'
    )
    return 0
  print(describe(path))
  return 0


def describe(path: files.AnyPath, now: float | None = None) -> str:
  """The kinds of entries, their number, size and oldest use, as text."""
  now = time.time() if now is None else now
  listed = caches.entries(path)
  lines = [f'{path} (limit {readable.size(caches.limit())}, ${caches.LIMIT})']
  for kind, words in caches.KINDS.items():
    own = [entry for entry in listed if entry.kind == kind]
    size = readable.size(sum(entry.num_bytes for entry in own))
    days = (now - min(entry.used for entry in own)) / 86400 if own else 0.0
    age = f', the oldest unused for {days:.1f} days' if own else ''
    lines.append(f'{kind:<10} {len(own):>6} {words}, {size}{age}')
  return '\n'.join(lines)
