"""absolute: losses of both rewards against their formulas in float64."""

import numpy as np
import pytest
import random_batches

FIELDS = random_batches.make(seed=2)


@pytest.mark.parametrize('beta,weight', [(0.1, 0.95), (0.5, 0.55), (0.3, 0.0)])
def test_dpo_shift(beta, weight):
  # arXiv:2502.07599: -log s(beta (a_w - f(lambda) a_l)).
  def formula(f):
    a_w = f['policy_chosen'] - f['reference_chosen']
    a_l = f['policy_rejected'] - f['reference_rejected']
    each = random_batches.softplus(-beta * (a_w - weight * a_l))
    return random_batches.mean(each, f['weight'])

  random_batches.check(
    FIELDS, formula, {'dpo_shift': 1.0}, beta=beta, rejected_weight=weight
  )


def test_dpo_shift_of_weight_1_is_the_sigmoid_loss():
  got = random_batches.ours(FIELDS, {'dpo_shift': 1.0}, rejected_weight=1.0)
  expected = random_batches.ours(FIELDS, {'sigmoid': 1.0})
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
  for side, slope in got[1].items():
    np.testing.assert_allclose(slope, expected[1][side], 1e-12, 1e-16)
