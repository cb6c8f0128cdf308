"""bookkeeping: the last lines of the ledger, against numbers by hand."""

import numpy as np

from dpo_jax.run import bookkeeping

LEDGER = {
  'read': 10,
  'kept': 7,
  'duplicates': 1,
  'dropped': {'too_long': 2},
  'held_out': 2,
  'surplus': 1,
}
INDICES = np.array([0, 2, 4, 6])


def trained_on(*batches):
  trained = bookkeeping.TrainedCounts(7)
  for batch in batches:
    trained.add(np.array(batch), num_tokens=5)
  return trained


def test_a_ledger_that_balances():
  trained = trained_on([0, 2], [4, -1])
  assert trained.problems(INDICES, 3) == [] and trained.num_tokens == 10
  closed, problems = bookkeeping.close_ledger(LEDGER, trained, INDICES)
  assert problems == []
  assert (closed['trained'], closed['not_reached']) == (3, 1)
  assert bookkeeping.summary(closed) == (
    'ledger: 10 rows read = 3 trained on (0.75 passes) + 1 not reached + 2 '
    'held out + 1 surplus + 1 duplicates + 2 dropped (2 too_long)'
  )


def test_what_does_not_balance_is_named():
  assert 'planned' in trained_on([0, 2]).problems(INDICES, 3)[0]
  assert 'outside' in trained_on([0, 1]).problems(INDICES, 1)[0]
  twice = trained_on([0, 0]).problems(INDICES, 2)
  assert twice == ['a record was trained on 2 times, another 0']
  _, problems = bookkeeping.close_ledger(
    LEDGER | {'read': 11}, trained_on([0]), INDICES
  )
  assert problems == ['11 rows read, 10 accounted for']
