"""Adaptive losses against their authors' formulas, written anew in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
import random_pairs

from dpo_jax import losses
from dpo_jax.losses import adaptive


def log_s(x):
  """log of the logistic function."""
  return -np.logaddexp(0, -x)


def mean_gap(drawn, model='policy'):
  """Gap of the mean log-probabilities, [B, P]."""
  return (
    drawn[f'{model}_chosen'] / drawn['chosen_tokens']
    - drawn[f'{model}_rejected'] / drawn['rejected_tokens']
  )


def moments(values, weight):
  """(mean, unbiased deviation) of each batch, [B, 1]; 0 for one value."""
  result = []
  for row, kept in zip(values, weight > 0):
    deviation = np.std(row[kept], ddof=1) if np.sum(kept) > 1 else 0.0
    result.append((np.mean(row[kept]), deviation))
  return np.array(result).T[..., None]


# scripts/dpo_trainer.py of junkangwu/alpha-DPO: `alpha-dpo`, with its moving
# mean and deviation updated by the batch before they are used.
@pytest.mark.parametrize(
  'values', [{}, {'beta': 10.0, 'gamma': 4.0, 'alpha': 0.05}]
)
def test_alpha_dpo_is_its_authors(values):
  mean, std = 0.3, 1.7
  set_to = {'beta': 2.5, 'gamma': 1.5, 'alpha': 0.2} | values
  beta, gamma, alpha = set_to.values()

  def formula(drawn, at):
    x = mean_gap(at) - mean_gap(at, 'reference')
    batch_mean, batch_std = moments(x, at['weight'])
    center = 0.9 * mean + 0.1 * batch_mean
    scaled = (x - center) / (0.9 * std + 0.1 * batch_std)
    logits = mean_gap(drawn) - (alpha * scaled + gamma / beta)
    return -log_s(beta * logits)

  state = {'alpha_dpo': {'mean': mean, 'std': std}}
  random_pairs.check('alpha_dpo', formula, state=state, **values)


def test_alpha_dpo_without_alpha_is_simpo():
  drawn = random_pairs.draw()
  values = {'beta': 2.5, 'gamma': 1.2}
  first = random_pairs.of_objective(
    'alpha_dpo', drawn, values=values | {'alpha': 0.0}
  )
  second = random_pairs.of_objective('simpo', drawn, values=values)
  random_pairs.assert_same(first, second)


def test_alpha_dpo_starts_as_simpo():
  # Policy and reference differ by rounding: no margin comes of that.
  drawn = random_pairs.draw()
  noise = np.random.default_rng(1).normal(0, 1e-7, drawn['weight'].shape)
  for side in ('chosen', 'rejected'):
    drawn[f'reference_{side}'] = drawn[f'policy_{side}'] + noise
  values = {'beta': 2.5, 'gamma': 1.5}
  first = random_pairs.of_objective('alpha_dpo', drawn, values=values)
  second = random_pairs.of_objective('simpo', drawn, values=values)
  random_pairs.assert_same(first, second)


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
  def formula(drawn, at):
    x = mean_gap(at)
    mean, std = moments(x, at['weight'])
    std = np.where(std > 1e-6, std, np.inf)
    exponent = np.minimum((mean - x) / std * mean, 40)
    behind = (x < mean) & np.isfinite(std)
    margin = beta * np.where(behind, np.exp(exponent), 0.0)
    return -log_s(beta * mean_gap(drawn) - margin)

  random_pairs.check('amapo', formula, beta=beta)


def test_amapo_of_equal_pairs_is_simpo_without_margin():
  drawn = random_pairs.draw()
  equal = {name: values[-20:] for name, values in drawn.items()}
  first = random_pairs.of_objective('amapo', equal)
  second = random_pairs.of_objective(
    'simpo', equal, values={'beta': 2.0, 'gamma': 0.0}
  )
  random_pairs.assert_same(first, second)


# Textual/train/scripts/uni_dpo_trainer.py of pspdada/Uni-DPO: `uni_dpo_loss`,
# with the settings of Llama-3-8B-Base (the defaults) and of Qwen2.5-Math.
@pytest.mark.parametrize(
  'values',
  [
    {},
    {'tau_ref': 2.0, 'nll_weight': 0.2, 'tau_good': 4.0},
    {'reduction': 'sum', 'beta': 0.1, 'reward_scale': 0.1, 'focal_gamma': 1.0},
  ],
)
def test_uni_dpo_is_its_authors(values):
  set_to = {
    'beta': 2.0,
    'reward_scale': 0.7,
    'tau_ref': 0.8,
    'focal_gamma': 3.0,
    'nll_weight': 0.001,
    'tau_good': 3.2,
    'reduction': 'mean',
  } | values
  beta, eta, tau_ref, focal_gamma, nll_weight, tau_good, reduction = (
    set_to.values()
  )

  def formula(drawn, at):
    def of(side, model, values):
      tokens = values[f'{side}_tokens'] if reduction == 'mean' else 1.0
      return values[f'{model}_{side}'] / tokens

    chosen = of('chosen', 'policy', drawn)
    gap = chosen - of('rejected', 'policy', drawn)
    reference = of('chosen', 'reference', at)
    lead = gap - (reference - of('rejected', 'reference', at))
    quality = 1 / (
      1 + np.exp(-eta * (at['score_chosen'] - at['score_rejected']))
    )
    performance = (1 - 1 / (1 + np.exp(-beta * gap + tau_ref))) ** focal_gamma
    behind = np.maximum(np.sign(reference - of('chosen', 'policy', at)), 0)
    imitated = np.where(at['score_chosen'] >= tau_good, behind, 0)
    loss = -quality * performance * log_s(beta * lead)
    return loss - nll_weight * imitated * chosen

  random_pairs.check('uni_dpo', formula, **values)


def test_uni_dpo_without_its_weights_is_half_of_dpo():
  # Equal scores give q = 1/2, focal_gamma 0 gives p = 1.
  drawn = random_pairs.draw()
  drawn['score_rejected'] = drawn['score_chosen']
  value, gradient = random_pairs.of_objective(
    'uni_dpo',
    drawn,
    values={
      'beta': 0.1,
      'focal_gamma': 0.0,
      'nll_weight': 0.0,
      'reduction': 'sum',
    },
  )
  second = random_pairs.of_objective('sigmoid', drawn)
  doubled = {side: 2 * values for side, values in gradient.items()}
  random_pairs.assert_same((2 * value, doubled), second)
