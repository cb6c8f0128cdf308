"""absolute: losses of both rewards against their formulas in float64."""

import numpy as np
import pytest
import random_batches

DATA = random_batches.arrays(2)


@pytest.mark.parametrize('beta,weight', [(0.1, 0.95), (0.5, 0.55), (0.3, 0.0)])
def test_dpo_shift(beta, weight):
  # arXiv:2502.07599: -log s(beta (a_w - f(lambda) a_l)).
  def loss_of(data):
    a_w, a_l, _, _ = random_batches.pairs(data)
    each = random_batches.nls(beta * (a_w - weight * a_l))
    return random_batches.mean_of_pairs(data, each)

  random_batches.check(
    'dpo_shift', DATA, loss_of, beta=beta, rejected_weight=weight
  )


def test_dpo_shift_of_weight_1_is_the_sigmoid_loss():
  got = random_batches.evaluate('dpo_shift', DATA, rejected_weight=1.0)
  expected = random_batches.evaluate('sigmoid', DATA)
  for one, two in zip(got, expected):
    np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-16)
