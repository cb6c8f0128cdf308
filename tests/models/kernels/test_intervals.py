"""intervals: the branch rule by brute force, on random plans."""

import numpy as np
import pytest
import random_plans

from dpo_jax.models import attention
from dpo_jax.models.kernels import intervals


@pytest.mark.parametrize('seed', range(6))
def test_they_are_the_rule_of_dense_attention(seed):
  rows = random_plans.make(seed, num_rows=4).rows
  slots = np.arange(rows.branch.shape[1])
  places = [slots + 0 * rows.branch, *rows[1:4]]
  want = np.asarray(attention._sees(places, places, None))
  starts, ends = map(np.asarray, intervals.make_intervals(rows))
  got = intervals.sees(slots[:, None], slots, starts[:, :, None], ends[:, None])
  np.testing.assert_array_equal(got, want)
  # A rule that sees nothing, or all, would be no test.
  assert 0 < want.sum() < want.size
