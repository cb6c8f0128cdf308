"""data.weigh_prompts: the comparisons of a prompt weigh one together."""

import collections

import numpy as np
import pytest

from dpo_jax.data.batches import length_table, pipeline, prompt_weights
from dpo_jax.types import Comparison, EncodedRecord, InputError


def record(prompt, ranks, weight=1.0, uid=None):
  """Answers by score; every pair of different scores is compared."""
  num = len(ranks)
  return EncodedRecord(
    np.full(3, prompt, np.int32),
    tuple(np.full(2 + k, prompt, np.int32) for k in range(num)),
    tuple(
      Comparison(i, j, weight, ranks[i] - ranks[j])
      for i in range(num)
      for j in range(num)
      if ranks[i] > ranks[j]
    ),
    scores=tuple(map(float, ranks)),
    uid=f'{prompt}/{ranks}/{weight}' if uid is None else uid,
  )


def weights(records, indices=None):
  """([weights of each record's comparisons], [weight of each list])."""
  table = length_table.make_table(records)
  indices = range(len(records)) if indices is None else indices
  each, lists = prompt_weights.by_prompt(table, np.array(indices))
  parts = np.split(each, table.comparison_offsets[1:-1])
  return [part.tolist() for part in parts], lists.tolist()


def test_a_prompt_weighs_one_whatever_its_answers():
  # 1, 6 and 5 comparisons (of K = 4, two answers tie).
  records = [
    record(1, (2, 1)),
    record(2, (4, 3, 2, 1)),
    record(3, (3, 2, 2, 1)),
  ]
  each, lists = weights(records)
  assert each == [[1.0], [1 / 6] * 6, [1 / 5] * 5]
  assert lists == [1, 1, 1]


def test_rows_that_repeat_a_prompt_share_its_weight():
  rows = [record(1, (2, 1), uid=f'a{i}') for i in range(3)]
  ranked = record(1, (3, 2, 1))
  each, lists = weights([*rows, ranked, record(2, (1, 0))])
  assert each == [[1 / 6]] * 3 + [[1 / 6] * 3, [1.0]]
  assert lists == [1 / 4] * 4 + [1]
  # Of the records that are used.
  each, _ = weights([*rows, ranked], [0, 1])
  assert each[:2] == [[1 / 2], [1 / 2]]


def test_a_record_that_is_taken_twice_counts_twice():
  # data.proportions=2 repeats it: it is to count twice.
  twice = [record(1, (2, 1))] * 2
  each, lists = weights([*twice, record(2, (2, 1))])
  assert each == [[1.0]] * 3 and lists == [1, 1, 1]
  # Records without uids all differ.
  each, _ = weights([record(1, (2, 1), uid='')] * 2)
  assert each == [[1 / 2]] * 2


def test_the_datas_weights_stay():
  records = [
    record(1, (3, 2, 1), 2.0),
    record(1, (2, 1), 0.0),
    record(1, (2, 1), 5.0),
    record(2, (2, 1), 0.25),
  ]
  each, lists = weights(records)
  assert each == [[2 / 4] * 3, [0.0], [5 / 4], [0.25]]
  assert lists == [2 / 2, 0, 5 / 2, 0.25]
  assert prompt_weights.of_lists(
    length_table.make_table([*records, record(3, (1, 1))])
  ).tolist() == [2, 0, 5, 0.25, 1]


def plan_of(records, **changes):
  options = {'seed': 3, 'batch_size': 4, 'row_length': 60}
  return pipeline.make_plan(
    length_table.make_table(records), **(options | changes)
  )


@pytest.mark.parametrize('shuffle', [True, False])
def test_every_batch_has_these_weights(shuffle):
  records = [record(i, tuple(range(2 + i % 3))) for i in range(12)]
  plan = plan_of(records, weigh_prompts=True, shuffle=shuffle)
  plain = plan_of(records, shuffle=shuffle)
  per_prompt = collections.Counter()
  for t in range(3):
    batch, other = plan.batch(t, records), plain.batch(t, records)
    winner, loser, weight, _ = batch.comparisons
    for w, value in zip(winner, weight):
      per_prompt[int(plan.records(t)[batch.prompt_index[w]])] += float(value)
    assert weight.dtype == np.float32
    real = batch.prompt_index >= 0
    np.testing.assert_array_equal(batch.list_weight, real.astype(np.float32))
    # All else is that of the data.
    np.testing.assert_array_equal(batch.labels, other.labels)
    np.testing.assert_array_equal(winner, other.comparisons.winner)
    assert set(other.comparisons.weight) <= {0, 1}
  assert set(per_prompt) == set(range(12))
  np.testing.assert_allclose(list(per_prompt.values()), 1, rtol=1e-6)


def test_lists_have_the_datas_weight():
  records = [record(i, (3, 2, 1), weight=float(i)) for i in range(4)]
  batch = plan_of(records).batch(0, records)
  expected = np.repeat(plan_of(records).records(0), 3)
  assert batch.list_weight.dtype == np.float32
  np.testing.assert_array_equal(batch.list_weight, expected)


def test_data_without_comparisons_is_refused():
  answer = np.ones(2, np.int32)
  records = [
    EncodedRecord(np.full(2, i), (answer,), (), labels=(True,))
    for i in range(4)
  ]
  with pytest.raises(
    InputError, match='config.data.weigh_prompts: True weighs'
  ):
    plan_of(records, weigh_prompts=True)
