"""published files -> TFDS set: a dataset builder for each public set.

Comes in: a published.Asked, the downloaded files and the folder of prepared
sets. Goes out: a TFDS builder, which tfds_sets.py runs and opens. Downloads
nothing.

Importing this module imports TFDS, which takes seconds: import it in functions.
"""

import gzip
import itertools
import os
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imdb_reviews import (
  imdb_reviews_dataset_builder as imdb,
)

from dpo_jax import errors
from dpo_jax.data.sources import downloads as downloads_lib
from dpo_jax.data.sources import files, published, records
from dpo_jax.data.sources.downloads import Downloads

MESSAGE_KEYS = ('role', 'content')

# PublishedSet.columns -> TFDS features.
_FEATURES = {
  'text': tfds.features.Text,
  'number': lambda: tfds.features.Scalar(np.float32),
  'messages': lambda: tfds.features.Sequence(
    {key: tfds.features.Text() for key in MESSAGE_KEYS}
  ),
}


def make(asked: published.Asked, downloads: Downloads, data_dir: str) -> Any:
  """Makes the builder of a set's config; it reads what is on disk by now."""
  builder = _BUILDERS[asked.name]
  return builder(downloads, config=asked.config, data_dir=data_dir)


class _PublishedBuilder(
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """A set whose files are rows (JSONL or Parquet), kept in file order."""

  RELEASE_NOTES = {'1.0.0': 'Prompt and answers apart.'}

  def __init__(self, downloads: Downloads, **kwargs):
    """Takes the files to read; the other arguments are TFDS's."""
    self._downloads = downloads
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
    _record_files(self, self._downloads)
    splits = self._downloads.splits
    return _with_rows({s: self._generate_examples(s) for s in splits})

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    about = published.SETS[self.name]
    key = 0
    for name in self._downloads.splits[split]:
      path = self._downloads.paths[name]
      for number, raw in files.read_rows(path, records.is_known):
        where = f'{path}:{number}'
        row = about.convert(raw, split, where)
        if row is not None:
          records.parse_row(row, where=where)  # refuses a malformed row
          yield key, row
          key += 1


def _builder_class(name: str) -> type[_PublishedBuilder]:
  """The builder class of a set: TFDS takes the set's name from its class."""
  configs = [
    tfds.core.BuilderConfig(
      name=config, version='1.0.0', description=f'{name}, {config}'
    )
    for config in published.SETS[name].configs
  ]
  attributes = {'name': name, 'BUILDER_CONFIGS': configs}
  return type(name, (_PublishedBuilder,), attributes, skip_registration=True)


class ImdbReviews(imdb.Builder, skip_registration=True):
  """TFDS's own set, reading its archive without TFDS's download manager."""

  pkg_dir_path = pathlib.Path(imdb.__file__).parent  # TFDS's README, citation

  def __init__(self, downloads: Downloads, **kwargs):
    """Takes the files to read; the other arguments are TFDS's."""
    self._downloads = downloads
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    # TFDS's own info, plus metadata to record the files in.
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
    _record_files(self, self._downloads)
    # All splits are in one archive.
    path = next(iter(self._downloads.paths.values()))
    return _with_rows(
      {
        split: self._generate_examples(
          _archive(path),
          'aclImdb/test' if split == 'test' else 'aclImdb/train',
          labeled=split != 'unsupervised',
        )
        for split in self._downloads.splits
      }
    )


_BUILDERS = {
  name: ImdbReviews if name == 'imdb_reviews' else _builder_class(name)
  for name in published.SETS
}


def _record_files(builder: Any, downloads: Downloads) -> None:
  """Writes the files' digests into the metadata of the set."""
  builder.info.metadata['files'] = {
    name: downloads_lib.digest(path) for name, path in downloads.paths.items()
  }


def _with_rows(splits: dict[str, Iterator]) -> dict[str, Iterator]:
  """The splits that have rows: TFDS cannot write an empty one."""
  kept = {}
  for split, examples in splits.items():
    first = list(itertools.islice(examples, 1))
    if first:
      kept[split] = itertools.chain(first, examples)
  return kept


def _archive(path: str) -> Iterator[tuple[str, BinaryIO]]:
  """Yields (name from aclImdb/ on, file) of the archive or its folder."""
  if os.path.isdir(path):
    for file in sorted(pathlib.Path(path).glob('*/*/*.txt')):
      with file.open('rb') as text:
        yield file.relative_to(pathlib.Path(path).parent).as_posix(), text
    return
  try:
    # Through gzip: tarfile's own 'r|gz' reads a truncated file without error.
    with gzip.open(path) as data, tarfile.open(fileobj=data, mode='r|') as tar:
      for member in tar:
        if member.isfile():
          yield os.path.normpath(member.name), tar.extractfile(member)
  except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
    raise errors.refuse(
      f'{path}:0', f'damaged archive: {error}', 'download it again'
    ) from None
