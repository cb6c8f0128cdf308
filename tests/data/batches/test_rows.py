"""The branch layout: every text can be rebuilt from its row."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.data.batches import rows

SETTINGS = hypothesis.settings(deadline=None, max_examples=60)


def record(prompt_length, completion_lengths, first=1):
  """A record with tokens first, first + 1, ...: all differ, so mix-ups show."""
  ends = np.cumsum([prompt_length, *completion_lengths])
  tokens = np.arange(first, first + ends[-1], dtype=np.int32)
  prompt, *completions = np.split(tokens, ends[:-1])
  return types.EncodedRecord(prompt, tuple(completions), ())


def units_of(records, row_length, layout):
  return [
    unit
    for i, r in enumerate(records)
    for unit in rows.make_units(
      i,
      len(r.prompt),
      [len(c) for c in r.completions],
      row_length=row_length,
      layout=layout,
    )
  ]


def layout_of(records, row_length, layout, completions_per_prompt):
  units = units_of(records, row_length, layout)
  placed = rows.place(units, row_length=row_length, layout=layout)
  return placed, rows.fill(
    placed,
    records,
    row_length=row_length,
    completions_per_prompt=completions_per_prompt,
  )


def visible(row, query):
  """The slots that a query sees, by the rule of types.Rows."""
  return [
    key
    for key in range(query + 1)
    if row.prompt_id[key] == row.prompt_id[query] > 0
    and row.branch[key] in (0, row.branch[query])
  ]


def check_rebuilds(filled, records, completions_per_prompt):
  """Checks that each completion token is predicted once, from its own text."""
  predicted = {}
  for r in range(len(filled.tokens)):
    row = types.Rows(*(field[r] for field in filled))
    for query in np.flatnonzero(row.completion_id >= 0):
      i, k = divmod(int(row.completion_id[query]), completions_per_prompt)
      text = [*records[i].prompt, *records[i].completions[k]]
      seen = visible(row, query)
      at = row.positions[query]
      assert row.positions[seen].tolist() == list(range(at + 1))
      assert row.tokens[seen].tolist() == text[: at + 1]
      assert row.targets[query] == text[at + 1]
      predicted.setdefault((i, k), []).append(at + 1 - len(records[i].prompt))
    empty = row.prompt_id == 0
    assert (row.completion_id[empty] == -1).all()
    assert not np.stack(row[:-1])[:, empty].any()
    assert not row.targets[row.completion_id < 0].any()
  assert {key: sorted(at) for key, at in predicted.items()} == {
    (i, k): list(range(len(c)))
    for i, r in enumerate(records)
    for k, c in enumerate(r.completions)
  }


def test_a_shared_unit_by_hand():
  # Trunk [5, 6]; each branch starts with a copy of 7, the prompt's last.
  example = record(3, (2, 4), first=5)
  _, filled = layout_of([example], 10, 'shared', 2)
  assert filled.tokens.tolist() == [[5, 6, 7, 8, 7, 10, 11, 12, 0, 0]]
  assert filled.positions.tolist() == [[0, 1, 2, 3, 2, 3, 4, 5, 0, 0]]
  assert filled.prompt_id.tolist() == [[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]
  assert filled.branch.tolist() == [[0, 0, 1, 1, 2, 2, 2, 2, 0, 0]]
  assert filled.targets.tolist() == [[0, 0, 8, 9, 10, 11, 12, 13, 0, 0]]
  assert filled.completion_id.tolist() == [[-1, -1, 0, 0, 1, 1, 1, 1, -1, -1]]
  assert all(field.dtype == np.int32 for field in filled)


def test_tokens_that_are_not_trained_are_read_and_not_predicted():
  masks = (np.array([False, True]), np.array([True, False, False, True]))
  example = record(3, (2, 4), first=5)
  _, all_trained = layout_of([example], 10, 'shared', 2)
  example = example._replace(trained=masks)
  _, filled = layout_of([example], 10, 'shared', 2)
  for name in ('tokens', 'positions', 'prompt_id', 'branch'):
    assert np.array_equal(getattr(filled, name), getattr(all_trained, name))
  assert filled.targets.tolist() == [[0, 0, 0, 9, 10, 0, 0, 13, 0, 0]]
  assert filled.completion_id.tolist() == [
    [-1, -1, -1, 0, 1, -1, -1, 1, -1, -1]
  ]


@pytest.mark.parametrize(
  'layout, num_rows, num_filled',
  [
    ('shared', 1, 8),  # 2 + 2 + 4
    ('packed', 1, 10),  # (2 + 2) + (2 + 4)
    ('padded', 2, 10),  # the same, in a row each
  ],
)
def test_slots_by_hand(layout, num_rows, num_filled):
  placed, filled = layout_of([record(3, (2, 4))], 10, layout, 2)
  assert filled.tokens.shape == (num_rows, 10)
  assert (filled.prompt_id > 0).sum() == num_filled
  assert sum(u.num_slots for row in placed for u in row) == num_filled


def test_a_prompt_of_one_token_has_no_trunk():
  _, filled = layout_of([record(1, (2, 1))], 4, 'shared', 2)
  assert filled.tokens.tolist() == [[1, 2, 1, 0]]
  assert filled.branch.tolist() == [[1, 1, 2, 0]]


def test_branches_that_do_not_fit_take_more_rows_with_the_trunk_repeated():
  # A trunk of 4 leaves 6 slots: branches of 5, 4 and 2 make [5], [4, 2].
  records = [record(5, (5, 2, 4))]
  placed, filled = layout_of(records, 10, 'shared', 3)
  assert [unit.branches for row in placed for unit in row] == [(1, 2), (0,)]
  assert [unit.num_slots for row in placed for unit in row] == [10, 9]
  check_rebuilds(filled, records, 3)


def test_a_unit_is_cut_where_that_saves_a_row():
  # 17 and 14 leave gaps of 3 and 6. The unit of 1 + 2 + 2 + 2 fits neither,
  # but a branch with its trunk (3) fits the first and two (5) the second.
  records = [record(1, (17,)), record(1, (14,)), record(2, (2, 2, 2))]
  placed, filled = layout_of(records, 20, 'shared', 3)
  assert [[u.num_slots for u in row] for row in placed] == [[17, 3], [14, 5]]
  assert [len(u.branches) for u in (placed[0][1], placed[1][1])] == [1, 2]
  check_rebuilds(filled, records, 3)


def test_a_unit_stays_whole_where_cutting_saves_nothing():
  records = [record(1, (17,)), record(2, (2, 2, 2))]
  placed, _ = layout_of(records, 20, 'shared', 3)
  assert [[u.num_slots for u in row] for row in placed] == [[17], [7]]


@SETTINGS
@hypothesis.given(
  lengths=st.lists(
    st.tuples(
      st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=9,
  ),
  row_length=st.integers(23, 40),
  layout=st.sampled_from(rows.LAYOUTS),
)
def test_every_text_is_rebuilt(lengths, row_length, layout):
  records = [
    record(t, n, first=1 + 100 * i) for i, (t, n) in enumerate(lengths)
  ]
  placed, filled = layout_of(records, row_length, layout, 4)
  check_rebuilds(filled, records, 4)
  used = [sum(unit.num_slots for unit in row) for row in placed]
  assert (filled.prompt_id > 0).sum(axis=1).tolist() == used
  # Best-fit decreasing leaves at most one row half empty.
  if layout == 'packed':
    assert sum(2 * slots <= row_length for slots in used) <= 1
  again, _ = layout_of(records, row_length, layout, 4)
  assert again == placed


def test_only_the_rows_asked_for_are_read():
  records = {7: record(3, (2, 2))}
  unit = rows.Unit(prompt=7, branches=(1,), trunk=2, lengths=(2,))
  filled = rows.fill(
    [[unit], []], records, row_length=6, completions_per_prompt=2
  )
  assert filled.completion_id.tolist() == [[-1, -1, 15, 15, -1, -1], [-1] * 6]


def test_a_text_longer_than_a_row_is_refused():
  with pytest.raises(types.InputError, match='config.data.row_length: 9 slots'):
    rows.make_units(0, 6, [5], row_length=9, layout='packed')
  rows.make_units(0, 6, [4], row_length=9, layout='packed')  # 5 + 4 = 9 fits


@SETTINGS
@hypothesis.given(
  sizes=st.lists(st.integers(1, 50), max_size=24),
  hands=st.sampled_from([1, 3, 4]),
)
def test_dealing_is_fair(sizes, hands):
  most = -(-len(sizes) // hands)
  dealt = rows.deal(sizes, hands, most)
  assert sorted(i for hand in dealt for i in hand) == list(range(len(sizes)))
  assert max(map(len, dealt)) <= most


def test_dealing_gives_no_hand_more_than_its_share():
  assert rows.deal([10, 1, 1, 1], 2, 2) == [[0, 3], [1, 2]]


def test_dealing_balances_what_order_would_not():
  # In order: 12 against 8; largest first: 9 + 1 against 4 + 6.
  dealt = rows.deal([9, 1, 4, 6], 2, 2)
  assert sorted(map(sorted, dealt)) == [[0, 1], [2, 3]]


@SETTINGS
@hypothesis.given(
  needs=st.dictionaries(
    st.integers(1, 30), st.integers(1, 9), min_size=1, max_size=7
  ),
  max_shapes=st.integers(1, 8),
)
def test_row_counts_are_the_best_there_are(needs, max_shapes):
  def empty(chosen):
    return sum(
      steps * (min(c for c in chosen if c >= need) - need)
      for need, steps in needs.items()
    )

  chosen = rows.choose_row_counts(needs, max_shapes)
  assert list(chosen) == sorted(set(chosen)) and len(chosen) <= max_shapes
  # Brute force: every subset of the needs with the largest in it.
  others = sorted(needs)[:-1]
  subsets = (
    (*some, max(needs))
    for size in range(min(max_shapes, len(needs)))
    for some in itertools.combinations(others, size)
  )
  assert empty(chosen) == min(map(empty, subsets))
