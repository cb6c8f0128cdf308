"""Small published files for tests, and sources opened from them."""

import gzip
import json

import pytest

from dpo_jax import types
from dpo_jax.data.sources import source as sources

HH = [
  {
    'chosen': f'\n\nHuman: {i}?\n\nAssistant: good é',
    'rejected': f'\n\nHuman: {i}?\n\nAssistant: bad',
  }
  for i in range(20)
]


def put(tmp_path, name, rows, opener=open):
  """Writes rows as JSON lines into the manual directory."""
  path = tmp_path / 'manual' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  with opener(path, 'wt') as file:
    file.write(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def put_hh(tmp_path, split='test', rows=HH):
  """Writes a split of hh_rlhf/harmless-base."""
  name = f'hh_rlhf/harmless-base/{split}.jsonl.gz'
  return put(tmp_path, name, rows, gzip.open)


def open_set(tmp_path, name):
  """Opens a public set from the manual directory, preparing it first."""
  return sources.open_source(
    name, manual_dir=tmp_path / 'manual', data_dir=tmp_path / 'tfds'
  )


def refused(tmp_path, name):
  """The message with which a public set is refused."""
  with pytest.raises(types.InputError) as caught:
    open_set(tmp_path, name)
  message = str(caught.value)
  assert message.isprintable() and '; fix: ' in message
  return message
