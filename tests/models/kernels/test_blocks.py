"""blocks: dense attention's values and gradients; unseen blocks unvisited."""

import jax.numpy as jnp
import numpy as np
import pytest
import random_plans

from dpo_jax.models.kernels import blocks, intervals, proof, registry

BLOCKS = registry.Choice('blocks')


@pytest.mark.parametrize('seed', range(5))
def test_it_is_dense_attention_on_random_plans(seed):
  plan = random_plans.make(seed)
  errors = proof.compare(BLOCKS, plan.heads, plan.rows, jnp.float32)
  assert errors.value < 1e-5 and errors.gradient < 1e-4


@pytest.mark.parametrize('seed', [1, 2])
def test_its_error_in_bfloat16_is_that_of_dense_attention(seed):
  plan = random_plans.make(seed)
  errors = proof.compare(BLOCKS, plan.heads, plan.rows, jnp.bfloat16)
  assert errors.are_small and errors.dense_value > 0


@pytest.mark.parametrize('window', [None, 3])
@pytest.mark.parametrize('seed', [0, 3])
def test_it_visits_each_pair_of_blocks_that_is_seen_and_few_others(
  seed, window
):
  rows = random_plans.make(seed, num_rows=4).rows
  num_rows, length = rows.branch.shape
  num_blocks = -(-length // 16)
  shape = blocks._Shape(length, 16, num_blocks, 1, 1, window, None)
  spans = intervals.make_intervals(rows)
  visits = blocks._visits(shape, spans, jnp.asarray(rows.positions))
  num_visits = int(visits.count_N.sum())
  visited = set(
    zip(
      np.asarray(visits.query_T)[:num_visits].tolist(),
      np.asarray(visits.key_T)[:num_visits].tolist(),
    )
  )
  starts, ends = map(np.asarray, spans)
  slots = np.arange(length)
  sees = intervals.sees(
    slots[:, None], slots, starts[:, :, None], ends[:, None]
  )
  if window:
    sees &= rows.positions[:, :, None] - rows.positions[:, None] < window
  seen = {
    (row * num_blocks + query // 16, row * num_blocks + key // 16)
    for row, query, key in np.argwhere(sees).tolist()
  }
  assert len(visited) == num_visits and seen <= visited
  # Fewer than causal attention visits.
  assert num_visits < num_rows * num_blocks * (num_blocks + 1) / 2
  first, count = np.asarray(visits.first_N), np.asarray(visits.count_N)
  for block, (start, size) in enumerate(zip(first, count)):
    assert set(np.asarray(visits.query_T)[start : start + size]) == {block}
