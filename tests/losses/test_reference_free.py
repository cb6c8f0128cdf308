"""reference_free: losses of likelihoods against their formulas in float64."""

import numpy as np
import pytest
import random_batches

FIELDS = random_batches.make(seed=3)


def means(fields):
  """Mean log-probabilities of winner and loser, [N, P] each."""
  return (
    fields['policy_chosen'] / fields['chosen_tokens'],
    fields['policy_rejected'] / fields['rejected_tokens'],
  )


def test_simper():
  # arXiv:2502.00883: -exp(mean log pi_w) + exp(mean log pi_l).
  def formula(f):
    w, x = means(f)
    return random_batches.mean(-np.exp(w) + np.exp(x), f['weight'])

  random_batches.check(FIELDS, formula, {'simper': 1.0})
