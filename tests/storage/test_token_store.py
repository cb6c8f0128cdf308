"""A store gives back what was written, whole, or is refused by name."""

import hashlib
from typing import NamedTuple

import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.storage import token_store
from dpo_jax.types import Comparison, EncodedRecord


def array(*tokens):
  return np.array(tokens, np.int32)


RECORDS = [
  EncodedRecord(
    array(1, 2, 3),
    (array(4), array(5, 6, 2**31 - 1)),
    (Comparison(1, 0, 0.3, 1.7), Comparison(0, 1)),
    labels=None,
    scores=(0.1, -2.0),
    uid='00ff00ff00ff00ff',
    quantiles=(0.75, 0.0),
  ),
  EncodedRecord(array(7), (array(8, 9),), (), labels=(True,), uid='a' * 16),
  EncodedRecord(array(7), (array(8), array(9)), (), labels=(False, True)),
  EncodedRecord(
    array(7, 7),
    (array(8, 9), array(9)),
    (),
    trained=(np.array([False, True]), np.array([True])),
  ),
]


def same(a, b):
  return (
    np.array_equal(a.prompt, b.prompt)
    and len(a.completions) == len(b.completions)
    and all(map(np.array_equal, a.completions, b.completions))
    and all(x.dtype == np.int32 for x in (a.prompt, *a.completions))
    and a[2:-1] == b[2:-1]
    and (a.trained is None) == (b.trained is None)
    and all(map(np.array_equal, a.trained or (), b.trained or ()))
    and all(x.dtype == bool for x in a.trained or ())
  )


def test_gives_back_what_was_written(tmp_path):
  folder = tmp_path / 'cache' / 'store'
  written = token_store.write(folder, iter(RECORDS), {'ledger': {'read': 3}})
  for store in (written, token_store.open_store(folder)):
    assert len(store) == 4
    assert all(map(same, [store[i] for i in range(4)], RECORDS))
    assert store.table.num_trained.tolist() == [1, 3, 2, 1, 1, 1, 1]
    assert store.meta == {'ledger': {'read': 3}}
    assert store.uids == [record.uid for record in RECORDS]
    expected = length_table.make_table(RECORDS)
    assert all(
      np.array_equal(x, y, equal_nan=x.dtype.kind == 'f') and x.dtype == y.dtype
      for x, y in zip(store.table, expected)
    )
    with pytest.raises(IndexError):
      store[4]
  assert [path.name for path in folder.parent.iterdir()] == ['store']


def test_feeds_a_plan(tmp_path):
  rng = np.random.default_rng(0)
  records = [
    EncodedRecord(*(rng.integers(1, 9, n, np.int32) for n in (4,)), (c, c), ())
    for c in (rng.integers(1, 9, n, np.int32) for n in range(1, 21))
  ]
  store = token_store.write(tmp_path / 'store', records, {})
  plan = pipeline.make_plan(store.table, seed=0, batch_size=8, row_length=64)
  for stored, given in zip(
    plan.batch(1, store).rows, plan.batch(1, records).rows
  ):
    assert np.array_equal(stored, given)


def test_digest_is_of_tokens_and_of_where_they_end(tmp_path):
  def digest(record):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    return token_store.write(folder, [record], {'n': str(folder)}).digest

  record = RECORDS[0]
  other = record._replace(comparisons=(), scores=None, labels=(True, False))
  assert digest(other._replace(uid='x')) == digest(record)
  moved = [
    record._replace(prompt=array(1, 2), completions=(array(3, 4), array(5, 6))),
    record._replace(prompt=array(1, 2, 3), completions=(array(4, 5), array(6))),
    record._replace(prompt=array(1, 2, 3), completions=(array(4), array(5, 6))),
    record._replace(prompt=array(1, 2, 3), completions=(array(4, 5, 6),)),
  ]
  masks = [
    record._replace(trained=tuple(map(np.array, mask)))
    for mask in (
      ([True], [True, True, False]),
      ([True], [False, True, True]),
      ([True], [True, True, True]),
    )
  ]
  assert len({digest(x) for x in (*moved, *masks)}) == 7


def test_digest_of_records_without_masks_is_that_of_format_1(tmp_path):
  # Reference scores are keyed by it. By hand: per record int64 [pieces,
  # lengths...], then the tokens as int32, little-endian.
  header = np.array([3, 3, 1, 3], '<i8').tobytes()
  tokens = np.array([1, 2, 3, 4, 5, 6, 2**31 - 1], '<i4').tobytes()
  expected = hashlib.sha256(header + tokens).hexdigest()
  assert token_store.write(tmp_path / 'x', RECORDS[:1], {}).digest == expected


class Options(NamedTuple):
  max_length: int
  truncation: str


def test_key_is_of_everything_that_shapes_the_tokens():
  key = token_store.key
  options = {'max_length': 512, 'truncation': 'drop'}
  first = key(['a', 'b'], 't', None, options)
  assert first == key(('a', 'b'), 't', None, dict(reversed(options.items())))
  assert first == key(['a', 'b'], 't', None, Options(512, 'drop'))
  assert len(first) == 32 and int(first, 16)
  # As commit dd04b5d named it: caches on disk stay in use.
  same = key(['a', 'b'], 't', '{{x}}', options)
  assert same == 'c2efd0510ce28d4d4fc7a73b7c9d998c'
  others = [
    key(['b', 'a'], 't', None, options),
    key(['a', 'b'], 'u', None, options),
    key(['a', 'b'], 't', '{{x}}', options),
    key(['a', 'b'], 't', None, options | {'max_length': 511}),
  ]
  assert len({first, *others}) == 5


NAMES = ('tokens.array_record', 'table.npz', 'meta.json')


@pytest.mark.parametrize('name', NAMES)
def test_any_damage_is_refused_by_name(tmp_path, name):
  folder = tmp_path / 'store'
  token_store.write(folder, RECORDS, {})
  path = folder / name
  intact = path.read_bytes()
  rng = np.random.default_rng(0)
  damaged = [intact[:-1], intact[: len(intact) // 2], b'', intact + b'\0']
  for place in rng.integers(0, len(intact), 30):
    flipped = bytearray(intact)
    flipped[place] ^= 1 << rng.integers(8)
    damaged.append(bytes(flipped))
  message = f'{name}: damaged.*fix: delete the folder .*store'
  for content in damaged:
    path.write_bytes(content)
    with pytest.raises(types.InputError, match=message) as refusal:
      token_store.open_store(folder)
    assert '\n' not in str(refusal.value)
  path.unlink()
  with pytest.raises(types.InputError, match=f'{name}: No such file'):
    token_store.open_store(folder)


def test_a_store_of_another_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(token_store, 'FORMAT', 1)
  token_store.write(tmp_path / 'store', RECORDS, {})
  monkeypatch.undo()
  with pytest.raises(types.InputError, match='has format 1'):
    token_store.open_store(tmp_path / 'store')


def test_the_store_of_another_process_is_used(tmp_path):
  folder = tmp_path / 'store'

  def meanwhile():
    yield RECORDS[0]
    token_store.write(folder, RECORDS, {'by': 'the other'})
    yield from RECORDS[1:]

  store = token_store.write(folder, meanwhile(), {'by': 'this one'})
  assert store.meta == {'by': 'the other'} and same(store[2], RECORDS[2])
  assert [path.name for path in tmp_path.iterdir()] == ['store']


def test_a_failure_leaves_nothing_behind(tmp_path):
  def broken():
    yield RECORDS[0]
    raise types.InputError('rows.jsonl:7: not JSON; fix: quote it')

  with pytest.raises(types.InputError, match='rows.jsonl:7'):
    token_store.write(tmp_path / 'store', broken(), {})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('failing', ['write', 'close'])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, failing):
  # What array_record raises then, seen under RLIMIT_FSIZE.
  class FullDisk:
    def __init__(self, path, options):
      self.failing = False

    def write(self, content):
      self.fail('write')

    def close(self):
      self.fail('close')

    def fail(self, where):
      if where == failing or self.failing:
        self.failing = True
        raise RuntimeError('write() failed: No space left on device')

  library = token_store.array_record_module
  monkeypatch.setattr(library, 'ArrayRecordWriter', FullDisk)
  message = 'store: the token store cannot be written .*No space.*fix: free'
  with pytest.raises(types.InputError, match=message):
    token_store.write(tmp_path / 'store', RECORDS, {})
  assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  with pytest.raises(types.InputError, match='file/store: .*Not a directory'):
    token_store.write(tmp_path / 'file' / 'store', RECORDS, {})


def test_a_store_in_a_bucket_is_read_from_a_copy(bucket, tmp_path):
  local = token_store.write(tmp_path / 'x', RECORDS, {'n': 1})
  store = token_store.write(bucket / 'x', RECORDS, {'n': 1})
  again = token_store.open_store('mem://bkt/x')
  assert store.digest == again.digest == local.digest
  assert all(same(again[i], local[i]) for i in range(4))
  data = (bucket / 'x' / 'table.npz').read_bytes()
  (bucket / 'x' / 'table.npz').write_bytes(data[:-1] + b'?')
  with pytest.raises(types.InputError, match='mem://bkt/x/table.npz: damaged'):
    token_store.open_store(bucket / 'x')
  (bucket / 'x' / 'table.npz').unlink()
  with pytest.raises(types.InputError, match='mem://bkt/x/table.npz: no such'):
    token_store.open_store(bucket / 'x')
