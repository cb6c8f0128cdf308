"""Token-level losses: epsilon-DPO against its authors' formula in numpy."""

import numpy as np
import pytest
import random_batches

from dpo_jax import losses

FIELDS = random_batches.make()


def steps_of(fields):
  """trainer.py of oddqueue/e-dpo: `steps`, from the three gaps, [N, P]."""
  own = fields['policy_chosen'] - fields['policy_rejected']
  away, toward = (
    own + fields[f'chosen_{tilt}'] - fields[f'rejected_{tilt}']
    for tilt in ('away', 'toward')
  )
  # Equal gaps are equal, whatever the rounding of their sums.
  away, toward = (np.where(np.isclose(x, own), own, x) for x in (away, toward))
  return 1 * ((away > own) & (own > toward)) - 1 * (
    (toward > own) & (own > away)
  )


@pytest.mark.parametrize('beta,epsilon', [(0.01, 0.01), (0.1, 0.3)])
def test_epsilon_dpo_is_its_authors(beta, epsilon):
  now = 0.8

  def formula(fields):
    own = beta * now / (1 + epsilon * steps_of(FIELDS))
    each = random_batches.softplus(-own * random_batches.gap(fields))
    return random_batches.mean(each, fields['weight'])

  # The beta of this batch was left by the batch before it.
  state = {'epsilon_dpo': {'scale': 0.5, 'next_scale': now}}
  terms = {'epsilon_dpo': 1.0}
  random_batches.check(
    FIELDS, formula, terms, state=state, beta=beta, epsilon=epsilon
  )
  # `self.beta / (1 + mean_steps * self.epsilon)`, after the batch's loss.
  _, _, new = random_batches.ours(FIELDS, terms, state=state, epsilon=epsilon)
  kept = FIELDS['weight'] > 0
  mean = np.sum(steps_of(FIELDS) * kept, 1) / np.maximum(kept.sum(1), 1)
  assert {*np.sign(mean)} == {-1.0, 0.0, 1.0}
  moved = new['epsilon_dpo']
  np.testing.assert_allclose(moved['scale'], now, rtol=1e-12)
  np.testing.assert_allclose(
    moved['next_scale'], now / (1 + epsilon * mean), rtol=1e-12
  )


def test_epsilon_dpo_begins_with_the_beta_that_was_set():
  state = losses.make_objective(('epsilon_dpo',)).init_state()
  assert state['epsilon_dpo'] == {'scale': 1.0, 'next_scale': 1.0}


def test_epsilon_dpo_without_epsilon_is_dpo():
  first = random_batches.ours(
    FIELDS, {'epsilon_dpo': 1.0}, beta=0.1, epsilon=0.0
  )
  second = random_batches.ours(FIELDS, {'sigmoid': 1.0}, beta=0.1)
  np.testing.assert_allclose(first[0], second[0], rtol=1e-12)
  for name in random_batches.LOG_PROBS:
    np.testing.assert_allclose(first[1][name], second[1][name], rtol=1e-12)
