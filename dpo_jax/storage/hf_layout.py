"""Position of a parameter's elements in the tensor of a file, and back.

Comes in: a families.Tensor, dimension sizes, an index into our parameter.
Goes out: the range of the file's tensor that holds it, and arrays transposed
from one order of axes to the other. Numpy only; touches no disk.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dpo_jax.models.families import Tensor

# Dimension -> its mark in the name of a tensor that is one slice of it.
_MARKS = {'N': 'i', 'E': 'e'}


class _Factor(NamedTuple):
  """One dimension within an axis of the file."""

  letter: str
  total: int  # size over all parameters that share the tensor
  offset: int  # first index of our parameter
  size: int  # size of our parameter


def shape(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
  """Returns the shape of the file's tensor."""
  axes = _factors(tensor, sizes)
  return tuple(math.prod(f.total for f in factors) for factors in axes)


def split_dims(tensor: Tensor, dims: str) -> tuple[str, str]:
  """Splits dimensions into those with one tensor per index and the others."""
  apart = [d for d in dims if f'{{{_MARKS.get(d)}}}' in tensor.name]
  return ''.join(apart), ''.join(d for d in dims if d not in apart)


def copies(
  tensor: Tensor,
  sizes: Mapping[str, int],
  index: Mapping[str, slice] | None = None,
) -> list[dict[str, int]]:
  """Returns the numbers for the marks in a name; [{}] if it has none.

  Args:
    tensor: the tensor; its name may hold {i} (layer) and {e} (expert).
    sizes: size of each dimension.
    index: {letter: range}, as in `read`.
  """
  apart, _ = split_dims(tensor, ''.join(_MARKS))
  wanted = [(index or {}).get(d, slice(0, sizes[d])) for d in apart]
  numbers = itertools.product(*(range(w.start, w.stop) for w in wanted))
  return [dict(zip((_MARKS[d] for d in apart), ns)) for ns in numbers]


def read(
  tensor: Tensor,
  sizes: Mapping[str, int],
  dims: str,
  index: Mapping[str, slice],
  get: Callable[[tuple[slice, ...]], np.ndarray],
) -> np.ndarray:
  """Reads a piece of our parameter, and only the rows that hold it.

  Args:
    tensor: the parameter's place in the file.
    sizes: size of each dimension.
    dims: the parameter's dimension letters, in our order.
    index: {letter: range}; a letter that is absent is read in full.
    get: reads a range of the file's tensor.
  """
  # Only the outermost dimension of an axis is cut in the file: its ranges are
  # contiguous rows. The inner ones are cut in memory.
  axes = _factors(tensor, sizes)
  ranges, inner_shape, inner_index = [], [], []
  for outer, *inner in axes:
    low, high = _range(outer, index)
    row = math.prod(f.total for f in inner)
    ranges.append(slice(low * row, high * row))
    inner_shape += [high - low, *(f.total for f in inner)]
    inner_index += [slice(None), *(slice(*_range(f, index)) for f in inner)]
  array = get(tuple(ranges)).reshape(inner_shape)[tuple(inner_index)]
  return _reorder(array, _letters(axes), dims)


def write(
  tensor: Tensor,
  sizes: Mapping[str, int],
  dims: str,
  parameter: np.ndarray,
  out: np.ndarray,
) -> None:
  """Writes our parameter into its part of the file's tensor `out`."""
  axes = _factors(tensor, sizes)
  factors = [f for axis in axes for f in axis]
  # A view of `out`, which must be contiguous for that.
  view = out.reshape([f.total for f in factors])
  place = tuple(slice(f.offset, f.offset + f.size) for f in factors)
  letters = _letters(axes)
  array = _reorder(parameter, dims, letters.replace('1', ''))
  singles = tuple(i for i, letter in enumerate(letters) if letter == '1')
  view[place] = np.expand_dims(array, singles)


def _factors(tensor, sizes) -> list[list[_Factor]]:
  """Returns the factors of each axis of the file's tensor."""
  sizes = {**sizes, '1': 1}
  joined = [sizes[letter] for letter in tensor.fused]
  out = []
  for axis in tensor.axes.split(','):
    factors = [_Factor(x, sizes[x], 0, sizes[x]) for x in axis]
    for i, factor in enumerate(factors):
      # Parameters in one tensor lie one after the other along this dimension.
      if joined and factor.letter == tensor.fused[tensor.part]:
        offset = sum(joined[: tensor.part])
        factors[i] = factor._replace(total=sum(joined), offset=offset)
    out.append(factors)
  return out


def _range(factor, index) -> tuple[int, int]:
  """Returns the first index in the file's axis and the one after the last."""
  wanted = index.get(factor.letter, slice(0, factor.size))
  return factor.offset + wanted.start, factor.offset + wanted.stop


def _letters(axes) -> str:
  """Returns the dimension letters of the file's tensor, in its order."""
  return ''.join(f.letter for factors in axes for f in factors)


def _reorder(array, before, after):
  """Transposes from the letters `before` to `after`; drops axes of size 1."""
  singles = tuple(i for i, letter in enumerate(before) if letter == '1')
  before = before.replace('1', '')
  order = [before.index(letter) for letter in after]
  return array.squeeze(singles).transpose(order)
