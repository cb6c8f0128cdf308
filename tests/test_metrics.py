"""metrics: by hand on two comparisons and a padded one; per-example values."""

import itertools

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, metrics
from dpo_jax.losses.views import LabelledScores, PairScores

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


def rewards(pairs, beta):
  return beta * pairs.chosen_log_ratio, beta * pairs.rejected_log_ratio


def test_preference_metrics_by_hand():
  # Log-ratios: chosen (1, -2), rejected (-1, 1); weights 1 and 3.
  got = metrics.means(metrics.preference_sums(PAIRS, *rewards(PAIRS, 0.5)))
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
  got = metrics.means(metrics.preference_sums(same, *rewards(same, 0.1)))
  assert float(got['rewards/accuracies']) == 0  # TRL counts strict wins too


def test_without_a_reference_there_is_no_drift():
  got = metrics.preference_sums(PAIRS, *rewards(PAIRS, 1), has_reference=False)
  assert not {'kl', 'displacement'} & set(got)


def test_label_metrics_by_hand():
  # Rewards: desirable 3 (weight 1) and 1 (weight 2), undesirable 2 and 0.
  completions = LabelledScores(
    policy=jnp.array([-1.0, -2.0, -3.0, -4.0, jnp.inf]),
    reference=jnp.array([-2.0, -1.0, -4.0, -3.0, 0.0]),
    num_tokens=jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]),
    desirable=jnp.array([1.0, 1.0, 0.0, 0.0, 1.0]),
    weight=jnp.array([1.0, 2.0, 1.0, 1.0, 0.0]),
    mismatched_log_ratio=jnp.zeros(()),
  )
  rewards = jnp.array([3.0, 1.0, 2.0, 0.0, 9.0])
  got = metrics.means(metrics.label_sums(completions, rewards))
  expected = {
    'rewards/chosen': (3 + 2 * 1) / 3,
    'rewards/rejected': (2 + 0) / 2,
    'rewards/margins': 5 / 3 - 1,
    # 3 is above both; 1, of weight 2, above one of two.
    'rewards/accuracies': (2 + 2) / 6,
    'kl': -(1 - 2 + 1 - 1) / 5,
    'displacement': 2 / 3,
    'logps/chosen': (-1 - 4) / 3,
    'logps/rejected': (-3 - 4) / 2,
    'lengths/chosen': (1 + 4) / 3,
    'lengths/rejected': (3 + 4) / 2,
  }
  assert set(got) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-6, err_msg=name)


def test_accuracy_of_labels_is_that_of_all_pairs():
  rng = np.random.default_rng(0)
  sums = jax.jit(metrics.label_sums)
  for _ in range(200):
    # Few values: many ties. A quarter is padding, which may hold anything.
    rewards = rng.integers(-3, 4, 16).astype(np.float32)
    desirable = rng.integers(0, 2, 16).astype(np.float32)
    weight = rng.uniform(0.5, 2, 16).astype(np.float32)
    weight[rng.random(16) < 0.25] = 0
    rewards[weight == 0] = rng.choice([np.nan, np.inf, -np.inf, 0])
    one = np.ones(16, np.float32)
    view = LabelledScores(one, one, one, desirable, weight, np.float32(0))
    ordered = total = 0.0
    for i, j in itertools.product(np.flatnonzero(weight), repeat=2):
      if desirable[i] > desirable[j]:
        total += weight[i] * weight[j]
        ordered += weight[i] * weight[j] * (rewards[i] > rewards[j])
    got = sums(view, rewards)['rewards/accuracies']
    np.testing.assert_allclose(got, (ordered, total), rtol=1e-5)


def test_a_hundred_thousand_answers_take_a_moment():
  # An array of all pairs of them would take 160 GB.
  num = 100_000
  rng = np.random.default_rng(0)
  completions = LabelledScores(
    *rng.normal(size=(2, num)),
    np.full(num, 9.0),
    rng.integers(0, 2, num).astype(float),
    np.ones(num),
    np.zeros(()),
  )
  sums = jax.jit(metrics.label_sums)(completions, completions.policy)
  np.testing.assert_allclose(
    metrics.means(sums)['rewards/accuracies'], 0.5, atol=0.01
  )


def test_one_label_has_no_accuracy_and_no_other_side():
  one = jnp.ones(3)
  view = LabelledScores(one, one, one, one, one, jnp.zeros(()))
  got = metrics.means(metrics.label_sums(view, one))
  assert 'rewards/chosen' in got
  absent = ('accuracies', 'rejected', 'margins')
  assert not {f'rewards/{name}' for name in absent} & got.keys()


def test_comparisons_come_before_labels():
  paired = metrics.preference_sums(PAIRS, *rewards(PAIRS, 0.5))
  ones = LabelledScores(*(jnp.ones(2) for _ in LabelledScores._fields))
  labelled = metrics.label_sums(ones, jnp.ones(2))
  got = metrics.means(metrics.merge(paired, labelled))
  expected = metrics.means(paired)
  assert set(got) == set(expected)
  for name, value in got.items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
  none = metrics.preference_sums(
    PAIRS._replace(weight=jnp.zeros(3)), *rewards(PAIRS, 0.5)
  )
  got = metrics.means(metrics.merge(none, labelled))
  assert got == metrics.means(labelled)


def test_a_metric_of_comparisons_alone_survives_the_merge():
  paired = metrics.preference_sums(PAIRS, *rewards(PAIRS, 0.5))
  paired['mine'] = metrics.Mean(jnp.float32(6), jnp.float32(4))
  ones = LabelledScores(*(jnp.ones(2) for _ in LabelledScores._fields))
  labelled = metrics.label_sums(ones, jnp.ones(2))
  labelled['yours'] = metrics.Mean(jnp.float32(1), jnp.float32(2))
  got = metrics.means(metrics.merge(paired, labelled))
  assert (got['mine'], got['yours']) == (1.5, 0.5)
  # Without comparisons the metric has no mean: absent, not 0.
  paired['mine'] = metrics.Mean(jnp.float32(0), jnp.float32(0))
  assert 'mine' not in metrics.means(metrics.merge(paired, labelled))


def test_a_mean_over_nothing_is_absent_and_scalars_stay():
  nothing = metrics.Mean(np.float32(0), np.float32(0))
  got = metrics.means({'loss': 2.0, 'kl': nothing, 'rewards/chosen': nothing})
  assert got == {'loss': 2.0}


# Losses without a value per comparison: those that sort, those of lists.
WITHOUT = {
  loss.name
  for loss in map(losses.get, losses.names())
  if loss.kind == 'transport' or loss.view == 'lists'
}
WEIGHTS = (1.0, 0.5, 2.0, 0.0)


def gather(terms, batch):
  """(loss of a batch, its Examples); all log-ratios differ."""
  steps = np.arange(harness.NUM)
  policy, reference = harness.scores_of(
    0.4 + steps, -0.3 - 0.1 * steps, policy=(-7.0 - steps, -11.0 - steps / 4)
  )
  objective = losses.make_objective(tuple(terms))
  hyper = losses.default_hyper(terms)
  arguments = policy, reference, batch, hyper
  with jax.disable_jit():
    examples = metrics.examples(objective, *arguments)
    return objective(*arguments)[0], examples


@pytest.mark.parametrize('name', losses.names())
def test_the_losses_mean_is_the_loss(name):
  value, examples = gather({name: 2.0}, harness.batch_of(weight=WEIGHTS))
  each = examples.comparisons.get('loss')
  assert (each is None) == (name in WITHOUT)
  if each is not None:
    np.testing.assert_allclose(
      np.average(each, weights=WEIGHTS), value, rtol=2e-6
    )
    assert each[3] == 0 and len(set(each.tolist())) == 4


def test_terms_are_summed_with_their_weights():
  batch = harness.batch_of()
  one, two = ({'sigmoid': 1.0}, {'kto': 1.0})
  mixed = gather({'sigmoid': 0.5, 'kto': 2.0}, batch)[1].comparisons['loss']
  parts = [gather(terms, batch)[1].comparisons['loss'] for terms in (one, two)]
  np.testing.assert_allclose(mixed, 0.5 * parts[0] + 2 * parts[1], rtol=1e-6)
  unsortable = {'sigmoid': 1.0, 'aot': 0.2}
  assert 'loss' not in gather(unsortable, batch)[1].comparisons


def test_a_value_over_tokens_has_the_variance_of_a_ratio():
  # cpo's NLL over tokens: R + (v - R t) n / sum t, R = sum v / sum t.
  values, tokens = (
    np.array([2.0, 9.0, 4.0, 7.0]),
    np.array([1.0, 4.0, 2.0, 5.0]),
  )
  view = PAIRS._replace(
    chosen_tokens=jnp.array(tokens), weight=jnp.array([1.0, 2.0, 1.0, 1.0])
  )
  weight = np.asarray(view.weight)
  total = (weight * tokens).sum()
  ratio = (weight * values).sum() / total
  got = metrics._linear(view, 'chosen_tokens', jnp.array(values), total)
  np.testing.assert_allclose(
    got, ratio + (values - ratio * tokens) * weight.sum() / total, rtol=1e-6
  )
  np.testing.assert_allclose(np.average(got, weights=weight), ratio, rtol=1e-6)
  # Equal nats per token: a ratio without variance, whatever the lengths.
  got = metrics._linear(view, 'chosen_tokens', jnp.array(1.5 * tokens), total)
  np.testing.assert_allclose(got, 1.5, rtol=1e-6)
  # A mean over the comparisons is left as it is.
  got = metrics._linear(view, 'comparisons', jnp.array(values), weight.sum())
  np.testing.assert_allclose(got, values, rtol=1e-6)


def test_labelled_completions_come_with_their_batchs_baseline():
  labels = jnp.array([1, 0, -1] * harness.NUM)
  _, examples = gather({'kto': 1.0}, harness.batch_of()._replace(labels=labels))
  labelled = examples.labelled
  known = labelled['weight'] > 0
  assert known.tolist() == (np.asarray(labels) >= 0).tolist()
  assert labelled['desirable'][known].tolist() == [1, 0] * harness.NUM
  ratios = (labelled['policy'] - labelled['reference'])[known]
  ratios = ratios.reshape(-1, 2)[:, 0]
  np.testing.assert_allclose(ratios, 0.4 + np.arange(harness.NUM), rtol=1e-6)
  # harness.scores_of: every mismatched answer has a log-ratio of 0.5.
  np.testing.assert_allclose(labelled['mismatched_log_ratio'], 0.5)
  assert gather({'sigmoid': 1.0}, harness.batch_of())[1].labelled == {}


@pytest.mark.parametrize('name', ['sigmoid', 'simpo', 'alphapo', 'sppo_hard'])
def test_saved_rewards_are_the_metrics_rewards(name):
  terms, batch = {name: 1.0}, harness.batch_of(weight=WEIGHTS)
  _, examples = gather(terms, batch)
  steps = np.arange(harness.NUM)
  policy, reference = harness.scores_of(
    0.4 + steps, -0.3 - 0.1 * steps, policy=(-7.0 - steps, -11.0 - steps / 4)
  )
  sums = metrics.score_sums(
    losses.make_objective(tuple(terms)),
    policy,
    reference,
    batch,
    losses.default_hyper(terms),
  )
  means = metrics.means(sums)
  for side in ('chosen', 'rejected'):
    saved = np.average(examples.comparisons[f'reward_{side}'], weights=WEIGHTS)
    np.testing.assert_allclose(saved, means[f'rewards/{side}'], rtol=1e-5)


def test_sft_has_no_rewards_to_save():
  _, examples = gather({'nll': 1.0}, harness.batch_of())
  assert not [k for k in examples.comparisons if k.startswith('reward')]
