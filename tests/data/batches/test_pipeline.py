"""Planned batches: exact, equal in every process, resumed from the step."""

import collections
import gzip
import json

import numpy as np
import pytest
import tokenizers

from dpo_jax import types
from dpo_jax.data.batches import length_table, pipeline


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


class Spy:
  """A store that remembers which records were read."""

  def __init__(self, records):
    self.records = records
    self.read = []

  def __getitem__(self, i):
    self.read.append(i)
    return self.records[i]


def equal(a, b):
  flat_a = [*a.rows, *a.comparisons, a.labels, a.scores, a.prompt_index]
  flat_b = [*b.rows, *b.comparisons, b.labels, b.scores, b.prompt_index]
  return all(map(np.array_equal, flat_a, flat_b))


def test_each_record_once_an_epoch_in_another_order_the_next():
  plan = plan_of(make_records(32))
  order = np.concatenate([plan.step(t).records for t in range(8)])
  first, second = order[:32], order[32:]
  assert sorted(first) == sorted(second) == list(range(32))
  assert first.tolist() != second.tolist()
  assert plan.steps_per_epoch == 4


def test_indices_choose_the_records():
  plan = plan_of(make_records(40), indices=range(1, 40, 2))
  order = np.concatenate([plan.records(t) for t in range(5)])
  assert sorted(order[:20]) == sorted(order[20:]) == list(range(1, 40, 2))


def test_microbatches_have_as_many_prompts_whatever_their_lengths():
  records = make_records(7, most=1, longest=3)
  long = np.ones(30, np.int32)
  records.append(types.EncodedRecord(long[:2], (long,), ()))
  step = plan_of(records, microbatches=2).step(0)
  units = [sum(map(len, placed)) for placed in step.rows]
  assert units == [4, 4]


def test_epochs_run_on_where_the_batch_does_not_divide_the_data():
  plan = plan_of(make_records(20))
  order = np.concatenate([plan.step(t).records for t in range(5)])
  assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
  assert plan.steps_per_epoch == 3  # the third step begins the second epoch


def test_no_row_has_more_prompts_than_kernels_were_told():
  # Many short prompts and some long ones: what a row has differs by step.
  records = make_records(60, most=2, longest=18)
  records += make_records(60, seed=1, most=1, longest=3)
  plan, free = plan_of(records), plan_of(records)
  free.most_prompts = 0  # no limit
  steps, epoch = range(10 * plan.steps_per_epoch), plan.steps_per_epoch
  assert plan.most_prompts == max(free.prompts_needed(t) for t in steps[:epoch])
  above = [t for t in steps if free.prompts_needed(t) > plan.most_prompts]
  assert above
  for t in steps:
    assert plan.prompts_needed(t) <= plan.most_prompts
    step, other = plan.step(t), free.step(t)
    assert step.filled_slots == other.filled_slots
    # Rows that are within the limit anyway are what they were.
    assert t in above or step.rows == other.rows


def test_a_batch_is_a_function_of_seed_and_step():
  records = make_records(40)
  plan = plan_of(records)
  for t in (0, 1, 2):  # a new plan can start at any step
    plan.batch(t, records)
  resumed = plan_of(records)
  assert equal(resumed.batch(11, records), plan.batch(11, records))
  assert not equal(resumed.batch(12, records), plan.batch(11, records))
  other = plan_of(records, seed=4)
  assert not np.array_equal(other.records(11), plan.records(11))


@pytest.mark.parametrize('layout', ['shared', 'packed', 'padded'])
@pytest.mark.parametrize('microbatches', [1, 2, 4, 8])
def test_a_batch_holds_its_records_and_nothing_else(layout, microbatches):
  records = make_records(40)
  plan = plan_of(records, layout=layout, microbatches=microbatches)
  step, batch = plan.step(2), plan.batch(2, records)
  most = plan.num_completions // 8
  assert batch.rows.tokens.shape == (microbatches, step.num_rows, 40)
  owner = {}
  for i, index in enumerate(step.records):
    for k, completion in enumerate(records[index].completions):
      c = i * most + k
      owned = batch.rows.completion_id == c
      assert sorted(batch.rows.targets[owned]) == sorted(completion)
      # All branches of a prompt lie in one microbatch.
      assert (
        owner.setdefault(i, np.nonzero(owned)[0][0]) in np.nonzero(owned)[0]
      )
      assert len(set(np.nonzero(owned)[0])) == 1
      assert batch.prompt_index[c] == i
      labels, scores = records[index].labels, records[index].scores
      assert batch.labels[c] == (-1 if labels is None else labels[k])
      assert batch.scores[c] == (0 if scores is None else scores[k])
  assert set(collections.Counter(owner.values()).values()) == {
    8 // microbatches
  }
  padding = batch.prompt_index < 0
  num_completions = sum(len(records[i].completions) for i in step.records)
  assert (~padding).sum() == num_completions
  assert (batch.labels[padding] == -1).all()
  assert not batch.scores[padding].any()
  assert (batch.rows.prompt_id > 0).sum() == step.filled_slots


@pytest.mark.parametrize('num_processes', [2, 3, 6])
def test_processes_fill_their_rows_of_the_same_batch(num_processes):
  records = make_records(64, longest=20)
  options = dict(row_multiple=6, microbatches=2, batch_size=16)
  full = plan_of(records, **options).batch(3, records)
  parts, read = [], []
  for process in range(num_processes):
    plan, spy = plan_of(records, **options), Spy(records)
    share = plan.step(3).num_rows // num_processes
    owned = slice(process * share, (process + 1) * share)
    parts.append(plan.batch(3, spy, rows=owned))
    read.append(spy.read)
    assert equal(parts[-1]._replace(rows=()), full._replace(rows=()))
  for field, pieces in zip(full.rows, zip(*(part.rows for part in parts))):
    assert np.array_equal(field, np.concatenate(pieces, axis=1))
  assert all(len(some) < 16 for some in read)  # no process reads all records
  assert set().union(*read) == set(plan.records(3))


def test_the_rows_of_a_process_need_not_be_neighbours():
  records = make_records(64, longest=20)
  plan = plan_of(records, row_multiple=6, microbatches=2, batch_size=16)
  full, own = plan.batch(3, records), np.array([0, 3, 5])
  part = plan.batch(3, records, rows=own)
  for field, piece in zip(full.rows, part.rows):
    assert np.array_equal(field[:, own], piece)


def test_evaluation_goes_once_through_in_order():
  records = make_records(21)
  plan = plan_of(records, shuffle=False, indices=range(20, 1, -1))
  order = np.concatenate([plan.records(t) for t in range(3)])
  assert plan.steps_per_epoch == 3  # ceil(19 / 8)
  assert order.tolist() == [*range(20, 1, -1), -1, -1, -1, -1, -1]
  last = plan.batch(2, records)
  most = plan.num_completions // 8
  assert (last.prompt_index[3 * most :] == -1).all()
  assert not last.comparisons.weight[3 * plan.num_comparisons // 8 :].any()
  with pytest.raises(IndexError):
    plan.step(3)


def test_a_last_batch_smaller_than_the_microbatches():
  records = make_records(9, most=1)
  plan = plan_of(records, shuffle=False, microbatches=4)
  batch = plan.batch(1, records)
  assert (batch.prompt_index >= 0).tolist() == [True] + 7 * [False]
  # The data has no comparisons: P is the batch size, with weights 0.
  assert batch.comparisons.weight.tolist() == 8 * [0]


def test_row_counts_are_few_and_multiples():
  records = make_records(400, longest=20)
  plan = plan_of(records, row_multiple=2, max_shapes=3, row_length=38)
  assert len(plan.row_counts) == 3
  shapes = plan.summary()['row_shapes']
  assert set(shapes) <= set(plan.row_counts)
  assert all(size % 2 == 0 for size in plan.row_counts)
  # A step that needs more than the largest count takes the next multiple.
  plan.row_counts = (2,)
  assert plan.step(0).num_rows == plan.rows_needed(0) > 2


def test_summary_by_hand():
  # Two prompts of 3 tokens with answers of 2 and 4: 2 + 2 + 4 slots each.
  prompt, short, long = (np.ones(n, np.int32) for n in (3, 2, 4))
  record = types.EncodedRecord(prompt, (short, long), ())
  plan = plan_of([record, record], batch_size=2, row_length=10)
  assert plan.summary() == {
    'num_steps': 1,
    'num_prompts': 2,
    'steps_per_epoch': 1,
    'row_shapes': {2: 1},
    'num_slots': 20,
    'num_tokens': 16,
    'num_predicted_tokens': 12,
    'num_separate_tokens': 20,  # 4 sequences: 2 * ((2 + 2) + (2 + 4))
    'packing_efficiency': 0.8,
  }
  # One token of each short answer and two of each long one are trained.
  masks = (np.arange(2) > 0, np.arange(4) > 1)
  masked = [record._replace(trained=masks)] * 2
  summary = plan_of(masked, batch_size=2, row_length=10).summary()
  assert summary == plan.summary() | {'num_predicted_tokens': 6}


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'layout': 'share'},
      "config.data.layout: 'share' .*fix: did you mean 'shared'",
    ),
    ({'batch_size': 0}, 'config.train.batch_size: 0'),
    ({'microbatches': 3}, 'config.train.microbatches: 3 do not divide'),
    ({'batch_size': 16}, 'config.train.batch_size: 16 prompts.* only 12'),
    ({'max_shapes': 0}, 'config.data.max_shapes: 0'),
    ({'row_length': 5}, 'config.data.row_length: 5 slots.*fix: .*max_length'),
    ({'indices': []}, 'config.data.max_length: no record is left'),
  ],
)
def test_what_cannot_be_planned_is_refused(changes, message):
  with pytest.raises(types.InputError, match=message) as refusal:
    plan_of(make_records(12), **changes)
  assert '\n' not in str(refusal.value)


@pytest.mark.parametrize(
  'name, every', [('hh_harmless', 1), ('alpaca_eval', 9)]
)
def test_real_pairs_pack_well(shared, name, every):
  # The goal: efficiency >= 0.90 with rows of 1,024 and at most 8 shapes.
  tokenizer = tokenizers.Tokenizer.from_file(
    str(shared / 'data/models/gpt2_tokenizer/tokenizer.json')
  )
  with gzip.open(shared / f'data/prefs/{name}.jsonl.gz', 'rt') as f:
    pairs = [json.loads(line) for line in f][::every]
  prompts, chosen, rejected = (
    [np.array(e.ids) for e in tokenizer.encode_batch([p[key] for p in pairs])]
    for key in ('prompt', 'chosen', 'rejected')
  )
  records = [
    types.EncodedRecord(p, (c[: 1024 - len(p)], r[: 1024 - len(p)]), ())
    for p, c, r in zip(prompts, chosen, rejected)
  ]
  for layout in ('shared', 'packed'):
    plan = plan_of(
      records, batch_size=64, row_length=1024, layout=layout, max_shapes=8
    )
    summary = plan.summary()
    assert summary['packing_efficiency'] >= 0.9
    assert len(summary['row_shapes']) <= 8
