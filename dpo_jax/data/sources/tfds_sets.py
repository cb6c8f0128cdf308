"""public set -> rows: prepared TFDS sets in array_record, no TensorFlow.

Comes in: a published.Asked and the folder of downloaded files. Goes out: the
opened set, and its rows as dicts of str, float and lists of messages.
Downloads nothing: a file that is missing from the manual directory is an
InputError with the command that fetches it.

A set is prepared once, under data_dir, by whichever process comes first. Its
metadata records the sha256 of the files it was made from; if they change, the
set is refused.

Importing this module imports TFDS, which takes seconds: import it in functions.
"""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from dpo_jax import errors
from dpo_jax.data.sources import downloads as downloads_lib
from dpo_jax.data.sources import published, tfds_builders
from dpo_jax.data.sources.downloads import Downloads
from dpo_jax.storage import files

_FORMAT = 'array_record'
_BATCH = 256  # examples read at once


class Prepared(NamedTuple):
  """A split that is on disk in array_record."""

  asked: published.Asked
  examples: Any  # TFDS data source: a sequence of dicts
  fingerprint: str  # sha256, hex, of the split's shards and its slice


def prepare(
  asked: published.Asked,
  *,
  where: str,
  manual_dir: str | os.PathLike | None = None,
  data_dir: str | os.PathLike | None = None,
) -> Prepared:
  """Opens a split, after preparing its set if that is not done yet.

  Args:
    asked: from published.parse_name.
    where: the source name, for messages.
    manual_dir: the folder that holds NAME/FILE; default data_dir/downloads/
      manual.
    data_dir: the folder of prepared sets; default that of TFDS.

  Raises:
    InputError: a file is missing or damaged, the split is not prepared, or
      the set was prepared from other files.
  """
  data_dir = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  manual_dir = os.path.expanduser(
    manual_dir or os.path.join(data_dir, 'downloads', 'manual')
  )
  downloads = downloads_lib.find(asked, manual_dir)
  builder = tfds_builders.make(asked, downloads, data_dir)
  if not _is_prepared(builder):
    downloads_lib.require(asked, downloads, manual_dir, where)
    try:
      _write(builder)
    except OSError as error:
      # Another process may have finished first; then its files are read.
      if not _is_prepared(builder):
        raise errors.refuse(
          where,
          f'cannot be prepared in {data_dir}: {error.strerror or error}',
          'make room there, or set TFDS_DATA_DIR to another folder',
        ) from None
    # A builder reads the state on disk when it is made: make a new one.
    builder = tfds_builders.make(asked, downloads, data_dir)
  _check_files(builder, downloads, where)
  for split in asked.splits:
    if split not in builder.info.splits:
      downloads_lib.require(asked, downloads, manual_dir, where)
      raise errors.refuse(
        where,
        f'split {split!r} had no rows when {builder.data_path} was prepared',
        f'if its files are new, delete {builder.data_path} and start again',
      )
  examples = _open(builder, asked.spec, where)
  shards = [
    os.fspath(path)
    for split in asked.splits
    for path in builder.info.splits[split].filepaths
  ]
  fingerprint = files.file_digest(*shards, text=asked.spec)
  return Prepared(asked, examples, fingerprint)


def read(prepared: Prepared) -> Iterator[dict[str, Any]]:
  """Yields the rows of a prepared split, in order."""
  columns = published.SETS[prepared.asked.name].columns
  for start in range(0, len(prepared.examples), _BATCH):
    stop = min(start + _BATCH, len(prepared.examples))
    for example in prepared.examples.__getitems__(list(range(start, stop))):
      yield {key: _plain(example[key]) for key in columns}


def _is_prepared(builder: Any) -> bool:
  # TFDS's own is_prepared() logs a warning for a set that is not.
  return (pathlib.Path(builder.data_path) / 'dataset_info.json').exists()


def _write(builder: Any) -> None:
  """Prepares a set without TFDS's progress lines."""
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(file_format=_FORMAT)


def _check_files(builder: Any, downloads: Downloads, where: str) -> None:
  """Refuses a set that was prepared from other files than these."""
  recorded = (builder.info.metadata or {}).get('files')
  if recorded is None:
    return  # prepared by TFDS itself, which records no digests
  for name, path in downloads.paths.items():
    digest = downloads_lib.digest(path)
    if recorded.get(name, digest) != digest:
      raise errors.refuse(
        where,
        f'{builder.data_path} was prepared from another {path}',
        f'delete {builder.data_path} and start again',
      )


def _open(builder: Any, spec: str, where: str) -> Any:
  try:
    return builder.as_data_source(split=spec)
  except NotImplementedError as error:
    raise errors.refuse(
      where,
      f'{builder.data_path} is not in {_FORMAT}: {errors.show(str(error))}',
      f'delete {builder.data_path} and start again',
    ) from None
  except (ValueError, AssertionError) as error:
    raise errors.refuse(
      where,
      f'cannot take {spec!r}: {errors.show(str(error), 100)}',
      'write a slice that is not empty, as train[:100] or train[50%:]',
    ) from None


def _plain(value: Any) -> Any:
  """A feature's value as JSON would hold it."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'surrogateescape')
  if isinstance(value, dict):  # a sequence of messages, stored as columns
    keys = tfds_builders.MESSAGE_KEYS
    turns = zip(*(map(_plain, value[key]) for key in keys))
    return [dict(zip(keys, turn)) for turn in turns]
  return float(value)
