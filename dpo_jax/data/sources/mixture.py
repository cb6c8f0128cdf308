"""Several sources as one: each taken whole, in part, or several times.

Comes in: opened sources, a proportion for each, a seed. Goes out: records,
source by source; the plan of a run shuffles them. A proportion multiplies the
size of its own source: 1 is every record once, 0.5 a seeded half, 2 every
record twice, 1.5 every record once and a seeded half again. So adding a source
changes nothing about the others, and nothing is cut off where the shortest
source ends. Copies are equal records: encoding that drops duplicates drops
them too.
"""

import collections
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dpo_jax import errors
from dpo_jax.data.sources.source import Source
from dpo_jax.types import PreferenceRecord


def mix(
  sources: Sequence[Source], proportions: Sequence[float], seed: int
) -> Iterator[PreferenceRecord]:
  """Yields the records of a mixture, a function of its arguments alone.

  Args:
    sources: from sources.open_source, no two with the same bytes.
    proportions: one a source, >= 0, in multiples of the source's size.
    seed: which part is taken where a proportion is not whole.

  Raises:
    InputError: the proportions do not fit, or one leaves no record of its
      source; and whatever is wrong with a source's records.
  """
  _check(sources, proportions)
  for source, proportion in zip(sources, proportions):
    if proportion == 0:
      continue
    records = list(source.records())
    chosen = take(
      len(records), proportion, seed=seed, key=int(source.fingerprint, 16)
    )
    if not len(chosen):
      raise errors.refuse(
        'data.proportions',
        f'{proportion} of the {len(records)} records of {source.name} is none',
        'raise the proportion, or set it to 0',
      )
    for index in chosen:
      yield records[index]


def take(size: int, proportion: float, *, seed: int, key: int) -> np.ndarray:
  """Which of `size` records a proportion takes.

  A smaller proportion takes a subset of what a larger one takes.

  Args:
    size: number of records.
    proportion: >= 0; floor(proportion * size + 0.5) indices are taken.
    seed: of the choice.
    key: of the source, so that sources of one size are cut differently.

  Returns:
    int64 indices in increasing order, with repeats above proportion 1.
  """
  count = math.floor(proportion * size + 0.5)
  copies, part = divmod(count, size) if size else (0, 0)
  order = np.random.default_rng([seed, key]).permutation(size)
  whole = np.tile(np.arange(size), copies)
  return np.sort(np.concatenate([whole, order[:part]]))


def _check(sources: Sequence[Source], proportions: Sequence[float]) -> None:
  where = 'data.proportions'
  if len(sources) != len(proportions):
    raise errors.refuse(
      where,
      f'{len(proportions)} proportions for {len(sources)} sources',
      'give one a source',
    )
  for source, proportion in zip(sources, proportions):
    if not (0 <= proportion < math.inf):  # also where it is NaN
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
