"""hf_layout.py: slices of a parameter in a file's tensor, and back."""

import itertools

import numpy as np
import pytest

from dpo_jax.models import families
from dpo_jax.models.families import Tensor
from dpo_jax.storage import hf_layout

# The dimension key of types.py; N layers, T learned positions.
SIZES = {'V': 16, 'D': 8, 'F': 10, 'N': 3, 'H': 4, 'G': 2, 'K': 6, 'E': 4}
SIZES |= {'T': 5}


def test_a_slice_reads_no_more_than_its_rows():
  # 4 heads of 6, 2 key heads of 6 twice: the rows of heads 2 and 3 are 12..23.
  tensor = Tensor('qkv', 'HK,D', fused='HGG', part=0)
  value = Tensor('qkv', 'GK,D', fused='HGG', part=2)
  assert hf_layout.shape(tensor, SIZES) == (48, 8)
  stored = np.arange(48 * 8).reshape(48, 8)
  asked = []

  def get(ranges):
    asked.append(ranges)
    return stored[ranges]

  index = {'H': slice(2, 4), 'D': slice(0, 4)}
  piece = hf_layout.read(tensor, SIZES, 'DHK', index, get)
  assert asked == [(slice(12, 24), slice(0, 4))]
  np.testing.assert_array_equal(
    piece, stored[12:24, :4].reshape(2, 6, 4).transpose(2, 0, 1)
  )
  index = {'G': slice(1, 2), 'K': slice(0, 3)}
  piece = hf_layout.read(value, SIZES, 'DGK', index, get)
  assert asked[1:] == [(slice(42, 48), slice(0, 8))]
  np.testing.assert_array_equal(piece, stored[42:45].T[:, None])


TENSORS = {
  f'{name}: {tensor.name}': tensor
  for name, family in families.FAMILIES.items()
  for tensor in {**family.tensors, **family.joined}.values()
}


@pytest.mark.parametrize('tensor', TENSORS.values(), ids=list(TENSORS))
def test_what_is_written_is_read_in_any_order_of_axes(tensor):
  # One of a family's tensors into noise; every slice of it comes back.
  letters = tensor.axes.replace(',', '').replace('1', '')
  rng = np.random.default_rng(0)
  before = rng.normal(size=hf_layout.shape(tensor, SIZES))
  for order in itertools.permutations(letters):
    dims = ''.join(order)
    parameter = rng.normal(size=[SIZES[d] for d in dims])
    stored = before.copy()
    hf_layout.write(tensor, SIZES, dims, parameter, stored)
    assert np.sum(stored != before) == parameter.size  # and nothing else
    for index in ({}, {letters[0]: slice(1, 2)}, {letters[-1]: slice(0, 3)}):
      piece = hf_layout.read(tensor, SIZES, dims, index, stored.__getitem__)
      wanted = parameter[tuple(index.get(d, slice(None)) for d in dims)]
      np.testing.assert_array_equal(piece, wanted)


def test_copies_fill_the_marks_of_a_name():
  # Dimensions that the files split over tensors: N layers, E experts.
  plain = Tensor('embed', 'V,D')
  layer = Tensor('layers.{i}.norm', 'D')
  expert = Tensor('layers.{i}.experts.{e}.up', 'F,D')
  assert hf_layout.copies(plain, SIZES) == [{}]
  assert hf_layout.copies(layer, SIZES) == [{'i': 0}, {'i': 1}, {'i': 2}]
  index = {'N': slice(1, 2), 'E': slice(2, 4), 'D': slice(0, 1)}
  some = hf_layout.copies(expert, SIZES, index)
  assert some == [{'i': 1, 'e': 2}, {'i': 1, 'e': 3}]
  assert hf_layout.split_dims(expert, 'NEDF') == ('NE', 'DF')
  assert hf_layout.split_dims(layer, 'NE') == ('N', 'E')
