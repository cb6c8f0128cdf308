"""checkpoint_record.py: a record's digest, and records of older versions."""

import jax.numpy as jnp
import pytest

from dpo_jax import types
from dpo_jax.storage import checkpoint_record, checkpoints, files

ITEMS = {'params': {'w': jnp.arange(3.0)}}
META = {'t': (1, 2), 'note': 'é'}
# What `make` of commit dd04b5d returned for these; 'score' is gone since.
OLD = {
  'step': 3,
  'score': None,
  'leaves': {'params': {'w': [[3], 'float32', 2880179373]}},
  'meta': {'t': [1, 2], 'note': 'é'},
  'sha256': '67924856d8f78f5ff833df76d7ea9f66498d45a2b04a20cef3f021c486d892c6',
}


def test_a_record_is_of_json_types_with_its_own_digest():
  record = checkpoint_record.make(3, ITEMS, META)
  rest = {key: value for key, value in OLD.items() if key != 'score'}
  assert record | {'sha256': 0} == rest | {'sha256': 0}
  assert record.pop('sha256') == files.digest(record)


@pytest.mark.parametrize('score', [None, 0.5])
def test_steps_of_older_versions_restore(tmp_path, monkeypatch, score):
  old = OLD | {'score': score}
  old.pop('sha256')
  old['sha256'] = files.digest(old)
  assert score or old == OLD
  with checkpoints.Checkpoints(tmp_path) as saver:
    monkeypatch.setattr(checkpoint_record, 'make', lambda *_: old)
    saver.save(3, ITEMS, META)
    assert saver.verify_latest() == 3
  with checkpoints.Checkpoints(tmp_path) as reader:
    restored = reader.restore_latest({'params': None})
  assert restored.items['params']['w'].tolist() == [0, 1, 2]
  assert restored.meta == OLD['meta']


@pytest.mark.parametrize(
  'change', [{'step': 4}, {'meta': {}}, {'sha256': '0'}, {'score': 1.0}]
)
def test_a_changed_record_is_unsound(tmp_path, monkeypatch, change):
  monkeypatch.setattr(checkpoint_record, 'make', lambda *_: OLD | change)
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(3, ITEMS, META)
    with pytest.raises(types.InputError, match='does not match its digest'):
      saver.verify_latest()
