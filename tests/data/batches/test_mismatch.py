"""Mismatched answers for KTO: from another prompt of the batch or the set."""

import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.data.batches import length_table, mismatch, pipeline

LONG = 40


def record(prompt, *completions, **known):
  """A record with these token ids."""
  arrays = [np.asarray(c, np.int32) for c in completions]
  return types.EncodedRecord(
    np.asarray(prompt, np.int32), tuple(arrays), (), **known
  )


def drawn(num_records, seed=0, num_prompts=1000, most=3):
  """Random prompts, answers and labels; no two answers share a token."""
  rng = np.random.default_rng(seed)
  records, token = [], 5000
  for i in range(num_records):
    answers = []
    for _ in range(rng.integers(1, most + 1)):
      answers.append(np.arange(token, token + rng.integers(1, 9)))
      token += 10
    prompt = np.random.default_rng(rng.integers(num_prompts)).integers(1, 99, 6)
    labels = tuple(bool(k % 2) for k in range(len(answers)))
    # In another order than the records.
    uid = f'{i * 11400714819323198485 % 2**64:016x}'
    records.append(record(prompt, *answers, labels=labels, uid=uid))
  return records


def choose(records, batch, max_length=LONG, step=0):
  """(record, completion) of each place in a training batch; None = none."""
  table = length_table.make_table(records)
  answers = mismatch.of_batch(table, np.asarray(batch), step, max_length)
  return as_pairs(table, answers)


def as_pairs(table, answers):
  pairs = []
  for i, completion in zip(*(field.tolist() for field in answers)):
    pairs.append((i, completion - int(table.offsets[i])) if i >= 0 else None)
  return pairs


def firsts(pairs):
  """Records of answers that are all completion 0; -1 = none."""
  assert {k for _, k in filter(None, pairs)} <= {0}
  return [-1 if pair is None else pair[0] for pair in pairs]


def plan_of(records, **changes):
  options = dict(seed=3, batch_size=8, row_length=32, mismatched_length=30)
  return pipeline.make_plan(
    length_table.make_table(records), **(options | changes)
  )


def brute_force(records, batch, max_length, turns):
  """The rule of the docstring, one record at a time."""
  batch = [int(i) for i in batch if i >= 0]
  offers = [(i, n % len(records[i].completions)) for i, n in zip(batch, turns)]
  chosen = []
  for place, own in enumerate(batch):
    prompt = records[own].prompt
    for i, k in offers[place + 1 :] + offers[:place]:
      is_other = records[i].prompt.tolist() != prompt.tolist()
      answer = records[i].completions[k]
      if is_other and len(prompt) + len(answer) <= max_length:
        chosen.append((i, k))
        break
    else:
      chosen.append(None)
  return chosen


def of_set(records, indices, max_length=LONG):
  table = length_table.make_table(records)
  answers = mismatch.of_set(table, np.asarray(indices), max_length)
  return as_pairs(table, answers)


def test_distinct_prompts_are_shifted_by_one():
  records = [record([i, i], [i] * 3) for i in range(5)]
  assert firsts(choose(records, [3, 0, 4, 2])) == [0, 4, 2, 3]


def test_records_of_one_prompt_take_the_next_other_one():
  records = [record([p], [p]) for p in (7, 7, 8, 7, 7)]
  assert firsts(choose(records, range(5))) == [2, 2, 3, 2, 2]


def test_an_answer_that_does_not_fit_is_passed_over():
  sizes = [(2, 3), (9, 1), (2, 8)]
  records = [record([i] * t, [i] * n) for i, (t, n) in enumerate(sizes)]
  # 9 + 8 > 12: prompt 1 takes the answer of 0.
  assert firsts(choose(records, [0, 1, 2], 12)) == [1, 0, 0]
  assert firsts(choose(records, [1, 2], 12)) == [-1, 1]  # no third record


def test_empty_places_are_no_neighbours():
  records = [record([i], [i]) for i in range(3)]
  assert firsts(choose(records, [0, 1, 2, -1, -1])) == [1, 2, 0, -1, -1]
  assert firsts(choose(records, [2, -1, -1])) == [-1, -1, -1]


@pytest.mark.parametrize('seed', range(4))
def test_follows_the_rule_and_never_the_identity(seed):
  records = drawn(30, seed, num_prompts=4)
  batch = np.random.default_rng(seed).permutation(30)[:16]
  for step, max_length in enumerate((9, 11, LONG)):
    chosen = choose(records, batch, max_length, step)
    turns = range(step, step + 16)
    assert chosen == brute_force(records, batch, max_length, turns)


def test_answers_come_from_both_sides_of_pairs():
  # HALOs, train/dataloader.py: desirable or not does not matter.
  records = [record([i], [i] * 2, [i] * 3) for i in range(8)]
  for step in (0, 1):
    sides = [k for _, k in choose(records, range(8), step=step)]
    assert sides == [(i + 1 + step) % 2 for i in range(7)] + [step]
  plan = plan_of(records, batch_size=4)
  drawn_from = [
    pair
    for t in range(80)
    for pair in as_pairs(plan.table, plan.step(t).others)
  ]
  # Every completion of every other record is used, in about equal parts.
  counts = np.unique(drawn_from, axis=0, return_counts=True)[1]
  assert len(counts) == 16 and counts.min() > 8
  ranked = [record([i], *([[i]] * 3)) for i in range(6)]
  sides = [k for t in range(6) for _, k in choose(ranked, range(6), step=t)]
  assert np.bincount(sides).tolist() == [12] * 3


@pytest.mark.parametrize('seed', range(3))
def test_a_held_out_answer_follows_from_the_set_alone(seed):
  records = drawn(30, seed, num_prompts=4)
  records += records[:3]  # equal records are interchangeable
  by_uid = sorted(range(33), key=lambda i: records[i].uid)
  uids = sorted({r.uid for r in records})
  turns = [uids.index(records[i].uid) for i in by_uid]
  for max_length in (9, 11, LONG):
    expected = dict(
      zip(by_uid, brute_force(records, by_uid, max_length, turns))
    )
    assert of_set(records, range(33), max_length) == [
      expected[i] for i in range(33)
    ]
  tokens = {}
  for order in (range(33), np.random.default_rng(seed).permutation(33)):
    shuffled = [records[i] for i in order]
    for size in (1, 5, 33):
      plan = plan_of(shuffled, batch_size=size, shuffle=False, row_length=99)
      read = []
      for t in range(plan.steps_per_epoch):
        step = plan.step(t)
        for i, pair in zip(step.records, as_pairs(plan.table, step.others)):
          if i >= 0:
            answer = pair and shuffled[pair[0]].completions[pair[1]].tolist()
            read.append((shuffled[i].uid, str(answer)))
      tokens[tuple(order), size] = sorted(read)
  first, *others = tokens.values()
  assert len(first) == 33 and all(other == first for other in others)


def test_a_held_out_set_takes_both_sides_in_equal_parts():
  records = [
    record([i], [i] * 2, [i] * 3, uid=f'{(7 * i) % 10:016x}') for i in range(10)
  ]
  sides = [k for _, k in of_set(records, range(10))]
  assert sorted(sides) == [0] * 5 + [1] * 5


@pytest.mark.parametrize('layout', ['shared', 'packed', 'padded'])
@pytest.mark.parametrize('microbatches', [1, 4])
def test_the_branch_is_in_its_prompts_row(layout, microbatches):
  records = drawn(40)
  plan = plan_of(records, layout=layout, microbatches=microbatches)
  step, batch = plan.step(2), plan.batch(2, records)
  each = plan.num_completions // 8
  assert each == 3 + 1
  others = brute_force(records, step.records, 30, range(2, 10))
  assert as_pairs(plan.table, step.others) == others
  for i, (index, (other, k)) in enumerate(zip(step.records, others)):
    c = i * each + each - 1
    own = batch.rows.completion_id == c
    answer = records[other].completions[k]
    assert sorted(batch.rows.targets[own]) == sorted(answer)
    prompt = records[index].prompt
    where = np.argwhere(own)[0]
    row = types.Rows(*(field[tuple(where[:2])] for field in batch.rows))
    unit = row.prompt_id == row.prompt_id[where[2]]
    branch = row.branch[where[2]]
    text = row.tokens[unit & ((row.branch == 0) | (row.branch == branch))]
    assert text.tolist() == [*prompt, *answer[:-1]]
    # It is in the microbatch of the prompt's own answers.
    own = np.argwhere(batch.rows.completion_id == i * each)[0]
    assert own[0] == where[0]
    assert (batch.labels[c], batch.scores[c]) == (-1, 0)
    assert batch.prompt_index[c] == i
  assert batch.mismatched.dtype == np.int32
  assert batch.mismatched.tolist() == ([0] * (each - 1) + [1]) * 8
  assert (plan.completion_index(2)[each - 1 :: each] == -1).all()
  assert (batch.rows.prompt_id > 0).sum() == step.filled_slots


def test_all_else_of_the_batch_is_that_of_another_loss():
  records = drawn(40)
  with_one, without = plan_of(records), plan_of(records, mismatched_length=0)
  a, b = with_one.batch(1, records), without.batch(1, records)
  assert b.mismatched is None and without.step(1).others is None
  assert np.array_equal(with_one.records(1), without.records(1))
  for name in ('labels', 'scores', 'prompt_index'):
    own = getattr(a, name).reshape(8, 4)[:, :3]
    assert np.array_equal(own.reshape(-1), getattr(b, name)), name
  assert 'num_mismatched' not in without.summary()


def test_processes_fill_their_rows_of_the_same_batch():
  records = drawn(64)
  options = dict(row_multiple=2, microbatches=2, batch_size=16)
  full = plan_of(records, **options).batch(3, records)
  half = plan_of(records, **options).step(3).num_rows // 2
  parts = [
    plan_of(records, **options).batch(3, records, rows=slice(k, k + half))
    for k in (0, half)
  ]
  for field, pieces in zip(full.rows, zip(*(part.rows for part in parts))):
    assert np.array_equal(field, np.concatenate(pieces, axis=1))
  assert np.array_equal(parts[1].mismatched, full.mismatched)


def test_the_last_batch_of_an_evaluation():
  records = drawn(17)
  plan = plan_of(records, shuffle=False)
  last = plan.batch(2, records)  # one record: its answer is of another batch
  each = plan.num_completions // 8
  assert last.mismatched.tolist() == [0] * (each - 1) + [1] + [0] * 7 * each
  num_present = len(records[16].completions)
  index = np.full(8 * each, -1)
  index[[*range(num_present), each - 1]] = 0
  assert last.prompt_index.tolist() == index.tolist()
  assert plan.summary()['num_mismatched'] == 17
  assert plan.summary()['num_prompts'] == 17


def test_summary_counts_the_branches_tokens():
  # Two prompts of 3 tokens with answers of 2 and 4 tokens, which they swap.
  records = [record([1] * 3, [4] * 2), record([2] * 3, [5] * 4)]
  summary = plan_of(records, batch_size=2, row_length=10).summary()
  assert summary['num_mismatched'] == 2
  assert summary['num_tokens'] == 2 * (2 + 2 + 4)
  assert summary['num_predicted_tokens'] == 2 * (2 + 4)
  assert summary['num_separate_tokens'] == 2 * (2 + 2 + 2 + 4)


def test_a_mismatched_answer_keeps_its_mask():
  plain, masked = record([1], [2, 3]), record([4], [5, 6], [7])
  masked = masked._replace(trained=(np.array([False, True]), np.array([True])))
  both = mismatch.with_answer(plain, masked, 0, 2)
  assert [mask.tolist() for mask in both.trained] == [
    [True, True],
    [],
    [False, True],
  ]
  both = mismatch.with_answer(masked, plain, 0, 2)
  assert both.trained[-1].tolist() == [True, True]
  assert both.trained[:2] == masked.trained
  assert mismatch.with_answer(plain, plain, 0, 2).trained is None
  both = mismatch.with_answer(plain, masked, 1, 2)
  assert both.completions[-1].tolist() == [7]
  assert both.trained[-1].tolist() == [True]
  # Own answers: 2 and 1 + 1 trained tokens. Offers: 2, and 1 of either side.
  summary = plan_of([plain, masked], batch_size=2).summary()
  assert summary['num_predicted_tokens'] == 2 + 2 + 1 + 2


@pytest.mark.parametrize(
  'changes,message',
  [
    ({'batch_size': 1}, 'config.train.batch_size: 1 is not allowed .*2 or'),
    ({}, 'all 8 records have the same prompt'),
  ],
)
def test_what_has_no_other_prompt_is_refused(changes, message):
  records = [record([1, 2], [i]) for i in range(8)]
  with pytest.raises(types.InputError, match=message) as refusal:
    plan_of(records, **changes)
  assert 'fix: ' in str(refusal.value) and '\n' not in str(refusal.value)
  plan_of(records, mismatched_length=0, **changes)
