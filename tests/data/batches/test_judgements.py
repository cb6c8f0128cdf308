"""Judgements of a batch: comparisons, labels and scores, and their dtypes."""

import numpy as np

from dpo_jax import types
from dpo_jax.data.batches import length_table, pipeline


def test_comparisons_carry_their_weight_and_margin():
  records = make_records(24)
  plan = plan_of(records)
  batch = plan.batch(1, records)
  assert plan.num_comparisons == 8 * 2  # at most 3 completions: 2 comparisons
  most, compared = plan.num_completions // 8, []
  for winner, loser, weight, margin in zip(*batch.comparisons):
    if weight:
      i = winner // most
      assert loser // most == i
      compared.append((i, winner % most, loser % most, weight, margin))
    else:
      assert (winner, loser, margin) == (0, 0, 0)
  assert compared == [
    (i, *comparison)
    for i, index in enumerate(plan.records(1))
    for comparison in records[index].comparisons
  ]


def test_dtypes_are_those_of_the_types():
  batch = plan_of(make_records(8)).batch(0, make_records(8))
  ints = [*batch.rows, *batch.comparisons[:2], batch.labels, batch.prompt_index]
  assert {field.dtype for field in ints} == {np.dtype(np.int32)}
  floats = [*batch.comparisons[2:], batch.scores]
  assert {field.dtype for field in floats} == {np.dtype(np.float32)}


def test_completion_index_points_into_the_table():
  records = make_records(30)
  plan = plan_of(records)
  table = length_table.make_table(records)
  batch = plan.batch(2, records)
  for c, index in enumerate(plan.completion_index(2)):
    num_tokens = (batch.rows.completion_id == c).sum()
    expected = 0 if index < 0 else table.completion_lengths[index]
    assert num_tokens == expected


def test_quantiles_lie_beside_their_completions():
  records = make_records(8)
  plan = plan_of(records)
  assert plan.batch(0, records).quantiles is None
  given = [
    record._replace(quantiles=tuple(np.linspace(0.5, 1, n)))
    for record in records
    for n in [len(record.completions)]
  ]
  batch, table = plan_of(given).batch(0, given), length_table.make_table(given)
  index = plan.completion_index(0)
  expected = np.where(index < 0, 0, table.quantiles[index])
  np.testing.assert_array_equal(batch.quantiles, expected.astype(np.float32))


def make_records(num_records, seed=0, most=3, longest=12):
  """Records of random lengths, with comparisons, labels, scores or none."""
  rng = np.random.default_rng(seed)
  records = []
  for i in range(num_records):
    count = int(rng.integers(1, most + 1))
    draw = lambda: rng.integers(1, 500, rng.integers(1, longest), np.int32)  # noqa: E731
    records.append(
      types.EncodedRecord(
        prompt=draw(),
        completions=tuple(draw() for _ in range(count)),
        comparisons=tuple(
          types.Comparison(k, k - 1, weight=0.5 + i, margin=float(k))
          for k in range(1, count)
        ),
        labels=None if i % 2 else tuple(k % 2 == 0 for k in range(count)),
        scores=None if i % 3 else tuple(float(i + k) for k in range(count)),
        uid=f'{i:016x}',
      )
    )
  return records


def plan_of(records, **changes):
  options = {'seed': 3, 'batch_size': 8, 'row_length': 40}
  return pipeline.make_plan(
    length_table.make_table(records), **(options | changes)
  )
