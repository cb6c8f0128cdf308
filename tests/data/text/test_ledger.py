"""The ledger: why records are dropped, and counts that balance."""

import json
import math

import pytest
from toy_records import pair, run

from dpo_jax.data.text import ledger
from dpo_jax.types import Comparison, InputError


@pytest.mark.parametrize(
  ('record', 'reason'),
  [
    (pair(chosen=''), 'empty_completion'),
    (pair(rejected=''), 'empty_completion'),
    (pair('a', 'same', 'same'), 'identical_sides'),
    (pair((1,), (2,), (2,)), 'identical_sides'),
    (pair((1,), (), (2,)), 'empty_completion'),
    (pair((), (1,), (2,)), 'empty_prompt'),
    (pair('a' * 200), 'prompt_fills_window'),
    (pair('a', 'b' * 200), 'too_long'),
    (pair(comparisons=()), 'no_preference'),
    (pair(comparisons=(), scores=(1.0, 1.0)), 'no_preference'),
    (pair(comparisons=(Comparison(0, 0),)), 'no_preference'),
    (pair(scores=(1.0, math.nan)), 'non_finite'),
    (pair(comparisons=(Comparison(0, 1, 1.0, math.inf),)), 'non_finite'),
  ],
)
def test_unusable_rows_are_counted_or_refused(record, reason):
  encoded, counts = run(pair(), record, pair('z'))
  assert len(encoded) == 2
  assert counts.dropped == {reason: 1}
  assert counts.first == {reason: 'f.jsonl:1'}
  with pytest.raises(InputError) as caught:
    run(pair(), record, strict=True)
  text = str(caught.value)
  assert text.startswith('f.jsonl:1: ') and f'({reason}); fix: ' in text


def test_ledger_summary_and_json():
  _, counts = run(
    *(pair(), pair(), pair('a', '')),
    *(pair('b', '', where='f.jsonl:7'), pair('a' * 200, where='f.jsonl:9')),
  )
  assert counts.lines() == [
    'records: read 5 = kept 1 + dropped 3 + duplicates 1',
    'dropped: empty_completion 2 (first: f.jsonl:1), prompt_fills_window 1 '
    '(first: f.jsonl:9)',
  ]
  values = json.loads(json.dumps(counts.as_dict()))
  assert ledger.Ledger.from_dict(values) == counts
  assert values['counters']['boundary_merges'] == 0
  counts.kept += 1
  assert not counts.balanced() and 'NOT BALANCE' in counts.lines()[0]


def test_the_main_reason_is_that_of_most_records():
  _, counts = run(pair('a', ''), pair('b', ''), pair('c', 'x', 'x'))
  problem, fix = counts.main_reason()
  assert problem == 'a completion is empty (empty_completion, 2 of 3 records)'
  assert fix == ledger.REASONS['empty_completion'][1]
  assert ledger.Ledger().main_reason()[0] == '0 records were read'


def test_every_reason_and_counter_is_explained():
  for problem, fix in ledger.REASONS.values():
    assert problem and fix
  _, counts = run(pair())
  assert set(counts.counters) <= set(ledger.COUNTERS)
