"""The named public sets as TFDS data sets in array_record, no TensorFlow.

Comes in: a published.Asked and the folder with the downloaded files. Goes out:
the prepared set, opened, and its rows as dicts of str, float and lists of
messages. Downloads nothing: a file that is not in the manual directory is an
InputError that names it and the command to fetch it. A set is prepared once,
under data_dir, whichever process comes first; its metadata records the sha256
of the files that it was made of, and other files are refused.

Importing this module imports TFDS (seconds): import it in functions.
"""

import contextlib
import gzip
import hashlib
import io
import itertools
import os
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imdb_reviews import (
  imdb_reviews_dataset_builder as imdb,
)

from dpo_jax import errors
from dpo_jax.data.sources import files, published, records

_FORMAT = 'array_record'
_MESSAGES = {'role': tfds.features.Text(), 'content': tfds.features.Text()}
_FEATURES = {
  'text': tfds.features.Text,
  'number': lambda: tfds.features.Scalar(np.float32),
  'messages': lambda: tfds.features.Sequence(dict(_MESSAGES)),
}
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
  """Opens a set's split, preparing the set first where that is not done.

  Args:
    asked: from published.parse_name.
    where: the source name, for messages.
    manual_dir: the folder that holds NAME/FILE; default data_dir/downloads/
      manual.
    data_dir: where prepared sets are; TFDS's own default.

  Raises:
    InputError: a file is missing or damaged, the split is not prepared, or
      the set was prepared from other files.
  """
  data_dir = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  manual_dir = os.path.expanduser(
    manual_dir or os.path.join(data_dir, 'downloads', 'manual')
  )
  found = _find(asked, manual_dir)
  builder = _builder(asked, found, data_dir)
  if not _is_prepared(builder):
    _require(asked, found, manual_dir, where)
    try:
      _write(builder)
    except OSError as error:  # another process was first, or the disk
      if not _is_prepared(builder):
        raise errors.refuse(
          where,
          f'cannot be prepared in {data_dir}: {error.strerror or error}',
          'make room there, or set TFDS_DATA_DIR to another folder',
        ) from None
    builder = _builder(asked, found, data_dir)
  _same_files(builder, found, where)
  for split in asked.splits:
    if split not in builder.info.splits:
      _require(asked, found, manual_dir, where)
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
  return Prepared(asked, examples, files.fingerprint(shards, asked.spec))


def read(prepared: Prepared) -> Iterator[dict[str, Any]]:
  """Yields the rows of a prepared split, in order."""
  columns = published.SETS[prepared.asked.name].columns
  for start in range(0, len(prepared.examples), _BATCH):
    stop = min(start + _BATCH, len(prepared.examples))
    for example in prepared.examples.__getitems__(list(range(start, stop))):
      yield {key: _plain(example[key]) for key in columns}


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
  """A feature as JSON would hold it."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'surrogateescape')
  if isinstance(value, dict):  # a sequence of messages, as columns
    turns = zip(*(map(_plain, value[key]) for key in _MESSAGES))
    return [dict(zip(_MESSAGES, turn)) for turn in turns]
  return float(value)


class _Found(NamedTuple):
  """The published files that are in the manual directory."""

  paths: dict[str, str]  # name as published -> path
  splits: dict[str, tuple[str, ...]]  # split -> its files, where all are there
  folder: str  # the set's folder in the manual directory


def _find(asked: published.Asked, manual_dir: str) -> _Found:
  folder = os.path.join(manual_dir, asked.name)
  splits = published.SETS[asked.name].configs[asked.config]
  paths = {}
  for name in dict.fromkeys(n for names in splits.values() for n in names):
    path = os.path.join(folder, name)
    if os.path.exists(path):
      paths[name] = path
    elif os.path.isdir(unpacked := os.path.join(folder, 'aclImdb')):
      paths[name] = unpacked  # imdb_reviews only: its archive, unpacked
  whole = {
    split: names
    for split, names in splits.items()
    if paths.keys() >= set(names)
  }
  return _Found(paths, whole, folder)


def _require(
  asked: published.Asked, found: _Found, manual_dir: str, where: str
) -> None:
  """Refuses to prepare a set without every file of the splits asked for."""
  splits = published.SETS[asked.name].configs[asked.config]
  names = dict.fromkeys(n for s in asked.splits for n in splits[s])
  missing = [name for name in names if name not in found.paths]
  if missing:
    more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
    path = os.path.join(found.folder, missing[0])
    raise errors.refuse(
      where,
      f'{path}{more} not found',
      published.fix(asked.name, missing[0], manual_dir),
    )


def _same_files(builder: Any, found: _Found, where: str) -> None:
  """Refuses a set that was prepared from files other than those found."""
  recorded = (builder.info.metadata or {}).get('files')
  if recorded is None:
    return  # prepared by TFDS itself
  for name, path in found.paths.items():
    digest = _digest(path)
    if recorded.get(name, digest) != digest:
      raise errors.refuse(
        where,
        f'{builder.data_path} was prepared from another {path}',
        f'delete {builder.data_path} and start again',
      )


def _digest(path: str) -> str:
  """sha256 of a file, or of the names and sizes in a folder."""
  if os.path.isfile(path):
    return files.fingerprint([path])
  digest = hashlib.sha256()
  for folder, folders, names in os.walk(path):
    folders.sort()
    for name in sorted(names):
      file = os.path.join(folder, name)
      line = f'{os.path.relpath(file, path)} {os.path.getsize(file)}\n'
      digest.update(line.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()


def _is_prepared(builder: Any) -> bool:
  """Whether the set is there; TFDS's own question logs a warning if not."""
  return (pathlib.Path(builder.data_path) / 'dataset_info.json').exists()


def _write(builder: Any) -> None:
  """Prepares a set; TFDS's progress lines are dropped."""
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(file_format=_FORMAT)


def _builder(asked: published.Asked, found: _Found, data_dir: str) -> Any:
  """A fresh builder; it reads what is on disk when it is made."""
  return _BUILDERS[asked.name](found, config=asked.config, data_dir=data_dir)


def _configs(name: str) -> list[tfds.core.BuilderConfig]:
  return [
    tfds.core.BuilderConfig(
      name=config, version='1.0.0', description=f'{name}, {config}'
    )
    for config in published.SETS[name].configs
  ]


class _PublishedBuilder(
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """A set whose files are rows (JSONL or Parquet), kept in file order."""

  RELEASE_NOTES = {'1.0.0': 'Prompt and answers apart.'}

  def __init__(self, found: _Found, **kwargs):
    """Takes the files to read; the rest is TFDS's."""
    self._found = found
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    about = published.SETS[self.name]
    return tfds.core.DatasetInfo(
      builder=self,
      description=about.description,
      homepage=about.homepage,
      license=about.licence,
      features=tfds.features.FeaturesDict(
        {key: _FEATURES[kind]() for key, kind in about.columns.items()}
      ),
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    _record_files(self, self._found)
    return _with_rows(
      {split: self._generate_examples(split) for split in self._found.splits}
    )

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    about = published.SETS[self.name]
    key = 0
    for name in self._found.splits[split]:
      path = self._found.paths[name]
      for number, raw in files.read_rows(path, records.KNOWN_COLUMNS):
        where = f'{path}:{number}'
        row = about.convert(raw, split, where)
        if row is not None:
          records.parse_row(row, where=where)  # refuses what is malformed
          yield key, row
          key += 1


class HhRlhf(_PublishedBuilder, skip_registration=True):
  """Anthropic HH."""

  BUILDER_CONFIGS = _configs('hh_rlhf')


class Shp(_PublishedBuilder, skip_registration=True):
  """Stanford Human Preferences."""

  BUILDER_CONFIGS = _configs('shp')


class UltrafeedbackBinarized(_PublishedBuilder, skip_registration=True):
  """UltraFeedback, binarized by Hugging Face's H4."""

  BUILDER_CONFIGS = _configs('ultrafeedback_binarized')


class TldrComparisons(_PublishedBuilder, skip_registration=True):
  """OpenAI's comparisons of TL;DR summaries."""

  BUILDER_CONFIGS = _configs('tldr_comparisons')


class ImdbReviews(imdb.Builder, skip_registration=True):
  """TFDS's own set, reading its archive without TFDS's download manager."""

  pkg_dir_path = pathlib.Path(imdb.__file__).parent  # TFDS's README, citation

  def __init__(self, found: _Found, **kwargs):
    """Takes the files to read; the rest is TFDS's."""
    self._found = found
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    info = super()._info()
    return tfds.core.DatasetInfo(
      builder=self,
      description=info.description,
      homepage=info.homepage,
      citation=info.citation,
      features=info.features,
      supervised_keys=info.supervised_keys,
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    _record_files(self, self._found)
    path = next(iter(self._found.paths.values()))
    return _with_rows(
      {
        split: self._generate_examples(
          _archive(path),
          'aclImdb/test' if split == 'test' else 'aclImdb/train',
          labeled=split != 'unsupervised',
        )
        for split in self._found.splits
      }
    )


_BUILDERS = {
  'hh_rlhf': HhRlhf,
  'shp': Shp,
  'ultrafeedback_binarized': UltrafeedbackBinarized,
  'tldr_comparisons': TldrComparisons,
  'imdb_reviews': ImdbReviews,
}


def _record_files(builder: Any, found: _Found) -> None:
  builder.info.metadata['files'] = {
    name: _digest(path) for name, path in found.paths.items()
  }


def _with_rows(splits: dict[str, Iterator]) -> dict[str, Iterator]:
  """The splits that have rows; TFDS cannot write one that has none."""
  kept = {}
  for split, examples in splits.items():
    first = list(itertools.islice(examples, 1))
    if first:
      kept[split] = itertools.chain(first, examples)
  return kept


def _archive(path: str) -> Iterator[tuple[str, BinaryIO]]:
  """Yields (name from aclImdb/ on, file) from the archive or its folder."""
  if os.path.isdir(path):
    for file in sorted(pathlib.Path(path).glob('*/*/*.txt')):
      with file.open('rb') as text:
        yield file.relative_to(pathlib.Path(path).parent).as_posix(), text
    return
  try:
    # Through gzip: tarfile's own 'r|gz' takes a truncated file for a whole one.
    with gzip.open(path) as data, tarfile.open(fileobj=data, mode='r|') as tar:
      for member in tar:
        if member.isfile():
          yield os.path.normpath(member.name), tar.extractfile(member)
  except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
    raise errors.refuse(
      f'{path}:0', f'damaged archive: {error}', 'download it again'
    ) from None
