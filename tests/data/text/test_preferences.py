"""Stages and uids: the completion that SFT uses, and equal records."""

from toy_records import BYTE, pair, run

from dpo_jax.types import Comparison, PreferenceRecord


def test_duplicates_and_uids():
  first = pair(where='f.jsonl:1')
  again = pair(where='f.jsonl:2')
  others = [
    pair(comparisons=(Comparison(1, 0),)),
    pair(comparisons=(Comparison(0, 1, 2.0),)),
    pair(scores=(1.0, 0.0)),
    pair(labels=(True, False)),
    pair(quantiles=(1.0, 0.5)),
    pair('a', 'bc'),
    pair('ab', 'c', 'e'),
  ]
  encoded, counts = run(first, again, *others)
  assert counts.duplicates == 1 and len(encoded) == 8
  assert len({record.uid for record in encoded}) == 8
  assert all(len(record.uid) == 16 for record in encoded)
  encoded, counts = run(first, again, drop_duplicates=False)
  assert counts.duplicates == 0 and encoded[0].uid == encoded[1].uid
  # Equal margins give equal uids, whatever their type.
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


def test_sft_takes_the_best_completion():
  ranked = PreferenceRecord(
    'p',
    ('x', 'y', 'z'),
    tuple(Comparison(*c) for c in ((1, 0), (1, 2), (2, 0))),
  )
  scored = PreferenceRecord('p', ('x', 'y'), scores=(0.5, 0.7))
  liked = PreferenceRecord('q', ('w',), labels=(True,))
  disliked = PreferenceRecord('q', ('v',), labels=(False,), where='f:4')
  shown = PreferenceRecord('r', ('u',), (Comparison(0, 0, 0.5),))
  records = (pair(), ranked, scored, liked, disliked, shown)
  encoded, counts = run(*records, stage='sft')
  assert [BYTE.decode(r.completions[0]) for r in encoded] == list('cywu')
  assert all(len(r.completions) == 1 for r in encoded)
  assert [r.comparisons[0] for r in encoded] == [
    *(Comparison(0, 0),) * 3,
    Comparison(0, 0, 0.5),
  ]
  assert counts.duplicates == 1 and counts.dropped == {'undesirable': 1}
  assert run(pair(quantiles=(1.0, 0.5)), stage='sft')[0][0].quantiles is None
  # The other completion may be empty.
  assert len(run(pair(rejected=''), stage='sft')[0]) == 1


def test_sft_counts_losses_too():
  comparisons = [Comparison(*c) for c in ((0, 2), (0, 3), (1, 0), (3, 0))]
  record = PreferenceRecord('p', tuple('wxyz'), tuple(comparisons))
  encoded, _ = run(record, stage='sft')  # w: 2 won, 2 lost; x: 1 won
  assert BYTE.decode(encoded[0].completions[0]) == 'x'


def test_unpaired_records():
  record = PreferenceRecord('p', ('x',), labels=(False,))
  encoded, _ = run(record)
  assert encoded[0].labels == (False,) and encoded[0].comparisons == ()
