"""metrics: by hand on two comparisons and a padded one."""

import jax.numpy as jnp
import numpy as np

from dpo_jax import metrics
from dpo_jax.losses.pairs import PairScores

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


def test_preference_metrics_by_hand():
  # Log-ratios: chosen (1, -2), rejected (-1, 1); weights 1 and 3.
  got = metrics.means(metrics.preference_sums(PAIRS, jnp.float32(0.5)))
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
  got = metrics.means(metrics.preference_sums(same, jnp.float32(0.1)))
  assert float(got['rewards/accuracies']) == 0  # TRL counts strict wins too
