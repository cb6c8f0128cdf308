"""metrics: by hand on two comparisons and a padded one."""

import jax.numpy as jnp
import numpy as np

from dpo_jax import metrics
from dpo_jax.losses.views import LabelledScores, PairScores

PAIRS = PairScores(
  policy_chosen=jnp.array([-4.0, -6.0, -1.0]),
  policy_rejected=jnp.array([-8.0, -5.0, -1.0]),
  reference_chosen=jnp.array([-5.0, -4.0, 9.0]),
  reference_rejected=jnp.array([-7.0, -6.0, jnp.inf]),
  chosen_tokens=jnp.array([2.0, 4.0, 1.0]),
  rejected_tokens=jnp.array([3.0, 5.0, 1.0]),
  weight=jnp.array([1.0, 3.0, 0.0]),
  margin=jnp.zeros(3),
  score_chosen=jnp.zeros(3),
  score_rejected=jnp.zeros(3),
)


def rewards(pairs, beta):
  return beta * pairs.chosen_log_ratio, beta * pairs.rejected_log_ratio


def test_preference_metrics_by_hand():
  # Log-ratios: chosen (1, -2), rejected (-1, 1); weights 1 and 3.
  got = metrics.means(metrics.preference_sums(PAIRS, *rewards(PAIRS, 0.5)))
  expected = {
    'rewards/chosen': 0.5 * (1 - 6) / 4,
    'rewards/rejected': 0.5 * (-1 + 3) / 4,
    'rewards/accuracies': 1 / 4,
    'rewards/margins': 0.5 * (2 - 9) / 4,
    'kl': -0.5 * (0 + 3 * -1) / 4,
    'displacement': 3 / 4,
    'logps/chosen': (-4 - 18) / 4,
    'logps/rejected': (-8 - 15) / 4,
    'lengths/chosen': (2 + 12) / 4,
    'lengths/rejected': (3 + 15) / 4,
  }
  assert set(got) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


def test_equal_scores_are_no_victory():
  same = PAIRS._replace(
    policy_chosen=PAIRS.reference_chosen,
    policy_rejected=jnp.array([-7.0, -6.0, 0.0]),
  )
  got = metrics.means(metrics.preference_sums(same, *rewards(same, 0.1)))
  assert float(got['rewards/accuracies']) == 0  # TRL counts strict wins too


def test_without_a_reference_there_is_no_drift():
  got = metrics.preference_sums(PAIRS, *rewards(PAIRS, 1), has_reference=False)
  assert not {'kl', 'displacement'} & set(got)


def test_label_metrics_by_hand():
  # Rewards: desirable 3 (weight 1) and 1 (weight 2), undesirable 2 and 0.
  completions = LabelledScores(
    policy=jnp.array([-1.0, -2.0, -3.0, -4.0, jnp.inf]),
    reference=jnp.array([-2.0, -1.0, -4.0, -3.0, 0.0]),
    num_tokens=jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]),
    desirable=jnp.array([1.0, 1.0, 0.0, 0.0, 1.0]),
    weight=jnp.array([1.0, 2.0, 1.0, 1.0, 0.0]),
    mismatched_log_ratio=jnp.zeros(()),
  )
  rewards = jnp.array([3.0, 1.0, 2.0, 0.0, 9.0])
  got = metrics.means(metrics.label_sums(completions, rewards))
  expected = {
    'rewards/chosen': (3 + 2 * 1) / 3,
    'rewards/rejected': (2 + 0) / 2,
    'rewards/margins': 5 / 3 - 1,
    # 3 is above both; 1, of weight 2, above one of two.
    'rewards/accuracies': (2 + 2) / 6,
    'kl': -(1 - 2 + 1 - 1) / 5,
    'displacement': 2 / 3,
    'logps/chosen': (-1 - 4) / 3,
    'logps/rejected': (-3 - 4) / 2,
    'lengths/chosen': (1 + 4) / 3,
    'lengths/rejected': (3 + 4) / 2,
  }
  assert set(got) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


def test_comparisons_come_before_labels():
  paired = metrics.preference_sums(PAIRS, *rewards(PAIRS, 0.5))
  seen = LabelledScores(*(jnp.ones(2) for _ in LabelledScores._fields))
  labelled = metrics.label_sums(seen, jnp.ones(2))
  got = metrics.means(metrics.judgement_sums(paired, labelled))
  expected = metrics.means(paired)
  for name, value in got.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
  none = metrics.preference_sums(
    PAIRS._replace(weight=jnp.zeros(3)), *rewards(PAIRS, 0.5)
  )
  got = metrics.means(metrics.judgement_sums(none, labelled))
  assert got == metrics.means(labelled)
