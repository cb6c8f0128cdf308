"""Token-level losses: epsilon-DPO against its authors' formula in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
import random_pairs

from dpo_jax import losses


def steps_of(drawn):
  """trainer.py of oddqueue/e-dpo: `steps`, from the three gaps, [B, P]."""
  away, toward = (
    drawn[f'chosen_{tilt}'] - drawn[f'rejected_{tilt}']
    for tilt in ('away', 'toward')
  )
  # Their gaps of the tilted policies are the gap plus these.
  return 1 * ((away > 0) & (0 > toward)) - 1 * ((toward > 0) & (0 > away))


def gap_of(drawn):
  """h [B, P]."""
  chosen = drawn['policy_chosen'] - drawn['reference_chosen']
  return chosen - (drawn['policy_rejected'] - drawn['reference_rejected'])


@pytest.mark.parametrize('beta,epsilon', [(0.01, 0.01), (0.1, 0.3)])
def test_epsilon_dpo_is_its_authors(beta, epsilon):
  now = 0.8

  def formula(drawn, at):
    own = beta * now / (1 + epsilon * steps_of(at))
    return np.logaddexp(0, -own * gap_of(drawn))

  # The first beta of this batch was left by the batch before it.
  state = {'epsilon_dpo': {'scale': 0.5, 'next_scale': now}}
  random_pairs.check(
    'epsilon_dpo', formula, state=state, beta=beta, epsilon=epsilon
  )


def test_epsilon_dpo_moves_its_beta_by_the_mean_step():
  drawn = random_pairs.draw()
  objective = losses.make_objective(('epsilon_dpo',))
  state = objective.init_state()
  assert state['epsilon_dpo'] == {'scale': 1.0, 'next_scale': 1.0}
  hyper = losses.default_hyper({'epsilon_dpo': 1.0}, epsilon=0.2)
  factor, taken = 1.0, set()
  for i in range(12):
    one = {k: jnp.asarray(v[i], jnp.float32) for k, v in drawn.items()}
    scores, reference, batch = random_pairs.completions(one)
    _, state = objective.prepare(scores, reference, batch, hyper, state)
    moved = state['epsilon_dpo']
    # `self.beta / (1 + mean_steps * self.epsilon)`, after the batch's loss.
    np.testing.assert_allclose(moved['scale'], factor, rtol=1e-6)
    kept = drawn['weight'][i] > 0
    mean = np.mean(steps_of(drawn)[i][kept])
    factor = factor / (1 + 0.2 * mean)
    np.testing.assert_allclose(moved['next_scale'], factor, rtol=1e-6)
    taken.add(float(np.sign(mean)))
  assert taken == {-1.0, 0.0, 1.0}


def test_epsilon_dpo_without_epsilon_is_dpo():
  drawn = random_pairs.draw()
  first = random_pairs.of_objective(
    'epsilon_dpo', drawn, values={'beta': 0.1, 'epsilon': 0.0}
  )
  second = random_pairs.of_objective('sigmoid', drawn)
  random_pairs.assert_same(first, second)


def test_epsilon_dpo_stays_where_policy_and_reference_agree():
  drawn = random_pairs.draw()
  for side in ('chosen', 'rejected'):
    drawn[f'reference_{side}'] = drawn[f'policy_{side}']
    drawn[f'{side}_away'] = drawn[f'{side}_toward'] = 0 * drawn['weight']
  value, _ = random_pairs.of_objective('epsilon_dpo', drawn)
  np.testing.assert_allclose(value, np.log(2), rtol=1e-12)
