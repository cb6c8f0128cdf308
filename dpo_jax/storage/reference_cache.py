"""reference scores -> one file: precomputed once, shared by every variant.

Comes in: the reference's `CompletionScores` of every completion of a token
store. Goes out: the same numbers by completion, or a refusal. A score that is
missing, not finite or of another store is never read as 0.0. Computes no score.

The key of a file covers exactly what the scores depend on: the tokens and the
starts of completions, the reference's weights and model config, the precision.
So runs of any beta, learning rate, seed, loss and batch order share it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dpo_jax import errors
from dpo_jax.storage import files
from dpo_jax.types import CompletionScores

_AGAIN = 'remove this file: the same command computes the scores again'
# In the order in which the seal covers them.
_ARRAYS = ('uids', 'offsets', 'logps', 'num_tokens')


def key(
  tokens_digest: str,
  reference: str | Mapping[str, int],
  precision: str,
  model: Mapping[str, Any] | None = None,
) -> str:
  """Returns the name of a file of scores, 32 hex digits.

  Args:
    tokens_digest: the token store's `digest`.
    reference: `tree.fingerprint` of the reference's parameters, or any digest
      of them.
    precision: precision of the computation, such as 'bfloat16'.
    model: the model's config, of JSON types: equal weights under another rope
      or norm give other scores.
  """
  weights = reference if isinstance(reference, str) else dict(reference)
  # The number is the version of the format.
  parts = ['dpo_jax reference scores 1', tokens_digest, weights, precision]
  return files.digest(parts + ([dict(model)] if model else []))[:32]


def write(
  folder: str | os.PathLike,
  name: str,
  *,
  uids: Sequence[str],
  offsets: np.ndarray,
  logps: np.ndarray,
  num_tokens: np.ndarray,
) -> 'ReferenceCache':
  """Writes <folder>/<name>.npz whole or not at all, and opens it.

  Args:
    folder: the cache folder; made if missing.
    name: the `key`.
    uids: uids of the N records of the token store, in order.
    offsets: int [N + 1]; record i owns completions offsets[i] to
      offsets[i + 1].
    logps: float32, flat over completions: nats, summed over tokens.
    num_tokens: int, flat over completions: tokens in that sum.

  Raises:
    InputError: scores are missing, not finite or of no token (names the
      record), or the file cannot be written.
  """
  arrays = {
    'uids': np.array([uid.encode() for uid in uids], 'S'),
    'offsets': np.asarray(offsets, np.int64),
    'logps': np.asarray(logps, np.float32),
    'num_tokens': np.asarray(num_tokens, np.int32),
  }
  path = files.at(folder) / f'{name}.npz'
  # A bad score is refused here, while the reference is at hand.
  _check(path, arrays)
  seal = np.frombuffer(_seal(name, arrays).encode(), np.uint8)
  with files.storage_errors(path), files.atomic_file(path) as file:
    np.savez(file, seal=seal, **arrays)
  return open_cache(folder, name)


def is_there(folder: str | os.PathLike, name: str) -> bool:
  """Returns whether there is a file of this key; `open_cache` verifies it."""
  return (files.at(folder) / f'{name}.npz').is_file()


def open_cache(
  folder: str | os.PathLike,
  name: str,
  *,
  offsets: np.ndarray | None = None,
  num_tokens: np.ndarray | None = None,
) -> 'ReferenceCache':
  """Opens scores and verifies every bit against the digest in the file.

  Args:
    folder: the cache folder.
    name: the `key`.
    offsets: offsets of the token store in use, to compare; None compares none.
    num_tokens: trained tokens of its completions, to compare; None compares
      none.

  Raises:
    InputError: no file of this key, or it is damaged or of another store.
  """
  path = files.at(folder) / f'{name}.npz'
  arrays = _read(path, name)
  _check(path, arrays)
  for what, wanted in (('offsets', offsets), ('num_tokens', num_tokens)):
    if wanted is not None and not np.array_equal(arrays[what], wanted):
      raise errors.refuse(
        path, f'its {what} are not those of the data in use', _AGAIN
      )
  return ReferenceCache(path, **arrays)


class ReferenceCache:
  """Scores by completion of the store, numpy; made by `open_cache`."""

  def __init__(
    self,
    path: files.AnyPath,
    uids: np.ndarray,
    offsets: np.ndarray,
    logps: np.ndarray,
    num_tokens: np.ndarray,
  ):
    """Called by open_cache, after it verified the file."""
    self.path = path
    self.uids = uids
    self.offsets = offsets
    self.logps = logps
    self.num_tokens = num_tokens

  def __len__(self) -> int:
    """Returns the number of records."""
    return len(self.uids)

  def scores(self, completion_index: np.ndarray) -> CompletionScores:
    """Returns the scores of a batch, float32 [C].

    Args:
      completion_index: int [C], index into the store's completions; -1 marks
        padding, which gets 0 tokens and logps 0.

    Raises:
      InputError: an index out of range.
    """
    index = np.asarray(completion_index, np.int64)
    wrong = index[(index < -1) | (index >= len(self.logps))]
    if wrong.size:
      raise errors.refuse(
        self.path,
        f'no score of completion {wrong[0]}, there are {len(self.logps)}',
        _AGAIN,
      )
    # -1 would read the last score: it reads the first, and is masked.
    present = index >= 0
    safe = np.where(present, index, 0)
    num_tokens = np.where(present, self.num_tokens[safe], 0)
    return CompletionScores(
      logps=np.where(present, self.logps[safe], np.float32(0)),
      num_tokens=num_tokens.astype(np.float32),
    )

  def record(self, i: int, uid: str) -> CompletionScores:
    """Returns the scores of record i, float32 [K], if it has that uid."""
    stored = self.uids[i].decode() if 0 <= i < len(self) else 'nothing'
    if stored != uid:
      raise errors.refuse(
        self.path, f'record {i} is {stored} there and {uid} in the data', _AGAIN
      )
    return self.scores(np.arange(self.offsets[i], self.offsets[i + 1]))


def _read(path: files.AnyPath, name: str) -> dict[str, np.ndarray]:
  """Reads the arrays of a file; InputError unless key and bits fit its seal."""
  try:
    with files.load_arrays(path) as file:
      arrays = {what: file[what] for what in _ARRAYS}
      seal = file['seal'].tobytes().decode()
  except FileNotFoundError as error:
    others = len(list(path.parent.glob('*.npz')))
    raise errors.refuse(
      path,
      'no reference scores of these tokens, reference and precision '
      f'({others} of others in that folder)',
      'run --mode=precompute_reference',
    ) from error
  except PermissionError as error:
    raise errors.refuse(
      path, error.strerror, 'make it readable for this user'
    ) from error
  # A damaged zip file raises a dozen kinds of exception.
  except Exception as error:
    why = ' '.join(str(error).split())[:120]
    raise errors.refuse(path, f'damaged ({why})', _AGAIN) from error
  if seal != _seal(name, arrays):
    raise errors.refuse(path, 'damaged or of another key', _AGAIN)
  return arrays


def _check(path: files.AnyPath, arrays: Mapping[str, np.ndarray]) -> None:
  """Raises InputError unless every completion of every record has a score."""
  uids, offsets, logps, num_tokens = (arrays[name] for name in _ARRAYS)
  is_complete = (
    offsets.shape == (len(uids) + 1,)
    and offsets[0] == 0
    and bool(np.all(np.diff(offsets) > 0))
    and logps.shape == num_tokens.shape == (offsets[-1],)
  )
  if not is_complete:
    raise errors.refuse(
      path,
      f'{len(uids)} records, {len(logps)} scores and {len(num_tokens)} token '
      'counts do not fit together',
      _AGAIN,
    )
  bad = np.flatnonzero(~np.isfinite(logps) | (num_tokens < 1))
  if bad.size:
    # The record that owns the first bad completion.
    i = int(np.searchsorted(offsets, bad[0], side='right')) - 1
    raise errors.refuse(
      path,
      f'record {i} ({uids[i].decode()}), completion {bad[0] - offsets[i]} has '
      f'logps {logps[bad[0]]:g} over {num_tokens[bad[0]]} tokens',
      'use a reference that scores it',
    )


def _seal(name: str, arrays: Mapping[str, Any]) -> str:
  """Returns the sha256 of the key and of all arrays."""

  def parts() -> Iterator[bytes]:
    yield name.encode()
    for what in _ARRAYS:
      array = np.ascontiguousarray(arrays[what])
      # Name, dtype and shape too: equal bytes of another array must not pass.
      yield f'{what}{array.dtype.str}{array.shape}'.encode()
      yield array.tobytes()

  return files.bytes_digest(parts())
