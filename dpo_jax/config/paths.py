"""config -> nothing, or the refusal of a file that is not there.

Comes in: a validated ConfigDict. Goes out: nothing, or InputError with the key,
the path and the nearest name. Imports no jax, so that a wrong path is refused
in a second.
"""

import os
from collections.abc import Callable, Collection

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.config import rules
from dpo_jax.data.sources import files, published, synthetic
from dpo_jax.data.sources import source as sources
from dpo_jax.storage import buckets, places, trackers
from dpo_jax.storage import files as storage_files


def check_paths(
  config: ConfigDict, parts: Collection[str] = ('train', 'eval')
) -> None:
  """Raises InputError if a file, folder or package that a key names is missing.

  Of a data file the first bytes are read; the name of a public set
  (`tfds:...`) is parsed. Embedded sets and 'split' name no file.

  Args:
    config: validated.
    parts: those of the data that are read, of 'train' and 'eval'.
  """
  values, data = rules.flatten(config), config.data
  trackers.check(config.log.tracker)
  named = [('data.eval', data.eval)] if 'eval' in parts else []
  # What is held out of the training data is read from there.
  if 'train' in parts or (named and data.eval == 'split'):
    names = rules.split_names(data.train)
    named = [('data.train', name) for name in names] + named
  for key, name in named:
    if name.startswith(sources.TFDS):
      published.parse_name(name.removeprefix(sources.TFDS), where=name)
    elif name not in (*synthetic.EMBEDDED, 'split'):
      _check_data_file(key, name)
  if config.tokenizer not in ('', 'byte'):
    # A folder or its tokenizer.json: either will do.
    _check_path('tokenizer', config.tokenizer, 'folder', places.exists)
  for key in (
    'model.init_from',
    'adapter.init_from',
    'reference.init_from',
    'data.manual_dir',
  ):
    if key == 'data.manual_dir' and buckets.is_url(values[key]):
      raise errors.refuse(
        f'config.{key}',
        f'{values[key]!r} is not read from a bucket',
        'copy the files to a folder of this machine',
      )
    if values[key]:
      _check_path(key, values[key], 'folder', places.is_folder)
  if config.sample.prompts:
    files.check(os.path.expanduser(config.sample.prompts))
  template = config.data.chat_template
  # An identifier may be the name of one of the tokenizer's templates.
  if template and not template.replace('-', '_').isidentifier():
    _check_path('data.chat_template', template, 'file', places.is_file)
  storage_files.at(data.cache_dir)  # refuses a store that cannot be used


def _check_data_file(key: str, name: str) -> None:
  path = os.path.expanduser(name)
  near = errors.nearest(name, synthetic.EMBEDDED)
  if near and not places.exists(path):
    raise errors.refuse(
      f'config.{key}',
      f'{name!r} is no file and no data set',
      f'did you mean {near!r}?',
    )
  files.check(path)


def _check_path(key: str, name: str, kind: str, exists: Callable) -> None:
  if exists(name):
    return
  folder, base = os.path.split(name)
  parent, siblings = storage_files.at(name).parent, []
  if places.is_folder(parent):
    siblings = [path.name for path in parent.iterdir()]
  near = errors.nearest(base, siblings)
  hint = f'did you mean {os.path.join(folder, near)!r}? ' if near else ''
  raise errors.refuse(
    f'config.{key}',
    f'{name!r} is not there',
    f'{hint}give the path of a {kind}, absolute or from {os.getcwd()}',
  )
