"""Symptoms on synthetic histories: each is seen, and a healthy run has none."""

import math

import numpy as np
import pytest

from dpo_jax.run import pair_symptoms, symptoms
from dpo_jax.run.symptom_case import Case

FIRST = {
  'loss': 0.6931,
  'rewards/accuracies': 0.0,
  'rewards/margins': 0.0,
  'logps/chosen': -80.0,
  'logps/rejected': -82.0,
  'lengths/chosen': 40.0,
  'lengths/rejected': 40.0,
  'kl': 0.0,
  'displacement': 0.0,
}
LAST = FIRST | {
  'loss': 0.31,
  'rewards/accuracies': 0.86,
  'rewards/margins': 1.9,
  'logps/chosen': -77.0,
  'logps/rejected': -98.0,
  'kl': 6.5,
  'displacement': 0.2,
}
KNOBS = {
  'loss.terms': {'sigmoid': 1.0},
  'loss.beta': 0.1,
  'optim.learning_rate': 0.001,
  'optim.clip_norm': 0.0,
  'optim.warmup_steps': 5,
  'train.num_steps': 100,
  'train.keep_best': '',
}


def make_case(*, last=None, evals=None, train=None, knobs=None, first=None):
  """A healthy run of 100 steps, evaluated every 20, with changes."""
  last = LAST | (last or {})
  losses = evals or [0.6931, 0.5, 0.42, 0.37, 0.33, last['loss']]
  rng = np.random.default_rng(0)
  steps = {
    step: {
      'loss': 0.68 * math.exp(-step / 90),
      'rewards/accuracies': min(0.88, 0.5 + step / 200),
      'rewards/margins': step / 50,
      'grad_norm': float(rng.uniform(1, 3)),
    }
    for step in range(1, 101)
  }
  for step, metrics in (train or {}).items():
    steps[step] |= metrics
  history = {
    'train': steps,
    'eval': {20 * i: {'loss': loss} for i, loss in enumerate(losses)},
  }
  return Case(
    FIRST if first is None else first, last, history, KNOBS | (knobs or {}), {}
  )


def seen(case):
  """Names of the symptoms of a case."""
  return [name for name, of in symptoms.SYMPTOMS if of(case)]


def test_a_healthy_run_has_none_and_its_numbers_are_told():
  assert seen(make_case()) == []
  assert symptoms.healthy(make_case()) == (
    'nothing stands out: held-out loss 0.693 -> 0.31, lowest at the last step, '
    'accuracy 86%, chosen answers gained 3 nats.'
  )


def test_a_run_that_measured_nothing_has_no_symptom():
  nothing = Case({}, {}, {}, {}, {})
  assert seen(nothing) == []
  assert symptoms.healthy(nothing) == (
    'nothing stands out: nothing was measured.'
  )
  # Evaluated before training only: all comparisons tie, which is no accuracy.
  assert seen(Case({}, FIRST, {'eval': {0: FIRST}}, KNOBS, {})) == []


def test_overfit_names_the_best_step_and_the_knob():
  case = make_case(
    last={'loss': 0.45}, evals=[0.6931, 0.5, 0.33, 0.36, 0.4, 0.45]
  )
  assert seen(case) == ['overfit']
  text = symptoms.overfit(case)
  assert 'rose from 0.33 at step 40 to 0.45 at step 100' in text
  # means of 31 to 40 and of 91 to 100: .68 exp(-35.5 / 90), .68 exp(-95.5 / 90)
  assert 'training loss fell from 0.459 to 0.235' in text
  assert "Step 40 is what train.keep_best='-loss' keeps" in text
  assert 'train.num_steps (now 100)' in text
  kept = make_case(
    evals=[0.6931, 0.33, 0.45], knobs={'train.keep_best': '-loss'}
  )
  assert 'Step 20 is what --step=best reads' in symptoms.overfit(kept)


def test_a_rise_within_a_tenth_of_the_gain_is_no_overfit():
  gain = 0.6931 - 0.33
  for lost, is_seen in ((0.09, False), (0.11, True)):
    case = make_case(evals=[0.6931, 0.4, 0.33, 0.33 + lost * gain])
    assert bool(symptoms.overfit(case)) == is_seen


def test_a_rise_without_a_fall_in_training_is_another_thing():
  rising = {step: {'loss': 0.7 + step / 100} for step in range(41, 101)}
  case = make_case(evals=[0.6931, 0.5, 0.33, 0.4, 0.5, 0.6], train=rising)
  assert 'training loss did not fall' in symptoms.overfit(case)


def test_worse_than_the_start():
  evals = [0.6931, 0.5, 0.41, 0.9, 1.3, 1.7]
  case = make_case(last={'loss': 1.7}, evals=evals)
  assert seen(case) == ['held-out loss above its start']
  text = symptoms.worse(case)
  assert '0.693 -> 1.7, accuracy 86%. Training loss fell to 0.235' in text
  assert (
    'overfit, usual after many passes. Lower optim.learning_rate (now 0.001)'
    in text
  )
  assert text.endswith(
    "the lowest loss was 0.41 at step 40, which train.keep_best='-loss' keeps."
  )
  high = {step: {'loss': 2.0} for step in range(80, 101)}
  case = make_case(last={'loss': 1.7}, evals=evals, train=high)
  assert 'Not usual: the updates were too large' in symptoms.worse(case)


def test_a_policy_that_hardly_moved_is_told_once():
  case = make_case(
    last={'loss': 0.6925, 'rewards/accuracies': 0.51}, evals=[0.6931, 0.6925]
  )
  assert seen(case) == ['hardly moved']
  text = symptoms.hardly_moved(case)
  assert '0.6931 -> 0.6925 in 100 updates' in text
  assert 'raise optim.learning_rate (now 0.001)' in text


@pytest.mark.parametrize(
  'accuracy, in_training, words',
  [
    (0.52, 0.53, 'the labels tell the policy nothing'),
    (0.52, 0.95, 'knows its pairs by heart'),
    (0.31, 0.9, 'below chance'),
  ],
)
def test_accuracy_of_chance_has_three_reasons(accuracy, in_training, words):
  train = {s: {'rewards/accuracies': in_training} for s in range(1, 101)}
  case = make_case(
    last={'rewards/accuracies': accuracy, 'loss': 0.6},
    evals=[0.6931, 0.65, 0.6],
    train=train,
  )
  assert seen(case) == ['accuracy of chance']
  assert words in symptoms.chance(case)
  assert f'{accuracy:.0%}' in symptoms.chance(case)


def test_the_band_of_chance_is_that_of_the_number_of_pairs():
  case = make_case(last={'rewards/accuracies': 0.54})
  assert symptoms.chance(case)
  # Two standard errors of 10,000 pairs are 1 %.
  many = case._replace(arrays={'weight': np.ones(10_000)})
  assert not symptoms.chance(many)
  # Those of 16 pairs are 25 %: 12 of them won is no accuracy of chance.
  few = case._replace(arrays={'weight': np.ones(16)})
  assert symptoms.chance(few)
  won = few._replace(last=few.last | {'rewards/accuracies': 0.75})
  assert not symptoms.chance(won)


def test_both_rewards_fall_is_usual_and_names_a_likelihood_term():
  fallen = {'logps/chosen': -84.0, 'logps/rejected': -99.0}
  case = make_case(last=fallen | {'displacement': 0.83, 'kl': 10.5})
  assert seen(case) == ['both rewards fall']
  text = symptoms.both_fell(case)
  assert 'chosen answers lost 4 nats, rejected ones 17' in text
  assert '83% of the chosen ones' in text and 'Usual: ' in text
  assert 'the gap, which grew by 13 (arXiv:2410.08847)' in text
  assert 'loss.terms.nll=0.2' in text and 'loss.terms.dpop' in text


def test_the_knob_of_displacement_follows_from_the_loss():
  fallen = {'logps/chosen': -84.0, 'logps/rejected': -99.0, 'displacement': 1.0}
  dpop = {'loss.terms': {'dpop': 1.0}, 'loss.penalty': 5.0}
  case = make_case(last=fallen, knobs=dpop)
  assert 'raise loss.penalty (now 5)' in symptoms.both_fell(case)
  mixed = {'loss.terms': {'sigmoid': 1.0, 'nll': 0.1}}
  case = make_case(last=fallen, knobs=mixed)
  assert 'weight of the likelihood term' in symptoms.both_fell(case)


def test_chosen_answers_that_lose_more_are_not_usual():
  fallen = {'logps/chosen': -97.0, 'logps/rejected': -90.0, 'displacement': 1.0}
  assert 'Not usual' in symptoms.both_fell(make_case(last=fallen))


def test_a_reward_that_falls_alone_is_no_displacement():
  assert not symptoms.both_fell(make_case(last={'displacement': 0.9}))
  fallen = {'logps/chosen': -80.1, 'displacement': 0.3}
  assert not symptoms.both_fell(make_case(last=fallen))


def test_far_from_the_reference_is_per_token():
  # 40 tokens: the limit of .5 is 20 nats per answer.
  assert not symptoms.drifted(make_case(last={'kl': 19.9}))
  case = make_case(last={'kl': 40.0})
  assert seen(case) == ['far from the reference']
  text = symptoms.drifted(case)
  assert 'kl 40, 1 nats per token' in text and '2.72 times less' in text
  assert 'Raise loss.beta (now 0.1)' in text and '2406.02900' in text
  # Answers that became more likely have a negative one.
  assert not symptoms.drifted(make_case(last={'kl': -40.0}))


def test_displacement_far_from_the_reference_is_usual_in_kind_only():
  fallen = {'logps/chosen': -115.0, 'logps/rejected': -150.0, 'kl': 51.0}
  case = make_case(last=fallen | {'displacement': 1.0})
  assert seen(case) == ['far from the reference', 'both rewards fall']
  assert 'Usual in kind, not in size' in symptoms.both_fell(case)


def test_saturated_margins():
  end = {'loss': 1e-4, 'rewards/accuracies': 1.0, 'rewards/margins': 12.0}
  case = make_case(train={step: end for step in range(80, 101)})
  assert seen(case) == ['margins are saturated']
  text = symptoms.saturated(case)
  assert 'training loss 0.0001, 100% won with a mean margin of 12' in text
  assert 'loss.terms.ipo' in text
  # Won by little: there is something left to learn.
  end |= {'loss': 0.05, 'rewards/margins': 3.0}
  case = make_case(train={step: end for step in range(80, 101)})
  assert not symptoms.saturated(case)


def test_a_jump_of_the_gradient_unless_it_was_clipped():
  train = {31: {'grad_norm': 84.0}}
  case = make_case(train=train)
  assert seen(case) == ['gradients jump']
  text = symptoms.spikes(case)
  assert 'grad_norm 84 at step 31' in text and '(1 of 100 steps' in text
  assert 'optim.clip_norm=' in text
  assert not symptoms.spikes(
    make_case(train=train, knobs={'optim.clip_norm': 1.0})
  )
  assert not symptoms.spikes(make_case(train={31: {'grad_norm': 15.0}}))


def test_a_number_that_was_not_finite():
  case = make_case(train={57: {'loss': math.nan}})
  assert seen(case)[0] == 'a number that was not finite'
  text = symptoms.not_finite(case)
  assert text.startswith('loss was not finite at step 57')
  assert 'optim.clip_norm (now 0) to 1' in text


def test_knobs_need_no_config():
  case = make_case(last={'kl': 40.0})._replace(knobs={})
  text = symptoms.drifted(case)
  assert 'Raise loss.beta, or lower optim.learning_rate' in text


def test_sft_has_symptoms_of_its_loss_only():
  sft = {'loss': 2.0, 'logps/chosen': -40.0}
  case = make_case(first=sft)._replace(last={'loss': 1.2, 'logps/chosen': -24})
  assert seen(case) == []
  assert 'chosen answers gained 16 nats' in symptoms.healthy(case)


def test_every_text_is_short_and_names_a_number_and_a_knob():
  fallen = {'logps/chosen': -115.0, 'logps/rejected': -150.0, 'kl': 51.0}
  end = {'loss': 1e-4, 'rewards/accuracies': 1.0, 'rewards/margins': 12.0}
  cases = [
    make_case(last=fallen | {'displacement': 1.0, 'rewards/accuracies': 0.5}),
    make_case(train={s: end for s in range(80, 101)}),
    make_case(train={31: {'grad_norm': 84.0, 'loss': math.inf}}),
    make_case(last={'loss': 1.7}),
    make_case(last={'loss': 0.692}),
    make_case(evals=[0.6931, 0.33, 0.45]),
  ]
  texts = {
    name: text
    for case in cases
    for name, of in symptoms.SYMPTOMS
    if (text := of(case))
  }
  of_pairs = {'length grows', 'labels may be wrong', 'ties'}
  assert set(texts) == {name for name, _ in symptoms.SYMPTOMS} - of_pairs
  for text in texts.values():
    assert len(text) <= 340 and text.endswith('.') and '\n' not in text
    assert any(letter.isdigit() for letter in text)
    assert any(k in text for k in ('loss.', 'optim.', 'train.', 'data.'))


def test_symptoms_of_pairs_are_among_them():
  assert {pair_symptoms.longer, pair_symptoms.noise, pair_symptoms.ties} <= {
    of for _, of in symptoms.SYMPTOMS
  }
