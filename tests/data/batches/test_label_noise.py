"""Swapped comparisons: how many, which ones, and nothing else changed."""

import numpy as np
import pytest

from dpo_jax.data.batches import label_noise, length_table
from dpo_jax.types import Comparison, EncodedRecord, InputError

PAIR = (Comparison(0, 1, 0.5, 2.0),)


def records(num, comparisons=PAIR, **known):
  completions = tuple(np.ones(n, np.int32) for n in (2, 1, 3))
  return [
    EncodedRecord(
      np.ones(3, np.int32), completions, comparisons, uid=f'{i:016x}', **known
    )
    for i in range(num)
  ]


def flip(given, share, seed=0, indices=None):
  """The uids and numbers of the swapped comparisons, and the whole answer."""
  table = length_table.make_table(given)
  indices = range(len(given)) if indices is None else indices
  out = label_noise.flip(table, np.array(indices), share, seed)
  owners = np.repeat(table.uids, table.num_comparisons)
  places = np.arange(len(owners)) - np.repeat(
    table.comparison_offsets[:-1], table.num_comparisons
  )
  is_swapped = out[0].winner != table.winner
  # A swap exchanges both sides and leaves every other array alone.
  np.testing.assert_array_equal(
    np.where(is_swapped, table.loser, table.winner), out[0].winner
  )
  np.testing.assert_array_equal(
    np.where(is_swapped, table.winner, table.loser), out[0].loser
  )
  for name in set(table._fields) - {'winner', 'loser'}:
    assert getattr(out[0], name) is getattr(table, name)
  swapped = set(zip(owners[is_swapped].tolist(), places[is_swapped].tolist()))
  return swapped, out


def test_share_0_is_the_table_itself():
  table = length_table.make_table(records(5))
  assert label_noise.flip(table, np.arange(5), 0, 0) == (table, {}, [])


def test_the_share_is_met_and_said():
  swapped, (_, counts, lines) = flip(records(4000), 0.2)
  # A binomial of 4,000 draws: standard deviation 25.3; four of them.
  assert abs(len(swapped) - 800) < 102
  assert counts == {'flipped': len(swapped)}
  assert set(counts) == set(label_noise.COUNTS)
  assert lines == [
    f'{len(swapped)} of 4,000 comparisons ({len(swapped) / 4000:.1%}) have '
    'winner and loser swapped: data.flip_share is 0.2'
  ]


def test_the_choice_does_not_depend_on_the_order_or_on_other_records():
  given = records(400, (Comparison(0, 1), Comparison(1, 2), Comparison(0, 2)))
  swapped, _ = flip(given, 0.3)
  assert flip(given[::-1], 0.3)[0] == swapped
  assert flip(given[:100], 0.3)[0] == {
    s for s in swapped if int(s[0], 16) < 100
  }
  # Each comparison of a record has a draw of its own.
  per_record = [sum(uid == s[0] for s in swapped) for uid in {*dict(swapped)}]
  assert {1, 2, 3} == set(per_record)


def test_a_larger_share_swaps_more_and_a_seed_others():
  given = records(1000)
  some, more = (flip(given, share)[0] for share in (0.1, 0.4))
  assert some < more
  other, _ = flip(given, 0.4, seed=1)
  assert other != more
  # Independent draws: 160 common ones of 1,000, standard deviation 11.6.
  assert abs(len(other & more) - 160) < 47


def test_only_records_to_train_on_are_swapped():
  swapped, (_, counts, _) = flip(records(400), 0.5, indices=range(100))
  assert {int(uid, 16) for uid, _ in swapped} <= set(range(100))
  assert counts['flipped'] == len(swapped) > 20


@pytest.mark.parametrize(
  'given',
  [records(4, (), labels=(True, False, True)), records(4, (Comparison(0, 0),))],
  ids=['labels', 'demonstrations'],
)
def test_data_without_comparisons_is_refused(given):
  with pytest.raises(InputError) as refusal:
    flip(given, 0.1)
  assert str(refusal.value) == (
    'config.data.flip_share: 0.1 swaps the answers of comparisons, and '
    'data.train has none; fix: set it to 0, or use data with comparisons and '
    "stage 'dpo'"
  )
