"""limits: what cannot be planned is refused with the sizes that can."""

import pytest

from dpo_jax.data.batches import limits
from dpo_jax.types import InputError


def test_microbatches_divide_a_batch():
  for parts in (1, 2, 3, 4, 6, 12):
    limits.check_microbatches(12, parts)
  with pytest.raises(InputError, match='fix: use one of 1, 2, 3, 4, 6, 12$'):
    limits.check_microbatches(12, 5)
  with pytest.raises(InputError, match='config.train.microbatches: 0 do not'):
    limits.check_microbatches(12, 0)


def test_a_row_holds_the_longest_prompt_and_completion():
  limits.check_row_length(128, 128)
  with pytest.raises(
    InputError, match='127 slots .* at least 128, or a data.m'
  ):
    limits.check_row_length(128, 127)
