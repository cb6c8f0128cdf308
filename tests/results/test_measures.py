"""Measures: the one list of metrics, what each reads, what is refused."""

import numpy as np
import pytest

from dpo_jax.results import measures
from dpo_jax.types import InputError

# Two comparisons by hand: rewards, log-probabilities in nats, losses.
ARRAYS = {
  'loss': np.array([0.5, 0.75]),
  'reward_chosen': np.array([2.0, -1.0]),
  'reward_rejected': np.array([0.5, 3.0]),
  'policy_chosen': np.array([-10.0, -20.0]),
  'policy_rejected': np.array([-12.0, -16.0]),
  'reference_chosen': np.array([-11.0, -24.0]),
  'reference_rejected': np.array([-15.0, -16.0]),
  'chosen_tokens': np.array([3.0, 4.0]),
  'rejected_tokens': np.array([5.0, 6.0]),
  'entropy': np.array([1.25, 1.5]),
  'own': np.array([7.0, 8.0]),
}


@pytest.mark.parametrize(
  'name, want',
  [
    ('loss', [0.5, 0.75]),
    ('rewards/accuracies', [True, False]),
    ('rewards/margins', [1.5, -4.0]),
    # log-ratios 1, 4 of the chosen and 3, 0 of the rejected answers
    ('kl', [-2.0, -2.0]),
    ('displacement', [False, False]),
    ('rewards/chosen', [2.0, -1.0]),
    ('rewards/rejected', [0.5, 3.0]),
    ('logps/chosen', [-10.0, -20.0]),
    ('logps/rejected', [-12.0, -16.0]),
    ('lengths/chosen', [3.0, 4.0]),
    ('lengths/rejected', [5.0, 6.0]),
    ('entropy', [1.25, 1.5]),
    ('KL', [-2.0, -2.0]),  # by its label
    ('own', [7.0, 8.0]),
  ],
)
def test_values_by_hand(name, want):
  (measure,) = measures.choose([name], reported={'own'})
  np.testing.assert_array_equal(measures.per_example(measure, ARRAYS), want)


@pytest.mark.parametrize('name', measures.MEASURES)
def test_a_missing_field_gives_nothing_else(name):
  measure = measures.MEASURES[name]
  for field in measure.fields:
    left = {key: value for key, value in ARRAYS.items() if key != field}
    assert measures.per_example(measure, left) is None


def test_the_default_is_what_every_table_shows():
  chosen = measures.choose(None, reported=())
  assert [measure.label for measure in chosen] == [
    *('loss', 'accuracy', 'margin', 'KL', 'chosen length', 'rejected length'),
    *('entropy', 'displacement'),
  ]
  # And what evaluations have besides.
  chosen = measures.choose(None, reported={'b', 'a'}, own={'b', 'a', 'kl'})
  assert [measure.name for measure in chosen[-2:]] == ['a', 'b']
  assert [each.label for each in chosen if each.plotted] == [
    'loss',
    'accuracy',
    'margin',
  ]


def test_names_are_in_their_order_once_and_drawn():
  names = ['own', 'kl', 'loss', 'kl']
  chosen = measures.choose(names, reported={'own'})
  assert [measure.name for measure in chosen] == ['own', 'kl', 'loss']
  assert all(measure.plotted for measure in chosen)
  assert chosen[0] == measures.Measure('own', 'own', ('own',), plotted=True)


def test_an_unknown_name_is_refused_and_never_read_as_the_loss():
  with pytest.raises(InputError) as caught:
    measures.choose(['loss', 'rewards/margin'], reported={'own'})
  assert str(caught.value) == (
    "--metrics: no run reports 'rewards/margin'; fix: did you mean "
    "'rewards/margins'? use any of displacement, entropy, kl, lengths/chosen, "
    'lengths/rejected, logps/chosen, logps/rejected, loss, own, '
    'rewards/accuracies, rewards/chosen, rewards/margins, rewards/rejected'
  )


def test_two_names_of_one_label_are_refused():
  with pytest.raises(InputError, match="the same label 'margin'"):
    measures.choose(['rewards/margins', 'margin'], reported={'margin'})
