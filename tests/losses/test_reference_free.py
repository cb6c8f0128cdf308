"""reference_free: losses of likelihoods against their formulas in float64."""

import numpy as np
import random_batches

DATA = random_batches.arrays(3)


def test_simper():
  # arXiv:2502.00883: -exp(mean log pi_w) + exp(mean log pi_l).
  def loss_of(data):
    _, _, w, x = random_batches.pairs(data)
    return random_batches.mean_of_pairs(data, -np.exp(w) + np.exp(x))

  random_batches.check('simper', DATA, loss_of)
