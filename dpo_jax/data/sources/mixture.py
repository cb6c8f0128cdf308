"""sources -> records: a mixture of sources, each with its proportion.

Comes in: opened sources, one proportion per source, a seed. Goes out: records,
source by source. Does not shuffle them: the plan of batches does.

A proportion is a multiple of its source's size: 1 takes every record once, 0.5
a seeded half, 2 every record twice, 1.5 every record once and a seeded half
again. Adding a source therefore changes nothing about the others, and no
source is cut to the length of the shortest. Copies are equal records, so
encoding with drop_duplicates drops them.
"""

import collections
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dpo_jax import errors
from dpo_jax.data.sources.source import Source
from dpo_jax.types import PreferenceRecord


def mix(
  sources: Sequence[Source], proportions: Sequence[float], seed: int
) -> Iterator[PreferenceRecord]:
  """Yields the records of a mixture, a pure function of the arguments.

  Args:
    sources: from source.open_source, no two with the same bytes.
    proportions: one per source, >= 0, in multiples of the source's size.
    seed: chooses the part of a source that a fractional proportion takes.

  Raises:
    InputError: a proportion is invalid or leaves no record of its source, or
      a source has a faulty record.
  """
  _check(sources, proportions)
  for source, proportion in zip(sources, proportions):
    if proportion == 0:
      continue
    key = int(source.fingerprint, 16)
    copies, part = divmod(proportion, 1)
    if not part:
      # No record is held, and none is read before it is due.
      for record in source.records():
        yield from itertools.repeat(record, int(copies))
      continue
    # A part of them needs their number, so they are read twice.
    size = sum(1 for _ in source.records())
    chosen = take(size, proportion, seed=seed, key=key)
    if not len(chosen):
      raise errors.refuse(
        'config.data.proportions',
        f'{proportion} of the {size} records of {source.name} is none',
        'raise the proportion, or set it to 0',
      )
    times = np.bincount(chosen, minlength=size)
    for record, number in zip(source.records(), times.tolist(), strict=True):
      yield from itertools.repeat(record, number)


def take(size: int, proportion: float, *, seed: int, key: int) -> np.ndarray:
  """Returns the records that a proportion takes, of `size` records.

  The indices of a smaller proportion are a subset of those of a larger one.

  Args:
    size: number of records.
    proportion: >= 0; floor(proportion * size + 0.5) indices are taken.
    seed: seed of the choice.
    key: a number of the source, so that two sources of the same size are cut
      differently.

  Returns:
    int64 indices, ascending, with repeats if the proportion is above 1.
  """
  count = math.floor(proportion * size + 0.5)
  copies, part = divmod(count, size) if size else (0, 0)
  order = np.random.default_rng([seed, key]).permutation(size)
  repeated = np.tile(np.arange(size), copies)
  return np.sort(np.concatenate([repeated, order[:part]]))


def _check(sources: Sequence[Source], proportions: Sequence[float]) -> None:
  where = 'config.data.proportions'
  if len(sources) != len(proportions):
    raise errors.refuse(
      where,
      f'{len(proportions)} proportions for {len(sources)} sources',
      'give one per source',
    )
  for source, proportion in zip(sources, proportions):
    # Written so that NaN, for which both comparisons are false, is refused.
    if not (0 <= proportion < math.inf):
      raise errors.refuse(
        where,
        f'{proportion} for {source.name}',
        'give a finite number of 0 or more: 0.5 is half of the source',
      )
  if not any(proportions):
    raise errors.refuse(where, 'no source has a share', 'give one above 0')
  counts = collections.Counter(source.fingerprint for source in sources)
  for source in sources:
    if counts[source.fingerprint] > 1:
      raise errors.refuse(
        where,
        f'{source.name} has the same bytes as another source',
        'name it once, with the sum of the proportions',
      )
