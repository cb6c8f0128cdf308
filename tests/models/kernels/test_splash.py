"""splash: the interpreted kernel is dense attention; random_plans.py has 30."""

import pytest
import random_plans


# Branches, padding, GQA, a window and a soft cap among them.
@pytest.mark.parametrize('seed, dtype', [(3, 'float32'), (15, 'bfloat16')])
def test_it_is_dense_attention(seed, dtype):
  plan = random_plans.make(seed, num_rows=1)
  heads = plan.heads
  assert heads.window and heads.softcap and plan.branches > 1
  assert heads.num_heads > heads.num_kv_heads
  errors = random_plans.errors(plan, dtype)
  assert errors.are_small, errors
