"""The objective: mixes, padding, labels, lists, weights and state."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, types
from dpo_jax.losses import unpaired, views
from dpo_jax.metrics import implicit_reward
from dpo_jax.types import Comparisons, CompletionScores, InputError

# One shape for all tests, that of harness: they compile little.
P, C = harness.NUM, 3 * harness.NUM


def s(x):
  return 1 / (1 + np.exp(-x))


def nls(x):
  """-log s(x)."""
  return np.log1p(np.exp(-x))


def scores(logps, num_tokens):
  """CompletionScores [C], padded with absent completions."""
  fields = (
    np.resize(np.append(x, np.zeros(C)), C) for x in (logps, num_tokens)
  )
  return CompletionScores(*(jnp.asarray(x, jnp.float32) for x in fields))


def batch_of(*, pairs=(), **fields):
  """A batch of C completions and P pairs (winner, loser, weight)."""
  padded = np.array([*pairs, *[(0, 0, 0)] * (P - len(pairs))], np.float32)
  winner, loser, weight = padded.T
  empty = {'labels': -1, 'scores': 0.0, 'prompt_index': -1, 'mismatched': 0}
  for name, number in empty.items():
    given = list(fields.get(name, []))
    given += [number] * (C - len(given))
    fields[name] = jnp.asarray(given)
  return types.Batch(
    rows=None,
    comparisons=Comparisons(
      jnp.asarray(winner, jnp.int32),
      jnp.asarray(loser, jnp.int32),
      jnp.asarray(weight),
      jnp.zeros(P),
    ),
    **fields,
  )


def term(name, policy, reference, batch, state=None, **values):
  objective = losses.make_objective((name,))
  hyper = losses.default_hyper({name: 1.0}, **values)
  return objective(policy, reference, batch, hyper, state=state)[0]


def test_weights_mixes_and_padding():
  policy = scores([-4.0, -6.0, -10.0, -8.0], [2, 3, 5, 4])
  reference = scores([-5.0, -5.0, -9.0, -9.0], [2, 3, 5, 4])
  batch = batch_of(pairs=[(0, 1, 1), (2, 3, 3), (0, 0, 0)])
  terms = {'sigmoid': 1.0, 'nll': 0.5}
  objective = losses.make_objective(tuple(terms))
  hyper = losses.default_hyper(terms, beta=0.5)
  loss, values = objective(policy, reference, batch, hyper)
  # Gaps: (1) - (-1) = 2 and (-1) - (1) = -2; D = +-1; weights 1 and 3.
  sigmoid = (nls(1) + 3 * nls(-1)) / 4
  nll = (4 + 3 * 10) / (2 + 3 * 5)  # nats per chosen token
  np.testing.assert_allclose(values['sigmoid'], sigmoid, rtol=1e-6)
  np.testing.assert_allclose(values['nll'], nll, rtol=1e-6)
  np.testing.assert_allclose(loss, sigmoid + 0.5 * nll, rtol=1e-6)


def test_the_published_mixes_can_be_made():
  for terms, source in losses.MIXES.values():
    losses.make_objective(tuple(terms))
    assert 'arXiv' in source
  assert losses.MIXES['mpo'][0] == {'sigmoid': 0.8, 'bco': 0.2, 'nll': 1}


def test_unknown_names_and_unused_hyper_are_refused():
  with pytest.raises(InputError, match="did you mean 'sigmoid'"):
    losses.make_objective(('sigmoyd',))
  with pytest.raises(InputError, match="did you mean 'wpo'"):
    losses.make_objective(('sigmoid',), options=('wpp',))
  with pytest.raises(InputError, match='label_smoothing: not used by ipo'):
    losses.default_hyper({'ipo': 1.0}, label_smoothing=0.1)


def test_terms_that_disagree_on_a_default_are_asked():
  with pytest.raises(InputError, match='sigmoid has 0.1 by default and simpo'):
    losses.default_hyper({'sigmoid': 1.0, 'simpo': 1.0})
  hyper = losses.default_hyper({'sigmoid': 1.0, 'simpo': 1.0}, beta=2.0)
  assert hyper['beta'] == 2


def test_an_absent_completion_takes_its_comparisons_with_it():
  policy = scores([-4.0, -6.0, 0.0, 0.0], [2, 3, 0, 0])
  batch = batch_of(pairs=[(0, 1, 1), (2, 3, 5)])
  alone = batch_of(pairs=[(0, 1, 1)])
  for name in ('simpo', 'aot', 'orpo'):
    value = term(name, policy, policy, batch)
    np.testing.assert_allclose(value, term(name, policy, policy, alone))


@pytest.mark.parametrize('name', ['aot', 'aot_unpaired'])
def test_sorted_losses_sort_over_the_batch(name):
  # Policy margins 1, 5 and the reference's 3, -1; chosen log-ratios 0, 4 and
  # rejected 2, -2, so that either sorting gives gaps of 2 and 2.
  policy = scores([-4.0, -5.0, -1.0, -6.0], [2, 3, 5, 4])
  reference = scores([-4.0, -7.0, -5.0, -4.0], [2, 3, 5, 4])
  batch = batch_of(pairs=[(0, 1, 1), (2, 3, 1)])
  value = term(name, policy, reference, batch, beta=0.5)
  np.testing.assert_allclose(value, nls(1), rtol=1e-6)


@pytest.mark.parametrize('name', ['aot', 'aot_unpaired'])
def test_a_weight_of_two_is_a_comparison_twice(name):
  rng = np.random.default_rng(0)
  policy, reference = (scores(rng.normal(size=8) * 3, [3] * 8) for _ in 'ab')
  weighted = [(0, 1, 2), (2, 3, 1), (4, 5, 1)]
  repeated = [(w, x, 1) for w, x, n in weighted for _ in range(n)]

  def value_and_grad(pairs):
    batch = batch_of(pairs=pairs)
    return jax.value_and_grad(
      lambda logps: term(name, policy._replace(logps=logps), reference, batch)
    )(policy.logps)

  a, b = value_and_grad(weighted), value_and_grad(repeated)
  np.testing.assert_allclose(a[0], b[0], rtol=1e-6)
  np.testing.assert_allclose(a[1], b[1], rtol=1e-5, atol=1e-7)


def test_labels_and_comparisons_say_the_same():
  policy = scores([-4.0, -6.0, -10.0, -8.0], [2, 3, 5, 4])
  reference = scores([-5.0, -5.5, -9.0, -9.0], [2, 3, 5, 4])
  paired = batch_of(pairs=[(0, 1, 1), (2, 3, 1)])
  labelled = batch_of(labels=[1, 0, 1, 0])
  both = batch_of(pairs=[(0, 1, 1), (2, 3, 1)], labels=[1, 0, 1, 0])
  for name in ('kto', 'bco'):
    value = term(name, policy, reference, paired)
    for batch in (labelled, both):
      other = term(name, policy, reference, batch)
      np.testing.assert_allclose(other, value, rtol=1e-6)


def test_kto_on_unpaired_data_by_hand():
  # Completion 3 is mismatched: a = 1, so z = .1; 4 is absent.
  policy = scores([-4.0, -6.0, -10.0, -8.0, 0.0], [2, 3, 5, 4, 0])
  reference = scores([-6.0, -5.0, -9.0, -9.0, 0.0], [2, 3, 5, 4, 0])
  batch = batch_of(labels=[1, 0, 0, -1, 1], mismatched=[0, 0, 0, 1, 1])
  value = term('kto', policy, reference, batch, undesirable_weight=2.0)
  # r = .2, -.1, -.1; 1 - s(r - z) and 2 (1 - s(z - r)); three completions.
  expected = ((1 - s(0.1)) + 2 * 2 * (1 - s(0.2))) / 3
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  # z never falls below 0: a mismatched answer at a = -1, or none at all.
  less = reference._replace(logps=reference.logps.at[3].set(-7.0))
  for others, other_batch in (
    (less, batch),
    (reference, batch._replace(mismatched=None)),
  ):
    value = term('kto', policy, others, other_batch)
    expected = (1 - s(0.2) + 2 * (1 - s(0.1))) / 3
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_bco_shifts_by_the_running_mean_of_both_labels():
  state = losses.make_objective(('bco',)).init_state()['bco']

  def labelled(log_ratios, labels):
    zeros = jnp.zeros(len(labels))
    return views.LabelledScores(
      jnp.asarray(log_ratios),
      zeros,
      zeros + 1,
      jnp.asarray(labels),
      zeros + 1,
      jnp.zeros(()),
    )

  state = unpaired.update_bco(
    state, labelled([1.0, 3.0, -1.0], [1.0, 1.0, 0.0]), beta=0.5
  )
  state = unpaired.update_bco(state, labelled([5.0], [1.0]), beta=0.5)
  # Rewards .5, 1.5, 2.5 and -.5.
  np.testing.assert_allclose(state['desirable'], 1.5, rtol=1e-6)
  np.testing.assert_allclose(state['undesirable'], -0.5, rtol=1e-6)
  value = unpaired.bco(labelled([2.0, -1.0], [1.0, 0.0]), state, beta=0.5)
  each = [value['desirable'][0], value['undesirable'][1]]
  np.testing.assert_allclose(each, [nls(0.5), nls(1.0)], rtol=1e-6)


def test_bco_gives_either_label_the_same_say():
  # Means of -log s(.1) over three desirable, -log s(0) over one undesirable.
  policy = scores([1.0, 1.0, 1.0, 0.0], [2] * 4)
  state = losses.make_objective(('bco',)).init_state()
  reference = scores([0.0] * 4, [2] * 4)
  batch = batch_of(labels=[1, 1, 1, 0])
  value = term('bco', policy, reference, batch, state)
  np.testing.assert_allclose(value, nls(0.1) + nls(0), rtol=1e-6)


@pytest.mark.parametrize('label,sign', [(1, -1), (0, 1)])
def test_bco_learns_from_one_label(label, sign):
  # d loss / d log-ratio at 0, shift 0: -+beta s(0) / 4 of four completions.
  zeros = scores([0.0] * 4, [2] * 4)
  state = losses.make_objective(('bco',)).init_state()
  batch = batch_of(labels=[label] * 4)
  value, gradient = jax.value_and_grad(
    lambda logps: term('bco', zeros._replace(logps=logps), zeros, batch, state)
  )(zeros.logps)
  np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
  np.testing.assert_allclose(gradient[:4], sign * 0.0125, rtol=1e-6)


@pytest.mark.parametrize('name', losses.names())
def test_a_batch_of_nothing_is_zero_and_has_no_gradient(name):
  batch = harness.batch_of(weight=(0, 0, 0, 0))._replace(
    prompt_index=jnp.arange(C)
  )
  value, policy, _ = harness.evaluate(name, harness.scores_of(2, -1), batch)
  for leaf in jax.tree.leaves((value, policy)):
    np.testing.assert_array_equal(leaf, 0)


def test_infonca_ranks_lists_of_different_lengths():
  policy = scores([1.0, 2.0, 3.0, 4.0, 1.0, 7.0], [2] * 6)
  reference = scores([0.0] * 6, [2] * 6)
  batch = batch_of(
    prompt_index=[0, 0, 0, 1, 1, 2],  # the last prompt has no second answer
    scores=[0.0, 1.0, 3.0, 2.0, 2.0, 5.0],
  )

  def cross_entropy(scores, rewards):
    target = np.exp(scores) / np.exp(scores).sum()
    return -np.sum(target * (rewards - np.log(np.exp(rewards).sum())))

  first = cross_entropy(np.array([0.0, 1, 3]), np.array([0.1, 0.2, 0.3]))
  second = cross_entropy(np.array([2.0, 2]), np.array([0.4, 0.1]))
  value = term('infonca', policy, reference, batch)
  np.testing.assert_allclose(value, (first + second) / 2, rtol=1e-6)


def test_rewards_are_those_of_the_loss():
  log_pi, log_ref, tokens = jnp.array([-6.0]), jnp.array([-8.0]), 3.0
  hyper = {'beta': jnp.float32(0.5), 'alpha': jnp.float32(0.25)}
  for name, expected in (
    ('sigmoid', 0.5 * 2),
    ('cpo', 0.5 * -6),  # no reference: the reward is beta log pi
    ('simpo', 0.5 * -2),
    ('alphapo', 0.5 * (1 - np.exp(0.5)) / 0.25),
  ):
    reward = losses.make_objective((name, 'nll')).reward
    got = implicit_reward(reward, log_pi, log_ref, tokens, hyper)
    np.testing.assert_allclose(got, [expected], rtol=1e-6)
  assert losses.make_objective(('nll',)).reward == 'none'


def test_only_what_a_loss_needs_is_asked_for():
  needs = losses.make_objective(('sigmoid', 'nll')).needs
  assert needs == {'reference'}
  batch = harness.batch_of()
  plain = losses.make_objective(('sigmoid',))
  assert plain.heads(batch, jnp.ones(12)) is None
  split = losses.make_objective(('sigmoid',), options=('ld_alpha',))
  heads = split.heads(batch, jnp.arange(12.0))
  assert heads.num_tokens.tolist() == [0, 3, 6, 9]
