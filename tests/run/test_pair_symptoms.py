"""Length, wrong labels and ties: seen where planted, and only there."""

import numpy as np
import pytest

from dpo_jax.run import pair_symptoms
from dpo_jax.run.symptom_case import Case

LAST = {'loss': 0.4, 'kl': 1.0}


def make_case(margin, *, chosen=None, rejected=None, samples=(), last=None):
  """A case with margins [P] and, if given, tokens of either side."""
  margin = np.asarray(margin, np.float64)
  num = len(margin)
  arrays = {
    'uid': np.array([f'{i:016x}'.encode() for i in range(num)]),
    'reward_chosen': margin,
    'reward_rejected': np.zeros(num),
    'chosen_tokens': np.full(num, 40.0) if chosen is None else chosen,
    'rejected_tokens': np.full(num, 40.0) if rejected is None else rejected,
  }
  history = {
    'samples': {100 * i: {'num_tokens': n} for i, n in enumerate(samples)}
  }
  return Case({}, LAST if last is None else last, history, {}, arrays)


def _normal(accuracy=0.9, num=400, seed=0):
  """Normal margins of that accuracy: without wrong labels."""
  quantile = {0.8: 0.8416, 0.9: 1.2816, 0.95: 1.6449}[accuracy]
  return np.random.default_rng(seed).normal(quantile, 1, num)


def test_length_that_margins_follow_is_seen_with_its_numbers():
  rng = np.random.default_rng(1)
  chosen, rejected = rng.integers(40, 120, 300), rng.integers(20, 80, 300)
  margin = 0.05 * (chosen - rejected) + rng.normal(0, 1, 300)
  case = make_case(margin, chosen=chosen, rejected=rejected)
  text = pair_symptoms.longer(case)
  assert f'chosen answers have {chosen.mean():.3g} tokens' in text
  correlation = np.corrcoef(margin, chosen - rejected)[0, 1]
  assert f'(correlation {correlation:.2f})' in text
  assert 'loss.ld_alpha=0.5' in text and 'arXiv:2403.19159' in text
  # The same margins in another order follow nothing.
  mixed = make_case(rng.permutation(margin), chosen=chosen, rejected=rejected)
  assert not pair_symptoms.longer(mixed)
  # Rejected answers are the longer ones.
  turned = make_case(-margin, chosen=rejected, rejected=chosen)
  assert not pair_symptoms.longer(turned)


def test_samples_that_grow():
  text = pair_symptoms.longer(make_case(_normal(), samples=(64.0, 70.0, 91.0)))
  assert 'samples grew from 64 to 91 tokens' in text
  assert not pair_symptoms.longer(make_case(_normal(), samples=(64.0, 76.0)))
  no_reference = make_case(_normal(), samples=(64.0, 91.0), last={'loss': 0.4})
  assert 'loss.terms.simpo' in pair_symptoms.longer(no_reference)


@pytest.mark.parametrize('accuracy', [0.8, 0.9, 0.95])
def test_normal_margins_have_no_wrong_labels(accuracy):
  seen = [
    bool(pair_symptoms.noise(make_case(_normal(accuracy, seed=seed))))
    for seed in range(100)
  ]
  assert sum(seen) <= 2


@pytest.mark.parametrize('flipped', [0.1, 0.2])
def test_flipped_labels_are_suspected_in_their_number(flipped):
  # Of the flipped ones half are as firm as half of the others.
  margin = np.random.default_rng(2).normal(4, 1.5, 400)
  num = int(flipped * 400)
  margin[:num] *= -1
  text = pair_symptoms.noise(make_case(margin))
  firm = int(np.sum(margin < -np.median(margin[margin > 0])))
  assert f'{firm} of 400 held-out pairs' in text
  share = float(text.split('loss.label_smoothing=')[1].split()[0])
  assert share == pytest.approx(flipped, rel=0.3), text
  worst = f'{int(np.argmin(margin)):016x}'
  assert f'--mode=show --record={worst};' in text


def test_an_unsure_policy_and_few_pairs_are_no_suspicion():
  rng = np.random.default_rng(3)
  assert not pair_symptoms.noise(make_case(rng.normal(0.2, 1, 400)))
  assert not pair_symptoms.noise(make_case([4.0] * 15 + [-9.0] * 4))
  assert not pair_symptoms.noise(make_case(np.full(100, 2.0)))
  assert not pair_symptoms.noise(Case({}, LAST, {}, {}, {}))


def test_a_few_firm_losses_are_chance():
  # Accuracy .9 of 700: .36 % would be 2.5 pairs; 2.5 + 3 sqrt(2.5) is 7.3.
  for firm, is_seen in ((6, False), (8, True)):
    lost = [-9.0] * firm + [-0.5] * (70 - firm)
    margin = [1.0] * 315 + [3.0] * 315 + lost
    assert bool(pair_symptoms.noise(make_case(margin))) == is_seen


def test_ties_are_counted():
  margin = _normal()
  margin[:12] = 0
  case = make_case(margin)._replace(knobs={'data.max_length': 512})
  text = pair_symptoms.ties(case)
  assert text.startswith('3% of the held-out pairs tie')
  assert 'data.max_length (now 512)' in text
  margin[4:12] = 1
  assert not pair_symptoms.ties(make_case(margin))
  # Before the first update every comparison ties.
  assert not pair_symptoms.ties(make_case(np.zeros(100)))
