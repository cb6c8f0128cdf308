"""config.paths: files and folders that a config names and nobody has."""

import pathlib

import pytest

from dpo_jax import config
from dpo_jax.config import paths
from dpo_jax.storage import uploads
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_stories_experiment_finds_its_files(shared, monkeypatch):
  monkeypatch.chdir(ROOT)  # its paths are relative to the repository
  if not pathlib.Path('../shared').exists():
    pytest.skip(f'{shared} is not beside the repository')
  paths.check_paths(config.load('experiments/stories_dpo.py'))


@pytest.mark.parametrize(
  'key,value,words',
  [
    ('data.train', 'synthetik', ("did you mean 'synthetic'?",)),
    ('data.eval', 'synthetic_demonstration', ("'synthetic_demonstrations'?",)),
    ('tokenizer', 'gpt', ("'gpt' is not there", 'the path of a folder')),
    ('model.init_from', 'experimenty', ("did you mean 'experiments'? give",)),
    ('data.manual_dir', 'x' * 5000, ('the path of a folder',)),
    ('data.chat_template', './a.jinja', ('the path of a file',)),
  ],
)
def test_a_missing_path_is_refused_by_its_key(
  load, monkeypatch, key, value, words
):
  monkeypatch.chdir(ROOT)
  loaded = load('dpo', '')
  paths.check_paths(loaded)
  section, _, name = key.rpartition('.')
  (loaded[section] if section else loaded)[name] = value
  with pytest.raises(InputError) as error:
    paths.check_paths(loaded)
  assert str(error.value).startswith(f'config.{key}: ')
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize('key', ['data.train', 'data.eval', 'sample.prompts'])
def test_a_missing_data_file_is_refused_by_its_path(load, tmp_path, key):
  loaded = load('dpo', '')
  section, _, name = key.partition('.')
  loaded[section][name] = f'{tmp_path}/no.jsonl'
  with pytest.raises(InputError, match=f'{tmp_path}/no.jsonl:0: no '):
    paths.check_paths(loaded)


@pytest.mark.parametrize('key', ['model.init_from', 'tokenizer', 'data.train'])
def test_a_store_that_cannot_be_used_is_refused(load, key):
  loaded = load('dpo', '')
  section, _, name = key.rpartition('.')
  (loaded[section] if section else loaded)[name] = 'foo://a/b.jsonl'
  with pytest.raises(InputError, match='foo:// is not supported'):
    paths.check_paths(loaded)


def test_weights_in_a_bucket_are_looked_for(load, bucket):
  loaded = load('dpo', '')
  loaded.model.init_from = str(bucket / 'model')
  with pytest.raises(InputError, match="'mem://bkt/model' is not there"):
    paths.check_paths(loaded)
  (bucket / 'model' / 'config.json').write_bytes(b'{}')
  paths.check_paths(loaded)
  (bucket / 'model' / uploads.UNFINISHED).write_bytes(b'')
  with pytest.raises(InputError, match='was never finished'):
    paths.check_paths(loaded)
