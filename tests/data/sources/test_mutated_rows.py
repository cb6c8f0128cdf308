"""Mutated rows of chats: a record or one line of refusal, never a traceback."""

import mutated_rows


def test_mutated_chats_are_read_or_refused():
  counts, failures = mutated_rows.run(1500, seed=1)
  assert not failures, failures[0]
  # Mutations that all pass, or all fail, would test little.
  assert counts['kept'] > 150 and counts['refused'] > 150
