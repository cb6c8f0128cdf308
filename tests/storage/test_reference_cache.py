"""reference_cache.py: traps 19; nothing missing, foreign or damaged passes."""

import inspect
import os
import random

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import tree, types
from dpo_jax.storage import reference_cache

_UIDS = ['a' * 16, 'b' * 16, 'c' * 16]
_SCORES = {
  'uids': _UIDS,
  'offsets': np.array([0, 2, 3, 6]),
  'logps': np.float32([-1, -2, -3, -4, -5, -6]),
  'num_tokens': np.array([1, 2, 3, 4, 5, 6]),
}


def test_the_key_is_of_tokens_weights_precision_and_model_alone():
  params = {'w': jnp.arange(4.0)}
  prints = tree.fingerprint(params)
  name = reference_cache.key('tokens', prints, 'float32')
  again = dict(reversed(tree.fingerprint(params | {}).items()))
  assert name == reference_cache.key('tokens', again, 'float32')
  assert len(name) == 32 and int(name, 16) >= 0
  flipped = tree.fingerprint({'w': jnp.arange(4.0).at[2].set(2.0000002)})
  others = {
    reference_cache.key('other', prints, 'float32'),
    reference_cache.key('tokens', flipped, 'float32'),
    reference_cache.key('tokens', 'a digest', 'float32'),
    reference_cache.key('tokens', prints, 'bfloat16'),
    reference_cache.key('tokens', prints, 'float32', {'rope_theta': 1e4}),
    reference_cache.key('tokens', prints, 'float32', {'rope_theta': 1e5}),
  }
  assert len(others | {name}) == 7
  taken = list(inspect.signature(reference_cache.key).parameters)
  # No beta, seed or loss.
  assert taken == ['tokens_digest', 'reference', 'precision', 'model']


def test_names_and_seals_are_those_of_commit_dd04b5d(tmp_path):
  # Other ones would orphan the caches on users' disks.
  name = reference_cache.key('abc', {'b': 2, 'a': 1}, 'bfloat16')
  assert name == '2998b0c3571ef28e998623ba3f6ff4a3'
  reference_cache.write(
    tmp_path,
    'name',
    uids=['u'],
    offsets=np.array([0, 2]),
    logps=np.float32([-1, -2]),
    num_tokens=np.array([1, 2]),
  )
  with np.load(tmp_path / 'name.npz') as arrays:
    assert arrays['seal'].tobytes() == (
      b'44dfe3c5053fdcbf43a89f63372ddfc1d3ee0786661c9e11a3a3484eaa2aff27'
    )


def test_scores_by_completion_and_by_record(tmp_path):
  cache = reference_cache.write(tmp_path / 'c', 'k', **_SCORES)
  assert os.listdir(tmp_path / 'c') == ['k.npz'] and len(cache) == 3
  assert reference_cache.is_there(tmp_path / 'c', 'k')
  batch = cache.scores(np.array([5, -1, 0, 2]))
  assert batch.logps.tolist() == [-6, 0, -1, -3]  # -1: an empty place
  assert batch.num_tokens.tolist() == [6, 0, 1, 3]
  assert batch.logps.dtype == batch.num_tokens.dtype == np.float32
  assert cache.record(2, 'c' * 16).logps.tolist() == [-4, -5, -6]


def test_what_is_not_there_is_never_zero(tmp_path):
  cache = reference_cache.write(tmp_path, 'k', **_SCORES)
  for wrong in (6, -2):
    with pytest.raises(types.InputError, match=f'completion {wrong}, there'):
      cache.scores(np.array([0, wrong]))
  for i, uid in ((0, 'b' * 16), (3, 'a' * 16), (-1, 'c' * 16)):
    with pytest.raises(types.InputError, match=f'record {i} is .*{uid} in'):
      cache.record(i, uid)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'logps': [-1, -2, -3, np.nan, -5, -6]}, '2 .c{16}., completion 0 has'),
    ({'logps': [-1, -np.inf, -3, -4, -5, -6]}, '0 .a{16}., completion 1 has'),
    ({'num_tokens': [1, 2, 0, 4, 5, 6]}, 'logps -3 over 0 tokens'),
    ({'logps': [-1, -2, -3, -4, -5]}, '3 records, 5 scores and 6 token'),
    ({'offsets': [0, 2, 3]}, 'do not fit together'),
    ({'offsets': [0, 2, 2, 6]}, 'do not fit together'),
  ],
)
def test_incomplete_scores_are_not_written(tmp_path, change, words):
  with pytest.raises(types.InputError, match=words):
    reference_cache.write(tmp_path, 'k', **(_SCORES | change))
  assert os.listdir(tmp_path) == []


def test_another_key_or_store_is_refused(tmp_path):
  reference_cache.write(tmp_path, 'k', **_SCORES)
  with pytest.raises(types.InputError, match='no reference scores .*1 of oth'):
    reference_cache.open_cache(tmp_path, 'other')
  (tmp_path / 'k.npz').rename(tmp_path / 'other.npz')
  with pytest.raises(types.InputError, match='damaged or of another key'):
    reference_cache.open_cache(tmp_path, 'other')
  reference_cache.write(tmp_path, 'k', **_SCORES)
  same = {name: _SCORES[name] for name in ('offsets', 'num_tokens')}
  assert len(reference_cache.open_cache(tmp_path, 'k', **same)) == 3
  for name, array in same.items():
    with pytest.raises(types.InputError, match=f'its {name} are not those'):
      reference_cache.open_cache(tmp_path, 'k', **{name: array + 1})


def test_a_flipped_bit_or_a_torn_file_is_refused_or_harmless(tmp_path):
  reference_cache.write(tmp_path, 'k', **_SCORES)
  path = tmp_path / 'k.npz'
  data, choose = path.read_bytes(), random.Random(0)
  refused = 0
  for trial in range(150):
    torn = bytearray(
      data[: choose.randrange(len(data)) if trial < 30 else None]
    )
    if trial >= 30:
      bit = choose.randrange(8 * len(torn))
      torn[bit // 8] ^= 1 << bit % 8
    path.write_bytes(torn)
    try:
      cache = reference_cache.open_cache(tmp_path, 'k')
    except types.InputError as error:
      assert str(error).startswith(f'{path}: damaged')
      refused += 1
    else:
      for name, array in _SCORES.items():
        if name != 'uids':
          np.testing.assert_array_equal(getattr(cache, name), array)
      assert [uid.decode() for uid in cache.uids] == _UIDS
  assert refused >= 50


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    types.InputError, match='file.*: .*; fix: remove or rename'
  ):
    reference_cache.write(tmp_path / 'file', 'k', **_SCORES)


def test_scores_in_a_bucket(bucket):
  written = reference_cache.write(bucket, 'k', **_SCORES)
  read = reference_cache.open_cache('mem://bkt', 'k')
  assert reference_cache.is_there(bucket, 'k')
  np.testing.assert_array_equal(read.logps, written.logps)
  with pytest.raises(types.InputError, match='1 of others in that folder'):
    reference_cache.open_cache(bucket, 'other')
