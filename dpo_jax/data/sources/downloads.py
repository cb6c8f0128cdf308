"""manual directory -> files: the downloaded files of a public set.

Comes in: a published.Asked and the manual directory. Goes out: the paths of
the set's files, and their sha256; a missing file is an InputError with the
command that fetches it. Downloads nothing and reads no rows.
"""

import os
from typing import NamedTuple

from dpo_jax import errors
from dpo_jax.data.sources import published
from dpo_jax.storage import files


class Downloads(NamedTuple):
  """The files of a set that are in the manual directory."""

  paths: dict[str, str]  # published name -> path
  splits: dict[str, tuple[str, ...]]  # split -> its files; complete splits only
  folder: str  # the set's folder in the manual directory


def find(asked: published.Asked, manual_dir: str) -> Downloads:
  """Returns the files of a set's config that are in the manual directory."""
  folder = os.path.join(manual_dir, asked.name)
  splits = published.SETS[asked.name].configs[asked.config]
  paths = {}
  for name in dict.fromkeys(n for names in splits.values() for n in names):
    path = os.path.join(folder, name)
    if os.path.exists(path):
      paths[name] = path
    # The archive of imdb_reviews may be unpacked.
    elif os.path.isdir(unpacked := os.path.join(folder, 'aclImdb')):
      paths[name] = unpacked
  complete = {
    split: names
    for split, names in splits.items()
    if paths.keys() >= set(names)
  }
  return Downloads(paths, complete, folder)


def require(
  asked: published.Asked, downloads: Downloads, manual_dir: str, where: str
) -> None:
  """Refuses a set of which a file of the splits asked for is missing."""
  splits = published.SETS[asked.name].configs[asked.config]
  names = dict.fromkeys(n for s in asked.splits for n in splits[s])
  missing = [name for name in names if name not in downloads.paths]
  if missing:
    more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
    path = os.path.join(downloads.folder, missing[0])
    raise errors.refuse(
      where,
      f'{path}{more} not found',
      published.fix(asked.name, missing[0], manual_dir),
    )


def digest(path: str) -> str:
  """Returns the sha256 of a file, or of the names and sizes in a folder."""
  if os.path.isfile(path):
    return files.file_digest(path)
  lines = []
  for folder, folders, names in os.walk(path):
    folders.sort()  # os.walk then visits them in this order
    for name in sorted(names):
      file = os.path.join(folder, name)
      line = f'{os.path.relpath(file, path)} {os.path.getsize(file)}\n'
      lines.append(line.encode('utf-8', 'surrogateescape'))
  return files.bytes_digest(lines)
