"""Trap 5, what is dropped and why, and the ledger of it."""

import json
import math

import pytest
import toy_tokenizers as toy
from toy_records import chat, dropped, ids, pair, run

from dpo_jax.data.text import ledger
from dpo_jax.types import Comparison, InputError, PreferenceRecord

# Trap 5

LONG = [
  # policy, max_length, prompt_max_length -> prompt, completions | reason.
  # The prompt is BOS a b c d (5 tokens), the sides e f g EOS (4) and h EOS (2).
  ('drop', 9, None, '^abcd', ['efg$', 'h$']),
  ('drop', 8, None, 'too_long', None),
  ('drop', 5, None, 'prompt_fills_window', None),
  ('drop', 9, 4, 'prompt_too_long', None),
  ('keep_prompt_end', 9, None, '^abcd', ['efg$', 'h$']),
  ('keep_prompt_end', 8, None, '^bcd', ['efg$', 'h$']),
  ('keep_prompt_end', 6, None, '^d', ['efg$', 'h$']),
  ('keep_prompt_end', 5, None, 'd', ['efg$', 'h$']),
  ('keep_prompt_end', 4, None, 'completion_fills_window', None),
  ('keep_prompt_end', 9, 3, '^cd', ['efg$', 'h$']),
  ('keep_completion_start', 8, None, '^abcd', ['efg', 'h$']),
  ('keep_completion_start', 6, None, '^abcd', ['e', 'h']),
  ('keep_completion_start', 5, None, 'prompt_fills_window', None),
  ('keep_completion_start', 5, 3, '^cd', ['ef', 'h$']),
]


@pytest.mark.parametrize(
  ('policy', 'window', 'prompt_window', 'prompt', 'sides'), LONG
)
def test_truncation(policy, window, prompt_window, prompt, sides):
  options = {
    'max_length': window,
    'truncation': policy,
    'prompt_max_length': prompt_window,
  }
  record = pair('abcd', 'efg', 'h')
  if sides is None:
    assert dropped(record, **options) == {prompt: 1}
    return
  encoded, counts = run(record, **options)
  marks = {'^': 256, '$': 257}
  assert ids(encoded[0]) == (
    [marks.get(c, ord(c)) for c in prompt],
    [[marks.get(c, ord(c)) for c in side] for side in sides],
  )
  assert counts.counters['truncated_prompts'] == (prompt != '^abcd')
  cut = sum(not side.endswith('$') for side in sides)
  assert counts.counters['truncated_completions'] == cut


def test_an_unknown_policy_is_refused():
  with pytest.raises(InputError, match="did you mean 'keep_prompt_end'"):
    run(pair(), truncation='keep_prompts_end')


def test_sides_that_become_equal_by_truncation_are_dropped():
  options = {'max_length': 4, 'truncation': 'keep_completion_start'}
  assert dropped(pair('a', 'xyz', 'xyw'), **options) == {'identical_sides': 1}


# Unusable rows


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


def test_an_empty_answer_of_a_chat_is_empty_whatever_the_template_adds(
  tmp_path,
):
  tokens = toy.load(
    tmp_path, toy.byte_level(), template=toy.CHATML, eos_token='<|im_end|>'
  )
  for text in ('', ' \n'):
    record = chat('a', 'b', text)
    assert dropped(record, tokens=tokens) == {'empty_completion': 1}


def test_duplicates_and_uids():
  first = pair(where='f.jsonl:1')
  again = pair(where='f.jsonl:2')
  others = [
    pair(comparisons=(Comparison(1, 0),)),
    pair(comparisons=(Comparison(0, 1, 2.0),)),
    pair(scores=(1.0, 0.0)),
    pair(labels=(True, False)),
    pair('a', 'bc'),
    pair('ab', 'c', 'e'),
  ]
  encoded, counts = run(first, again, *others)
  assert counts.duplicates == 1 and len(encoded) == 7
  assert len({record.uid for record in encoded}) == 7
  assert all(len(record.uid) == 16 for record in encoded)
  encoded, counts = run(first, again, drop_duplicates=False)
  assert counts.duplicates == 0 and encoded[0].uid == encoded[1].uid
  # Margins that are equal numbers are equal, whatever their type.
  integer = pair(comparisons=(Comparison(0, 1, 1, 2),))
  real = pair(comparisons=(Comparison(0, 1, 1.0, 2.0),))
  assert run(integer, real)[1].duplicates == 1


def test_several_answers_keep_what_can_be_compared():
  comparisons = tuple(Comparison(*c) for c in ((0, 1), (0, 2), (1, 2)))
  record = PreferenceRecord('p', ('x', 'y', 'x'), comparisons)
  encoded, counts = run(record)
  assert encoded[0].comparisons == (Comparison(0, 1), Comparison(1, 2))
  assert len(encoded[0].completions) == 3
  assert counts.counters['identical_comparisons'] == 1


# The ledger


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


def test_every_reason_and_counter_is_explained():
  for problem, fix in ledger.REASONS.values():
    assert problem and fix
  _, counts = run(pair())
  assert set(counts.counters) <= set(ledger.COUNTERS)
