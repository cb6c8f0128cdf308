"""Names, fingerprints and comparison of pytrees.

Comes in: any pytree of arrays (jax, numpy, abstract). Goes out: leaves by name
('decoder/layers/kernel'), one uint32 per leaf that changes with any bit, and
one line per difference between two trees. Touches no disk and knows no model.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import errors

_BLOCK = 1 << 22  # words hashed at once on the host: 16 MB per scratch array


def flatten_with_names(tree: Any) -> list[tuple[str, Any]]:
  """Returns (name, leaf) in tree order; a name is the path joined by '/'.

  Dict keys, NamedTuple fields and list indices all become path parts, so a
  tree and its copy in other containers have the same names. None is no leaf.
  """
  paths = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [
    (jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
    for path, leaf in paths
  ]


def unflatten_names(leaves: dict[str, Any]) -> dict[str, Any]:
  """Returns nested dicts: the inverse of the above for trees of dicts."""
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = leaf
  return tree


def fingerprint(tree: Any) -> dict[str, int]:
  """Returns one uint32 per leaf, from its bits, dtype and shape.

  With w_i the i-th element's bits (row-major; an 8-byte element is two words):

    sum_i mix(w_i ^ (i * 0x9E3779B9 + salt)) mod 2^32

  `mix` is a bijection, so a change within one element always changes the sum.
  Swapped or shifted elements leave it unchanged with a chance of 2^-32. Integer
  sums do not depend on their order, so every sharding, every device and numpy
  give the same value. jax leaves are hashed on their devices (one scalar comes
  back), numpy leaves and Python scalars on the host.

  Args:
    tree: pytree of arrays of any dtype, typed PRNG keys included.

  Returns:
    {name: fingerprint}, in tree order.

  Raises:
    TypeError: a leaf is not numeric.
  """
  # All hashes are dispatched before the first one is waited for.
  hashes = {}
  for name, leaf in flatten_with_names(tree):
    if not isinstance(leaf, jax.Array):
      hashes[name] = _hash_on_host(name, np.asarray(leaf))
    elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      hashes[name] = _hash_on_device(jax.random.key_data(leaf))
    else:
      hashes[name] = _hash_on_device(leaf)
  return {name: int(value) for name, value in jax.device_get(hashes).items()}


def differences(expected: Any, actual: Any) -> list[str]:
  """Returns one line per leaf that is missing, extra, misshapen or cast.

  Args:
    expected: pytree of arrays or of jax.ShapeDtypeStruct.
    actual: pytree of the same kinds.

  Returns:
    Lines that start with the leaf's name; empty if the trees agree.
  """
  wanted = dict(flatten_with_names(expected))
  leaves = dict(flatten_with_names(actual))
  extra = [name for name in leaves if name not in wanted]
  lines = []
  for name, leaf in wanted.items():
    if name not in leaves:
      near = errors.nearest(name, extra)
      hint = f' (there is {near})' if near else ''
      lines.append(f'{name}: missing{hint}')
      continue
    for what, has, needs in (
      ('shape', tuple(np.shape(leaves[name])), tuple(np.shape(leaf))),
      ('dtype', dtype_name(leaves[name]), dtype_name(leaf)),
    ):
      if has != needs:
        lines.append(f'{name}: {what} {has}, expected {needs}')
  return lines + [f'{name}: not expected' for name in extra]


def check_same(expected: Any, actual: Any, *, where: str, fix: str) -> None:
  """Raises InputError naming the first leaves in which the trees differ."""
  lines = differences(expected, actual)
  if lines:
    more = f' (and {len(lines) - 3} more)' if len(lines) > 3 else ''
    raise errors.refuse(where, f'{"; ".join(lines[:3])}{more}', fix)


def dtype_name(leaf: Any) -> str:
  """Returns the leaf's dtype as text: 'float32', 'bfloat16', 'key<fry>'."""
  return str(leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype)


def _salt(array: Any) -> int:
  """Returns a uint32 from dtype and shape: they are part of the content."""
  return zlib.crc32(f'{array.dtype.name}{tuple(array.shape)}'.encode())


def _mix(words: Any) -> Any:
  """Scatters uint32 words: the finaliser of MurmurHash3, a bijection."""
  words = words ^ (words >> 16)
  words = words * np.uint32(0x85EBCA6B)
  words = words ^ (words >> 13)
  words = words * np.uint32(0xC2B2AE35)
  return words ^ (words >> 16)


@jax.jit
def _hash_on_device(array: jax.Array) -> jax.Array:
  """Returns the uint32 scalar of `fingerprint` for one leaf."""
  # The same arithmetic as _hash_on_host; tests hold the two together.
  bits = _bits(array)
  # The row-major index, axis by axis: a reshape would gather a sharded array.
  index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
  for axis in reversed(range(bits.ndim)):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    index = index + along * np.uint32(stride % (1 << 32))
    stride *= bits.shape[axis]
  salted = index * np.uint32(0x9E3779B9) + np.uint32(_salt(array))
  return jnp.sum(_mix(bits ^ salted), dtype=jnp.uint32)


def _bits(array: jax.Array) -> jax.Array:
  """Returns the bits as uint32; 8-byte elements get a last axis of two."""
  if jnp.issubdtype(array.dtype, jnp.complexfloating):
    return _bits(jnp.stack([array.real, array.imag], axis=-1))
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  array = array.astype(_whole_bytes(array.dtype))
  if array.dtype.itemsize >= 4:
    return jax.lax.bitcast_convert_type(array, jnp.uint32)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}[array.dtype.itemsize]
  return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _whole_bytes(dtype: Any) -> Any:
  """Returns dtype, or a wider one if an element is less than a byte."""
  if jnp.issubdtype(dtype, jnp.integer):
    return jnp.dtype('int8') if jnp.iinfo(dtype).bits < 8 else dtype
  return jnp.dtype('float32') if jnp.finfo(dtype).bits < 8 else dtype


def _hash_on_host(name: str, array: np.ndarray) -> np.uint32:
  """Returns the hash of a numpy array, equal to that of `_hash_on_device`."""
  if array.dtype.kind in 'OSUMm' or array.dtype.names:
    raise TypeError(f'{name}: a leaf of {array.dtype} has no fingerprint')
  salt = np.uint32(_salt(array))
  words = _host_words(np.ascontiguousarray(array).reshape(-1))
  total = 0
  for start in range(0, words.size, _BLOCK):
    # uint64 sums of 2^22 uint32 words cannot overflow.
    block = words[start : start + _BLOCK].astype(np.uint32)
    index = np.arange(start, start + block.size, dtype=np.uint64)
    salted = index.astype(np.uint32) * np.uint32(0x9E3779B9) + salt
    total += int(_mix(block ^ salted).sum(dtype=np.uint64))
  return np.uint32(total % (1 << 32))


def _host_words(flat: np.ndarray) -> np.ndarray:
  """Returns a flat array's bits as unsigned words of at most four bytes."""
  # A file may hold big-endian numbers; equal values must hash alike.
  flat = flat.astype(flat.dtype.newbyteorder('='), copy=False)
  if flat.dtype.kind not in 'bc':
    flat = flat.astype(_whole_bytes(flat.dtype), copy=False)
  return flat.view(f'u{min(flat.dtype.itemsize, 4)}')
