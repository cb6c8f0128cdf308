"""Adaptive losses against their authors' formulas, written anew in numpy.

What the authors detach is computed from FIELDS, not from the argument of the
formula: numerical derivatives then pass it by as well.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import random_batches
from random_batches import softplus

from dpo_jax import losses
from dpo_jax.losses import adaptive

FIELDS = random_batches.make()
# The last batches hold one comparison several times, or one alone.
for _name, _values in FIELDS.items():
  _values[-20:] = _values[-20:, :1]
  if _name == 'weight':
    _values[-20:] += 0.5
    _values[-10:, 1:] = 0.0
WEIGHT = FIELDS['weight']


def mean_gap(fields, model='policy'):
  """Gap of the mean log-probabilities, [N, P]."""
  return (
    fields[f'{model}_chosen'] / fields['chosen_tokens']
    - fields[f'{model}_rejected'] / fields['rejected_tokens']
  )


def moments(values):
  """(mean, unbiased deviation) of each batch, [N, 1]; 0 over nothing."""
  result = []
  for row, kept in zip(values, WEIGHT > 0):
    real = row[kept] if kept.any() else np.zeros(1)
    deviation = np.std(real, ddof=1) if real.size > 1 else 0.0
    result.append((np.mean(real), deviation))
  return np.array(result).T[..., None]


# scripts/dpo_trainer.py of junkangwu/alpha-DPO: `alpha-dpo`, with its moving
# mean and deviation updated by the batch before they are used.
@pytest.mark.parametrize(
  'values', [{}, {'beta': 10.0, 'gamma': 4.0, 'alpha': 0.05}]
)
def test_alpha_dpo_is_its_authors(values):
  mean, std = 0.3, 1.7
  defaults = {'beta': 2.5, 'gamma': 1.5, 'alpha': 0.2}
  beta, gamma, alpha = (defaults | values).values()
  x = mean_gap(FIELDS) - mean_gap(FIELDS, 'reference')
  batch_mean, batch_std = moments(x)
  scaled = x - (0.9 * mean + 0.1 * batch_mean)
  scaled = scaled / (0.9 * std + 0.1 * batch_std)

  def formula(fields):
    logits = mean_gap(fields) - (alpha * scaled + gamma / beta)
    return random_batches.mean(softplus(-beta * logits), WEIGHT)

  state = {'alpha_dpo': {'mean': mean, 'std': std}}
  random_batches.check(
    FIELDS, formula, {'alpha_dpo': 1.0}, state=state, **values
  )


def test_alpha_dpo_without_alpha_is_simpo():
  values = {'beta': 2.5, 'gamma': 1.2}
  first = random_batches.ours(FIELDS, {'alpha_dpo': 1.0}, alpha=0.0, **values)
  second = random_batches.ours(FIELDS, {'simpo': 1.0}, **values)
  assert_same(first, second)


def test_alpha_dpo_starts_as_simpo():
  # Policy and reference differ by rounding: no margin comes of that.
  noise = np.random.default_rng(1).normal(0, 1e-7, WEIGHT.shape)
  fields = FIELDS | {
    f'reference_{side}': FIELDS[f'policy_{side}'] + noise
    for side in ('chosen', 'rejected')
  }
  values = {'beta': 2.5, 'gamma': 1.5}
  first = random_batches.ours(fields, {'alpha_dpo': 1.0})
  second = random_batches.ours(fields, {'simpo': 1.0}, **values)
  assert_same(first, second)


def test_alpha_dpo_moves_its_mean_and_deviation():
  # x = 1, 2, 3, 6: mean 3; deviation, unbiased: sqrt((4 + 1 + 0 + 9) / 3). The
  # comparison of weight 0 does not count.
  ones, zeros = np.ones(5), np.zeros(5)
  pairs = losses.PairScores(
    policy_chosen=np.array([2.0, 4.0, 6.0, 12.0, np.inf]),
    policy_rejected=zeros,
    reference_chosen=zeros,
    reference_rejected=zeros,
    chosen_tokens=2 * ones,
    rejected_tokens=ones,
    weight=np.array([1.0, 0.5, 2.0, 1.0, 0.0]),
    margin=zeros,
    score_chosen=zeros,
    score_rejected=zeros,
  )
  state = {'mean': jnp.float32(0), 'std': jnp.float32(0)}
  first = adaptive.update_alpha_dpo(state, pairs)
  np.testing.assert_allclose(first['mean'], 0.1 * 3, rtol=1e-6)
  np.testing.assert_allclose(first['std'], 0.1 * np.sqrt(14 / 3), rtol=1e-6)
  second = adaptive.update_alpha_dpo(first, pairs)
  np.testing.assert_allclose(second['mean'], 0.9 * 0.3 + 0.1 * 3, rtol=1e-6)


# scripts/amapo_trainer.py of Shiroha-Offical/AMaPO: `amapo_loss`. A batch
# whose gaps are all equal has no pair behind the mean (theirs divides 0 by 0).
@pytest.mark.parametrize('beta', [2.0, 3.0])
def test_amapo_is_its_authors(beta):
  x = mean_gap(FIELDS)
  mean, std = moments(x)
  has_spread = std > 1e-6
  exponent = (mean - x) / np.where(has_spread, std, 1) * mean
  is_behind = (x < mean) & has_spread
  margin = beta * np.where(is_behind, np.exp(np.minimum(exponent, 40)), 0.0)

  def formula(fields):
    logits = beta * mean_gap(fields) - margin
    return random_batches.mean(softplus(-logits), WEIGHT)

  random_batches.check(FIELDS, formula, {'amapo': 1.0}, beta=beta)


def test_amapo_of_equal_pairs_is_simpo_without_margin():
  equal = {name: values[-20:] for name, values in FIELDS.items()}
  first = random_batches.ours(equal, {'amapo': 1.0})
  second = random_batches.ours(equal, {'simpo': 1.0}, beta=2.0, gamma=0.0)
  assert_same(first, second)


# Textual/train/scripts/uni_dpo_trainer.py of pspdada/Uni-DPO: `uni_dpo_loss`,
# with the settings of Llama-3-8B-Base (the defaults), and others.
@pytest.mark.parametrize(
  'values',
  [
    {},
    {'tau_ref': 2.0, 'nll_weight': 0.2, 'tau_good': 2.0},
    {
      'reduction': 'sum',
      'beta': 0.1,
      'reward_scale': 0.1,
      'focal_gamma': 1.0,
      'tau_good': 0.0,
    },
  ],
)
def test_uni_dpo_is_its_authors(values):
  defaults = {
    'beta': 2.0,
    'reward_scale': 0.7,
    'tau_ref': 0.8,
    'focal_gamma': 3.0,
    'nll_weight': 0.001,
    'tau_good': 3.2,
    'reduction': 'mean',
  }
  beta, eta, tau_ref, focal_gamma, nll_weight, tau_good, reduction = (
    defaults | values
  ).values()

  def logps(fields, model, side):
    tokens = fields[f'{side}_tokens'] if reduction == 'mean' else 1.0
    return fields[f'{model}_{side}'] / tokens

  ahead = FIELDS['score_chosen'] - FIELDS['score_rejected']
  quality = 1 / (1 + np.exp(-eta * ahead))
  reference = [logps(FIELDS, 'reference', s) for s in ('chosen', 'rejected')]
  behind = np.sign(reference[0] - logps(FIELDS, 'policy', 'chosen'))
  good = FIELDS['score_chosen'] >= tau_good
  imitated = np.where(good, np.maximum(behind, 0), 0)

  def formula(fields):
    chosen = logps(fields, 'policy', 'chosen')
    gap = chosen - logps(fields, 'policy', 'rejected')
    performance = (1 - 1 / (1 + np.exp(-beta * gap + tau_ref))) ** focal_gamma
    lead = gap - (reference[0] - reference[1])
    loss = quality * performance * softplus(-beta * lead)
    loss = loss - nll_weight * imitated * chosen
    return random_batches.mean(loss, WEIGHT)

  random_batches.check(FIELDS, formula, {'uni_dpo': 1.0}, **values)


def test_uni_dpo_without_its_weights_is_half_of_dpo():
  # Equal scores give q = 1/2, focal_gamma 0 gives p = 1.
  fields = FIELDS | {'score_rejected': FIELDS['score_chosen']}
  plain = {'focal_gamma': 0.0, 'nll_weight': 0.0, 'reduction': 'sum'}
  first = random_batches.ours(fields, {'uni_dpo': 2.0}, beta=0.1, **plain)
  second = random_batches.ours(fields, {'sigmoid': 1.0})
  assert_same(first, second)


def assert_same(first, second):
  """Asserts that two results of `random_batches.ours` are equal."""
  np.testing.assert_allclose(first[0], second[0], rtol=1e-12)
  for name in random_batches.LOG_PROBS:
    np.testing.assert_allclose(
      first[1][name], second[1][name], rtol=1e-9, atol=1e-15
    )
