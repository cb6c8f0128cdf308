"""batch_options: beta-DPO's state, draws and betas; Dr. DPO."""

import harness
import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses
from dpo_jax.losses import batch_options


def pairs_of(gaps):
  scores = harness.scores_of(np.asarray(gaps), 0.0)
  objective = losses.make_objective(('sigmoid',))
  return objective.pairs(*scores, harness.batch_of(), {})


STATE = losses.make_objective(('sigmoid',), options=('beta_dpo',)).init_state()


def test_beta_dpo_moves_its_mean_and_deviation():
  first = batch_options.update_beta_dpo(
    STATE['beta_dpo'], pairs_of([1.0, 2.0, 3.0, 6.0]), beta_dpo_momentum=0.9
  )
  # Mean 3; deviation, unbiased: sqrt((4 + 1 + 0 + 9) / 3).
  np.testing.assert_allclose(first['mean'], 0.1 * 3, rtol=1e-5)
  np.testing.assert_allclose(first['std'], 0.1 * np.sqrt(14 / 3), rtol=1e-5)
  second = batch_options.update_beta_dpo(
    first, pairs_of([5.0] * 4), beta_dpo_momentum=0.75
  )
  np.testing.assert_allclose(second['mean'], 0.75 * 0.3 + 0.25 * 5, rtol=1e-5)
  assert second['num_draws'] == 2


def test_beta_dpo_keeps_a_share_and_drops_outliers():
  state = {'mean': jnp.float32(1.0), 'std': jnp.float32(0.1)}
  pairs = pairs_of([1.0, 9.0, 1.1, 0.9])
  kept = []
  for draw in range(20):
    mask = batch_options.select_beta_dpo(
      state | {'num_draws': jnp.float32(draw)}, pairs, beta_dpo_rho=0.5
    )
    kept.append(np.asarray(mask))
  kept = np.stack(kept)
  assert (kept.sum(1) == 2).all()
  assert not kept[:, 1].any()  # 80 deviations away
  assert kept[:, [0, 2, 3]].any(0).all()  # the others take turns
  without_padding = batch_options.select_beta_dpo(
    state | {'num_draws': jnp.float32(0)},
    pairs._replace(weight=jnp.array([1.0, 1.0, 0.0, 2.0])),
    beta_dpo_rho=0.0,
  )
  assert without_padding.tolist() == [True, True, False, True]


def test_beta_dpo_has_a_least_beta_and_no_gradient():
  def of(gap):
    pairs = pairs_of([0.0] * 4)
    pairs = pairs._replace(policy_chosen=pairs.policy_chosen + gap)
    return batch_options.beta_dpo(0.1, pairs, STATE['beta_dpo'])[0]

  np.testing.assert_allclose(of(-100.0), 1e-3, rtol=1e-6)
  assert jax.grad(of)(5.0) == 0
