"""What is saved of an evaluation: a loss a comparison, or none at all."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.losses import examples

# No comparison has a loss of its own: sorted, of lists, over tokens.
WITHOUT = {'aot', 'aot_unpaired', 'infonca', 'nll', 'sft'}
# One of every kind, view and normaliser.
ONE_OF_EACH = {
  (loss.kind, loss.view, loss.normaliser): loss.name
  for loss in map(losses.get, losses.names())
}.values()
WEIGHTS = (1.0, 0.5, 2.0, 0.0)


def gather(terms, batch):
  """(loss of the batch, its Examples) at log-ratios that all differ."""
  steps = np.arange(harness.NUM)
  policy, reference = harness.scores_of(
    0.4 + steps, -0.3 - 0.1 * steps, policy=(-7.0 - steps, -11.0)
  )
  objective = losses.make_objective(tuple(terms))
  hyper = losses.default_hyper(terms)
  arguments = policy, reference, batch, hyper
  with jax.disable_jit():
    found = examples.gather(objective, *arguments)
    return objective(*arguments)[0], found


@pytest.mark.parametrize('name', ONE_OF_EACH)
def test_the_losses_mean_is_the_loss(name):
  value, found = gather({name: 2.0}, harness.batch_of(weight=WEIGHTS))
  each = found.comparisons.loss
  assert (each is None) == (name in WITHOUT)
  if each is not None:
    np.testing.assert_allclose(
      np.average(each, weights=WEIGHTS), value, rtol=2e-6
    )
    assert each[3] == 0 and len(set(each.tolist())) == 4


def test_terms_are_summed_with_their_weights():
  batch = harness.batch_of()
  one, two = ({'sigmoid': 1.0}, {'kto': 1.0})
  mixed = gather({'sigmoid': 0.5, 'kto': 2.0}, batch)[1].comparisons.loss
  parts = [gather(terms, batch)[1].comparisons.loss for terms in (one, two)]
  np.testing.assert_allclose(mixed, 0.5 * parts[0] + 2 * parts[1], rtol=1e-6)
  assert gather({'sigmoid': 1.0, 'nll': 0.2}, batch)[1].comparisons.loss is None


def test_labelled_completions_come_with_their_batchs_baseline():
  labels = jnp.array([1, 0, -1] * harness.NUM)
  _, found = gather({'kto': 1.0}, harness.batch_of()._replace(labels=labels))
  there = found.labelled.weight > 0
  assert there.tolist() == (np.asarray(labels) >= 0).tolist()
  assert found.labelled.desirable[there].tolist() == [1, 0] * harness.NUM
  ratios = found.labelled.log_ratio[there].reshape(-1, 2)[:, 0]
  np.testing.assert_allclose(ratios, 0.4 + np.arange(harness.NUM), rtol=1e-6)
  # harness.scores_of: every mismatched answer has a log-ratio of 0.5.
  np.testing.assert_allclose(found.labelled.mismatched_log_ratio, 0.5)
  assert gather({'sigmoid': 1.0}, harness.batch_of())[1].labelled is None
