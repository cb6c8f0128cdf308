"""grid: products, zips and chains of settings."""

import pytest

from dpo_jax.config import grid


def test_the_last_key_of_a_product_varies_fastest():
  points = grid.product({'loss.beta': [0.1, 0.2], 'seed': range(2)})
  assert points == [
    ('', {'loss.beta': 0.1, 'seed': 0}),
    ('', {'loss.beta': 0.1, 'seed': 1}),
    ('', {'loss.beta': 0.2, 'seed': 0}),
    ('', {'loss.beta': 0.2, 'seed': 1}),
  ]


def test_arguments_are_joined_and_parts_mixed():
  pairs = grid.zipped({'loss.beta': [1.0, 2.0], 'optim.learning_rate': [3, 4]})
  points = grid.product({'arg': ['loss=ipo']}, pairs, {'arg': ['small']})
  assert points == [
    ('loss=ipo,small', {'loss.beta': 1.0, 'optim.learning_rate': 3}),
    ('loss=ipo,small', {'loss.beta': 2.0, 'optim.learning_rate': 4}),
  ]
  assert grid.chain(points, pairs) == points + pairs


def test_a_zip_of_unequal_lengths_is_refused():
  with pytest.raises(ValueError, match='shorter'):
    grid.zipped({'a': [1, 2], 'b': [1]})
