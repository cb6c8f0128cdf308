"""views: scores gathered by comparison, label and prompt, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.losses import views

# Six completions, the last one absent; log-ratios 1, -1, 2, 0.5, 4, 0.
LOGPS = (-4.0, -6.0, -10.0, -8.0, -3.0, 0.0)
REFERENCE = (-5.0, -5.0, -12.0, -8.5, -7.0, 0.0)
NUM_TOKENS = (2.0, 3.0, 5.0, 4.0, 1.0, 0.0)


def scores(logps, **fields):
  return types.CompletionScores(
    jnp.asarray(logps), jnp.asarray(NUM_TOKENS), **fields
  )


POLICY, FROZEN = scores(LOGPS), scores(REFERENCE)


def batch_of(pairs, **fields):
  """A batch of (winner, loser, weight, margin) and columns [6]."""
  winner, loser, weight, margin = np.array(pairs, np.float32).T
  columns = {
    'labels': jnp.full(6, -1),
    'scores': jnp.arange(6.0),
    'prompt_index': jnp.array([0, 0, 0, 1, 1, 2]),
  }
  return types.Batch(
    rows=None,
    comparisons=types.Comparisons(
      winner.astype(int), loser.astype(int), weight, margin
    ),
    **columns | {name: jnp.asarray(values) for name, values in fields.items()},
  )


BATCH = batch_of([(0, 1, 2, 0.5), (2, 0, 1, 0.0), (3, 5, 1, 0.0)])


def test_pairs_are_gathered_by_winner_and_loser():
  pairs = views.gather_pairs(POLICY, FROZEN, BATCH)
  assert pairs.policy_chosen.tolist() == [-4, -10, -8]
  assert pairs.reference_rejected.tolist() == [-5, -5, 0]
  assert pairs.margin.tolist() == [0.5, 0, 0]
  assert pairs.score_chosen.tolist() == [0, 2, 3]
  assert pairs.score_rejected.tolist() == [1, 0, 5]
  assert pairs.chosen_log_ratio.tolist() == [1, 2, 0.5]
  assert pairs.log_ratio_gap.tolist() == [2, 1, 0.5]
  # An absent completion takes its comparison with it and divides nothing by 0.
  assert pairs.weight.tolist() == [2, 1, 0]
  assert pairs.rejected_tokens.tolist() == [3, 2, 1]
  np.testing.assert_allclose(
    pairs.mean_log_ratio_gap[:2], [1 / 2 + 1 / 3, 2 / 5 - 1 / 2], rtol=1e-6
  )


def test_without_a_reference_its_scores_are_zero():
  pairs = views.gather_pairs(POLICY, None, BATCH)
  np.testing.assert_array_equal(pairs.chosen_log_ratio, pairs.policy_chosen)
  for gathered in (
    views.gather_labelled(POLICY, None, BATCH),
    views.gather_lists(POLICY, None, BATCH),
  ):
    np.testing.assert_array_equal(gathered.reference, 0)


def test_further_sums_are_gathered_if_the_scores_have_them():
  plain = views.gather_pairs(POLICY, FROZEN, BATCH)
  assert plain.chosen_kl is None and plain.policy_chosen_head is None
  heads = jnp.array([[1.0, 2, 3], [4, 5, 6]])  # [2, P]
  policy = scores(
    LOGPS,
    kl=jnp.arange(6.0),
    log_sum_sq_probs=jnp.full(6, -1.0),
    heads_2P=heads,
  )
  pairs = views.gather_pairs(policy, scores(REFERENCE, heads_2P=-heads), BATCH)
  assert pairs.chosen_kl.tolist() == [0, 2, 3]
  assert pairs.rejected_kl.tolist() == [1, 0, 5]
  assert pairs.chosen_aligned.tolist() == [-3, -9, -7]
  assert pairs.rejected_aligned.tolist() == [-5, -3, 1]
  assert pairs.policy_rejected_head.tolist() == [4, 5, 6]
  assert pairs.reference_chosen_head.tolist() == [-1, -2, -3]


def test_labelled_are_winners_losers_and_labels():
  # Completion 2 is labelled, so its comparison no longer counts.
  batch = BATCH._replace(labels=jnp.array([-1, -1, 0, -1, 1, 1]))
  labelled = views.gather_labelled(POLICY, FROZEN, batch)
  assert labelled.policy[:6].tolist() == [-4, -10, -8, -6, -4, 0]
  assert labelled.policy[6:].tolist() == list(LOGPS)
  assert labelled.desirable.tolist() == [1] * 3 + [0] * 3 + [0, 0, 0, 0, 1, 1]
  # The absent completion 5 counts neither in a comparison nor by its label.
  assert labelled.weight.tolist() == [2, 0, 0] * 2 + [0, 0, 1, 0, 1, 0]
  assert labelled.log_ratio[6:].tolist() == [1, -1, 2, 0.5, 4, 0]


def test_a_demonstration_is_not_labelled():
  batch = batch_of([(1, 1, 1, 0), (0, 1, 1, 0)])
  labelled = views.gather_labelled(POLICY, FROZEN, batch)
  assert labelled.weight.tolist() == [0, 1, 0, 1] + [0] * 6


@pytest.mark.parametrize(
  'mismatched,mean',
  [
    (None, 0.0),
    ([0] * 6, 0.0),
    ([0, 1, 0, 1, 0, 0], -0.25),
    ([0, 1, 0, 0, 0, 1], -1.0),  # the absent completion 5 is left out
  ],
)
def test_mismatched_log_ratio_is_a_mean(mismatched, mean):
  batch = BATCH
  if mismatched is not None:
    batch = BATCH._replace(mismatched=jnp.array(mismatched))
  labelled = views.gather_labelled(POLICY, FROZEN, batch)
  assert labelled.mismatched_log_ratio.shape == ()
  assert labelled.mismatched_log_ratio == mean


def test_lists_group_the_completions_of_a_prompt():
  lists = views.gather_lists(POLICY, FROZEN, BATCH)
  # Prompt 2 has only the absent completion.
  assert lists.prompt.tolist() == [0, 0, 0, 1, 1, -1]
  # Prompt 0 has the mean weight of its comparisons.
  assert lists.weight.tolist() == [(2 + 1) / 2, 1, 0, 0, 0, 0]
  assert lists.sum(lists.log_ratio).tolist() == [2, 4.5, 0, 0, 0, 0]
  shares = np.exp(lists.log_softmax(lists.scores))
  np.testing.assert_allclose(
    shares[:3], np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum(), rtol=1e-6
  )
  np.testing.assert_allclose(shares[3:5], [1 / (1 + np.e), np.e / (1 + np.e)])
  # Prompt 0 keeps three, prompt 1 one completion without the mismatched.
  batch = BATCH._replace(mismatched=jnp.array([0, 0, 0, 0, 1, 0]))
  lists = views.gather_lists(POLICY, FROZEN, batch)
  assert lists.weight.tolist() == [1.5, 0, 0, 0, 0, 0]


def test_lists_have_the_weights_of_the_data():
  def weights(batch):
    return views.gather_lists(POLICY, FROZEN, batch).weight.tolist()

  # Padding compares completion 0 with itself.
  padded = batch_of([(0, 1, 4, 0), (4, 3, 0, 0), (0, 0, 0, 0)])
  assert weights(padded) == [4, 0, 0, 0, 0, 0]
  # Prompts without a comparison count once.
  assert weights(batch_of([(0, 1, 4, 0)])) == [4, 1, 0, 0, 0, 0]
  given = [0.5, 0.5, 0.5, 0, 0, 9]  # prompt 2 has no completion
  batch = BATCH._replace(list_weight=jnp.array(given))
  assert weights(batch) == [0.5, 0, 0, 0, 0, 0]


def test_present_keeps_the_weights_of_comparisons_that_are_complete():
  kept = views.present(BATCH.comparisons, POLICY.num_tokens)
  assert kept.weight.tolist() == [2, 1, 0]
  np.testing.assert_array_equal(kept.winner, BATCH.comparisons.winner)
