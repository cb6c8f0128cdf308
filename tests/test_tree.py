"""tree.py: names, fingerprints and the comparison of trees."""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dpo_jax import tree, types

_MASK = (1 << 32) - 1


class Pair(NamedTuple):
  first: jax.Array
  second: list


def oracle(array):
  """The docstring's formula in Python integers, a bit at a time."""
  array = np.asarray(array)
  salt = zlib.crc32(f'{array.dtype.name}{array.shape}'.encode())
  size = array.dtype.itemsize
  data, total = array.tobytes(), 0
  word_size = min(size, 4)
  for i in range(len(data) // word_size):
    word = int.from_bytes(data[i * word_size : (i + 1) * word_size], 'little')
    word ^= (i * 0x9E3779B9 + salt) & _MASK
    word ^= word >> 16
    word = word * 0x85EBCA6B & _MASK
    word ^= word >> 13
    word = word * 0xC2B2AE35 & _MASK
    total += word ^ (word >> 16)
  return total & _MASK


def one(array):
  return tree.fingerprint({'x': array})['x']


def test_names_are_the_same_for_other_containers():
  tuples = Pair(jnp.zeros(1), [jnp.ones(2), {'b': jnp.ones(3)}])
  dicts = {'first': 0, 'second': {'0': 1, '1': {'b': 2}}}
  names = ['first', 'second/0', 'second/1/b']
  assert [name for name, _ in tree.flatten_with_names(tuples)] == names
  assert [name for name, _ in tree.flatten_with_names(dicts)] == names


def test_unflatten_names_is_the_inverse_for_dicts():
  nested = {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
  flat = dict(tree.flatten_with_names(nested))
  assert tree.unflatten_names(flat) == nested


@pytest.mark.parametrize(
  'dtype',
  ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'int16', 'bool']
  + ['complex64', 'float8_e4m3fn'],
)
def test_device_host_and_formula_agree(dtype):
  rng = np.random.default_rng(0)
  array = rng.integers(0, 100, (3, 5, 2)).astype(jnp.dtype(dtype))
  expected = oracle(array)  # independent of numpy's and XLA's arithmetic
  assert one(array) == expected
  assert one(jnp.asarray(array)) == expected


@pytest.mark.parametrize('dtype', ['int64', 'float64', 'complex128', '>f4'])
def test_numpy_keeps_what_jax_would_cast(dtype):
  array = np.arange(6).reshape(2, 3).astype(dtype)
  assert one(array) == oracle(array.astype(array.dtype.newbyteorder('<')))


def test_eight_byte_words_on_device_as_on_host():
  array = np.linspace(-1, 1, 6).reshape(2, 3)
  with jax.enable_x64(True):
    assert one(jnp.asarray(array)) == one(array)


@pytest.mark.parametrize('dtype', ['int4', 'uint4', 'float4_e2m1fn'])
def test_elements_of_less_than_a_byte(dtype):
  array = np.array([0, 1, 2, 3], getattr(ml_dtypes, dtype))
  hashes = {one(np.roll(array, n)) for n in range(4)}
  assert len(hashes) == 4
  assert one(jnp.asarray(array)) == one(array)


def test_every_bit_and_every_swap_counts():
  array = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
  hashes = {one(array)}
  for bit in range(32 * array.size):
    words = array.copy().view(np.uint32).reshape(-1)
    words[bit // 32] ^= np.uint32(1 << bit % 32)
    hashes.add(one(words.view(np.float32).reshape(4, 6)))
  for i in range(array.size):
    for j in range(i):
      flat = array.copy().reshape(-1)
      flat[[i, j]] = flat[[j, i]]
      hashes.add(one(flat.reshape(4, 6)))
  assert len(hashes) == 1 + 32 * 24 + 24 * 23 // 2


def test_nan_payload_and_signed_zero_count():
  assert one(np.float32([0.0])) != one(np.float32([-0.0]))
  nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
  assert one(jnp.asarray(nan[:1])) != one(jnp.asarray(nan[1:]))


def test_dtype_and_shape_count():
  zeros = [jnp.zeros(4), jnp.zeros(4, jnp.int32), jnp.zeros((2, 2))]
  assert len({one(z) for z in zeros + [jnp.zeros(0), jnp.zeros(())]}) == 5


def test_keys_typed_or_raw_agree():
  key = jax.random.key(3)
  assert one(key) == one(jax.random.key_data(key))
  assert one(key) != one(jax.random.key(4))


@pytest.mark.parametrize('spec', [('a', 'b'), ('b', None), (None, 'a'), ()])
def test_sharding_does_not_count(spec):
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=auto)
  array = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32)
  sharding = jax.sharding.NamedSharding(mesh, jax.P(*spec))
  with jax.transfer_guard('allow'):
    placed = jax.device_put(array, sharding)
  with jax.transfer_guard('disallow'):
    assert one(placed) == oracle(array)


def test_a_leaf_of_text_is_refused_by_name():
  with pytest.raises(TypeError, match='a/b: a leaf of <U2'):
    tree.fingerprint({'a': {'b': np.array(['no'])}})


def test_differences_name_the_leaf():
  expected = {'a': jnp.zeros(2), 'b': jax.ShapeDtypeStruct((3,), jnp.bfloat16)}
  assert tree.differences(expected, expected) == []
  actual = {'b': np.zeros((4,), np.float32), 'z': np.zeros(1)}
  assert tree.differences(expected, actual) == [
    'a: missing',
    'b: shape (4,), expected (3,)',
    'b: dtype float32, expected bfloat16',
    'z: not expected',
  ]
  renamed = tree.differences({'kernel': 1}, {'kernels': 1})
  assert renamed[0] == 'kernel: missing (there is kernels)'


def test_check_same_is_one_line():
  expected = {name: jnp.zeros(1) for name in 'abcde'}
  with pytest.raises(types.InputError) as error:
    tree.check_same(expected, {}, where='runs/x', fix='do y')
  assert str(error.value) == (
    'runs/x: a: missing; b: missing; c: missing (and 2 more); fix: do y'
  )
